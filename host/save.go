package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/netdev"
)

// savedVersion is the number of what a Saved holds. One of another number is refused.
const savedVersion = 1

// Saved is what a System was told beyond its Plan since it started, and what the next one in its place needs to go on.
//
// What is not in it is lost with the process: what a resource manager of TPMs held, registers and configuration space that somebody wrote
// to directly, faults of --fault (the first has made them), bindings of the port bus.
type Saved struct {
	Version int `json:"version"`
	// Plan is what there is now: cards were plugged in and taken out.
	Plan workerPlan `json:"plan"`
	// Numbers keep what devices are called.
	Numbers map[string]savedNumbers `json:"numbers,omitempty"`
	// Drivers are those of the devices that came into service, by name; "": it has none, and wants none.
	Drivers   map[string]string `json:"drivers,omitempty"`
	Overrides map[string]string `json:"overrides,omitempty"` // driver_override by PCI address
	Added     []savedID         `json:"added,omitempty"`     // new_id
	NoProbe   bool              `json:"no_probe,omitempty"`
	Asleep    []string          `json:"asleep,omitempty"` // suspended, ports first
	// Stores are the last values that were written to plain attributes, in the order of their last writes.
	Stores []savedStore    `json:"stores,omitempty"`
	Pktgen json.RawMessage `json:"pktgen,omitempty"`
	Nets   []savedNet      `json:"nets,omitempty"` // network settings, which may be some stores old where a driver does not answer
	TPMs   []string        `json:"tpms,omitempty"` // whose resource manager was used: what it held is lost
}

// savedNumbers are those of a device.
type savedNumbers struct {
	Given map[int]int `json:"given,omitempty"` // by kind
	IRQs  map[int]int `json:"irqs,omitempty"`  // number by vector
}

// savedID is an ID that was added to a driver.
type savedID struct {
	Driver string `json:"driver"`
	ID     pci.ID `json:"id"`
}

// savedStore is a write to an attribute.
type savedStore struct {
	Path  string `json:"path"`
	Value []byte `json:"value"`
}

// savedNet is what a network device was told.
type savedNet struct {
	Device   string          `json:"device"`
	Settings netdev.Settings `json:"settings"`
}

// saver tells who wants to know what a System would have to be told again.
type saver struct {
	changed func(Saved) // nil: nobody
	wake    chan struct{}

	telling sync.Mutex // held while changed is called, so that it hears of states in their order
	last    []byte     // guarded by telling

	mu     sync.Mutex // guards what follows
	ready  bool       // the start is over
	stores []savedStore
	lost   []string // what could not be replayed
	nets   []savedNet
	asking chan struct{} // closed when nets is what it is now; nil: nobody asks
}

// maxStores and maxStored bound what is remembered of plain attributes: how many, and bytes of one.
const (
	maxStores = 4096
	maxStored = 4096
)

// plainAttributes are those whose last value is written again: what is written there is a setting, not a command. package path has the patterns; "**" stands for any
// folders.
var plainAttributes = []string{
	"/proc/irq/*/smp_affinity",
	"/proc/irq/*/smp_affinity_list",
	"/sys/module/*/parameters/*",
	"/sys/bus/pci/slots/*/attention",
	"/sys/bus/pci_express/drivers_autoprobe",
	"/sys/devices/**/target_link_speed",
	"/sys/devices/**/power/*",
	"/sys/devices/**/vc*/*",
	"/sys/devices/**/vc_arbitration*",
}

// isPlain says whether an attribute is one of those.
func isPlain(p string) bool {
	return slices.ContainsFunc(plainAttributes, func(pattern string) bool {
		top, rest, deep := strings.Cut(pattern, "**/")
		if !deep {
			ok, _ := path.Match(pattern, p)
			return ok
		}
		if !strings.HasPrefix(p, top) {
			return false
		}
		parts, want := strings.Split(p[len(top):], "/"), strings.Count(rest, "/")+1
		if len(parts) < want {
			return false
		}
		ok, _ := path.Match(rest, strings.Join(parts[len(parts)-want:], "/"))
		return ok
	})
}

// storedIn is told of each write to a file of the tree.
func (s *System) storedIn(f *node.File, p []byte) {
	if top, ok := pathTo(s.Tree(), f); ok {
		s.stored(top, p)
	}
	s.tell()
}

