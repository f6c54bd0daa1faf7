package host

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"syscall"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/pktgen"
	"github.com/ring3dev/ring3/sysfs"
)

// exportModules fills sys/module: for each driver in use the parameters of its devices, as a
// kernel module's array parameters are shown, values joined by commas in the order of the devices.
func (s *System) exportModules() {
	s.tree.modules.Lock()
	defer s.tree.modules.Unlock()
	sys := s.tree.sys
	// pktgen's own parameters have no files in the kernel either.
	sys.MkdirAll("module/pktgen").Put("version", sysfs.Showf("%s", pktgen.Version))
	type key struct{ driver, param string }
	all := map[key][]pci.Param{}
	var order []key
	used := map[string]bool{"pktgen": true}
	for _, name := range s.ports.Modules() {
		used[name] = true
		sys.MkdirAll("module/" + name)
	}
	for _, b := range s.bound() {
		if b.driver == nil {
			continue
		}
		used[b.driver.Name] = true
		sys.MkdirAll("module/" + b.driver.Name).Remove("parameters")
		u, ok := b.inst.(pci.ParamUser)
		if !ok {
			continue
		}
		for _, p := range u.Params() {
			k := key{b.driver.Name, p.Name}
			if all[k] == nil {
				order = append(order, k)
			}
			all[k] = append(all[k], p)
		}
	}
	modules := sys.MkdirAll("module")
	for _, name := range modules.Names() {
		if !used[name] {
			modules.Remove(name)
		}
	}
	for _, k := range order {
		sys.MkdirAll("module/"+k.driver+"/parameters").Put(k.param, paramFile(all[k]))
	}
}

// paramFile is one parameter of several devices. It can be written where all can change it: one
// value for all of them, or one for each.
func paramFile(params []pci.Param) *sysfs.File {
	show := func(w *bytes.Buffer) error {
		for i, p := range params {
			if i > 0 {
				w.WriteByte(',')
			}
			w.WriteString(p.Get())
		}
		w.WriteByte('\n')
		return nil
	}
	if slices.ContainsFunc(params, func(p pci.Param) bool { return p.Set == nil }) {
		return sysfs.Attr(0o444, show, nil)
	}
	return sysfs.Attr(0o644, show, func(ctx context.Context, b []byte) (int, error) {
		values := strings.Split(strings.TrimSpace(string(b)), ",")
		if len(values) == 1 {
			values = slices.Repeat(values, len(params))
		}
		if len(values) != len(params) {
			return 0, syscall.EINVAL
		}
		var old []string
		for i, p := range params {
			old = append(old, p.Get())
			if err := p.Set(ctx, strings.TrimSpace(values[i])); err != nil {
				for j := range i {
					_ = params[j].Set(ctx, old[j]) // all or nothing
				}
				return 0, err
			}
		}
		return len(b), nil
	})
}