// pathTo finds the file's own place, where it may be that of a plain attribute.
func pathTo(root *node.Dir, f *node.File) (string, bool) {
	tops := []string{"/sys/devices", "/sys/module", "/sys/bus/pci/slots", "/sys/bus/pci_express"}
	if f.Flavour == node.Proc {
		tops = []string{"/proc/irq"}
	}
	for _, top := range tops {
		if d, _ := root.Walk(top); d != nil {
			if dir, ok := d.(*node.Dir); ok {
				if p, ok := below(dir, f, 0); ok {
					return top + p, true
				}
			}
		}
	}
	return "", false
}

// maxDeep bounds how deep a file is looked for.
const maxDeep = 24

func below(d *node.Dir, f *node.File, deep int) (string, bool) {
	if deep == maxDeep {
		return "", false
	}
	for name, n := range d.OwnEntries() {
		switch n := n.(type) {
		case *node.File:
			if n == f {
				return "/" + name, true
			}
		case *node.Dir:
			if p, ok := below(n, f, deep+1); ok {
				return "/" + name + p, true
			}
		}
	}
	return "", false
}

// stored notes what was written to a file of the tree, at its own place and not by way of a link.
func (s *System) stored(p string, value []byte) {
	if s.saver.changed == nil || !isPlain(p) || len(value) > maxStored {
		return
	}
	s.saver.mu.Lock()
	defer s.saver.mu.Unlock()
	if !s.saver.ready {
		return
	}
	l := slices.DeleteFunc(s.saver.stores, func(o savedStore) bool { return o.Path == p })
	l = append(l, savedStore{p, bytes.Clone(value)})
	s.saver.stores = l[max(0, len(l)-maxStores):]
}

// Save is what the System has been told.
func (s *System) Save() Saved {
	v := Saved{Version: savedVersion, Numbers: map[string]savedNumbers{}, Drivers: map[string]string{}, NoProbe: s.noprobe.Load()}
	s.specs.Lock()
	plan := s.plan
	plan.Devices = slices.Clone(plan.Devices)
	plan.Faults = nil
	v.Plan = wirePlan(plan)
	if len(s.overrides) > 0 {
		v.Overrides = map[string]string{}
	}
	for a, driver := range s.overrides {
		v.Overrides[a.String()] = driver
	}
	for _, a := range s.added {
		v.Added = append(v.Added, savedID{a.driver, a.id})
	}
	for _, d := range plan.Devices {
		n := savedNumbers{Given: map[int]int{}, IRQs: s.irqs.numbersOf(d.Name)}
		for kind, given := range s.numbers.given {
			if x, ok := given[d.Name]; ok {
				n.Given[kind] = x
			}
		}
		v.Numbers[d.Name] = n
	}
	s.specs.Unlock()
	for _, b := range s.bound() {
		v.Drivers[b.spec.Name] = b.driverName()
		if b.asleep != nil {
			v.Asleep = append(v.Asleep, b.spec.Name)
		}
		if b.tpm != nil && b.tpm.managed.Load() {
			v.TPMs = append(v.TPMs, b.spec.Name)
		}
	}
	v.Nets = s.settings()
	v.Pktgen = s.pktgen.Save()
	s.saver.mu.Lock()
	v.Stores = slices.Clone(s.saver.stores)
	s.saver.mu.Unlock()
	v.Stores = slices.DeleteFunc(v.Stores, func(o savedStore) bool { // of a device that left
		_, err := s.Tree().Walk(o.Path)
		return err != nil
	})
	return v
}

// settingsTime is how long drivers may take to say how they are set.
const settingsTime = time.Second

// settings are those of the network devices. A driver that hangs is not waited for: then they are what they were.
func (s *System) settings() []savedNet {
	limit := time.After(settingsTime)
	for mine := false; !mine; {
		s.saver.mu.Lock()
		asking := s.saver.asking
		if asking == nil {
			asking, mine = make(chan struct{}), true
			s.saver.asking = asking
			go s.askSettings(asking)
		}
		s.saver.mu.Unlock()
		select {
		case <-asking:
		case <-limit:
			mine = true
		}
	}
	s.saver.mu.Lock()
	defer s.saver.mu.Unlock()
	return s.saver.nets
}

func (s *System) askSettings(done chan struct{}) {
	var l []savedNet
	for _, b := range s.bound() {
		if b.net != nil && b.dev.Err() == nil {
			l = append(l, savedNet{b.spec.Name, netdev.SaveSettings(b.net)})
		}
	}
	s.saver.mu.Lock()
	s.saver.nets, s.saver.asking = l, nil
	s.saver.mu.Unlock()
	close(done)
}

// tell tells who wants to know what there is to save, if it is something else than before.
func (s *System) tell() {
	if s.saver.changed == nil {
		return
	}
	s.saver.mu.Lock()
	ready := s.saver.ready
	s.saver.mu.Unlock()
	if !ready {
		return
	}
	s.saver.telling.Lock()
	defer s.saver.telling.Unlock()
	v := s.Save()
	b, err := json.Marshal(v)
	if err != nil {
		s.log.Warn(fmt.Sprintf("saving what was configured: %v", err))
		return
	}
	if !bytes.Equal(b, s.saver.last) {
		s.saver.last = b
		s.saver.changed(v)
	}
}

// touch has what changed by itself, and not because somebody asked for it, be told soon. It never blocks.
func (s *System) touch() {
	select {
	case s.saver.wake <- struct{}{}:
	default:
	}
}

// tellChanges tells what touch was called for, until the System ends.
func (s *System) tellChanges() {
	for {
		select {
		case <-s.saver.wake:
			s.tell()
		case <-s.ctx.Done():
			return
		}
	}
}

// readSaved reads what a System before this one told. Who is nobody's heir gets nil.
func readSaved(raw json.RawMessage) (*Saved, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(raw, &version); err != nil {
		return nil, fmt.Errorf("what was saved: %w", err)
	}
	if version.Version != savedVersion {
		return nil, fmt.Errorf("what was saved is of version %d, want %d", version.Version, savedVersion)
	}
	v := new(Saved)
	if err := json.Unmarshal(raw, v); err != nil {
		return nil, fmt.Errorf("what was saved: %w", err)
	}
	return v, nil
}

// hadNet says whether a device was a network device.
func (v *Saved) hadNet(device string) bool {
	return v != nil && slices.ContainsFunc(v.Nets, func(n savedNet) bool { return n.Device == device })
}

// lose notes something that is not as it was.
func (s *System) lose(format string, a ...any) {
	line := fmt.Sprintf(format, a...)
	s.saver.mu.Lock()
	s.saver.lost = append(s.saver.lost, line)
	s.saver.mu.Unlock()
}

// Lost is what of Config.Saved could not be replayed, a line each.
func (s *System) Lost() []string {
	s.saver.mu.Lock()
	defer s.saver.mu.Unlock()
	return slices.Clone(s.saver.lost)
}

// inherit takes over what has to be known before the first device comes. What it cannot use is lost, and nothing else.
func (s *System) inherit(raw json.RawMessage) *Saved {
	v, err := readSaved(raw)
	if err == nil && v != nil {
		var p Plan
		if p, err = v.Plan.plan(); err == nil {
			err = p.check()
		}
		if err == nil {
			p.Faults = nil // they were the first one's
			s.plan = p
		}
	}
	if err != nil {
		s.lose("%v: the devices are as they were at first", err)
		return nil
	}
	if v == nil {
		return nil
	}
	for name, n := range v.Numbers {
		for kind, x := range n.Given {
			if kind >= 0 && kind < numbered && x >= 0 {
				s.numbers.given[kind][name] = x
			}
		}
	}
	for text, driver := range v.Overrides {
		a, err := pci.ParseAddr(text)
		if err != nil {
			s.lose("driver_override of %q: %v", text, err)
			continue
		}
		s.overrides[a] = driver
	}
	return v
}

// check says what is wrong with a plan that came from elsewhere.
func (p *Plan) check() error {
	seen := map[string]bool{}
	for _, d := range p.Devices {
		if err := checkName(d.Name); err != nil {
			return err
		}
		if backends[d.Backend] == nil || seen[d.Name] || d.under() != "" && !seen[d.under()] {
			return fmt.Errorf("device %s: it is there twice, its port is not, or it has no backend", d.Name)
		}
		seen[d.Name] = true
	}
	for _, w := range p.Wires {
		if !seen[w.A] || !seen[w.B] {
			return fmt.Errorf("wire %s: no device has that name", w)
		}
	}
	return nil
}

// inheritIDs gives drivers the IDs that they had been given.
func (s *System) inheritIDs(v *Saved) {
	if v == nil {
		return
	}
	for _, a := range v.Added {
		d := s.named(a.Driver)
		if d == nil {
			s.lose("new_id of the driver %s: there is no such driver", a.Driver)
			continue
		}
		d.IDs = append(slices.Clone(d.IDs), a.ID)
		s.added = append(s.added, addedID{a.Driver, a.ID})
	}
}

// heirs are the drivers that a device may have which another System had before; none: it shall have none.
func (s *System) heirs(v *Saved, b *boundDevice) (drivers []*pci.Driver, none bool) {
	drivers = s.driversFor(b)
	if v == nil {
		return drivers, false
	}
	name, ok := v.Drivers[b.spec.Name]
	switch {
	case !ok:
		return drivers, false
	case name == "":
		return nil, true
	}
	i := slices.IndexFunc(drivers, func(d *pci.Driver) bool { return d.Name == name })
	if i < 0 {
		s.lose("%s: its driver %s is not in this program", b.spec.Name, name)
		return drivers, false
	}
	return drivers[i : i+1], false
}

// replay does again what was done to the devices, once all are up.
func (s *System) replay(ctx context.Context, v *Saved) {
	if v == nil {
		return
	}
	for _, o := range v.Stores {
		if err := s.storeAgain(ctx, o); err != nil {
			s.lose("%s: %q is not written again: %v", o.Path, strings.TrimSuffix(string(o.Value), "\n"), err)
			continue
		}
		s.saver.mu.Lock()
		s.saver.stores = append(s.saver.stores, o)
		s.saver.mu.Unlock()
	}
	for _, n := range v.Nets {
		if b := s.boundOf(n.Device); b == nil || b.net == nil {
			s.lose("%s: it is no network device now: its settings are lost", n.Device)
		} else {
			if b.tap != nil && s.outside != nil { // it followed its interface already, which is as it was
				n.Settings.MTU, n.Settings.Receive = 0, nil
			}
			if err := netdev.RestoreSettings(ctx, b.net, n.Settings); err != nil {
				s.lose("%s: %s", n.Device, strings.ReplaceAll(err.Error(), "\n", "; "))
			}
		}
	}
	if len(v.Pktgen) > 0 {
		if err := s.pktgen.Restore(v.Pktgen); err != nil {
			s.lose("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
		}
		s.pktgen.Resume()
	}
	for _, name := range v.TPMs {
		s.lose("%s: the resource manager's sessions and objects of programs that have it open are lost", name)
	}
	for _, name := range v.Asleep {
		if b := s.boundOf(name); b == nil || b.asleep != nil {
			continue
		}
		if err := s.suspend(ctx, name); err != nil {
			s.lose("%s: it is awake: %v", name, err)
		}
	}
	s.noprobe.Store(v.NoProbe)
}

func (s *System) storeAgain(ctx context.Context, o savedStore) error {
	if !isPlain(o.Path) || len(o.Value) == 0 || len(o.Value) > maxStored {
		return errors.New("it is no plain attribute")
	}
	n, err := s.Tree().Walk(o.Path)
	if err != nil {
		return err
	}
	f, ok := n.(*node.File)
	if !ok {
		return errors.New("it is no file")
	}
	_, err = f.Write(ctx, o.Value)
	return err
}

// begin says that the start is over: from here on what changes is told.
func (s *System) beginSaving() {
	for _, line := range s.Lost() {
		s.log.Warn(line)
	}
	if s.saver.changed == nil {
		return
	}
	s.saver.mu.Lock()
	s.saver.ready = true
	s.saver.mu.Unlock()
	go s.tellChanges()
	s.tell()
}

// numbersOf are the interrupt numbers of a device, by vector.
func (t *irqTable) numbersOf(device string) map[int]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out map[int]int
	for k, n := range t.numbers {
		if k.device == device {
			if out == nil {
				out = map[int]int{}
			}
			out[k.vector] = n
		}
	}
	return out
}

// inherit gives devices the numbers that they had.
func (t *irqTable) inherit(v *Saved) {
	if v == nil {
		return
	}
	taken := map[int]bool{}
	for _, device := range slices.Sorted(maps.Keys(v.Numbers)) {
		for vector, n := range v.Numbers[device].IRQs {
			if n >= t.first && !taken[n] {
				taken[n] = true
				t.numbers[irqKey{device, vector}] = n
			}
		}
	}
}
