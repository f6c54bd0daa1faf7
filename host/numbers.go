package host

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ring3dev/ring3/internal/cpuset"
)

// thisMachine is what a System wants to know of the machine that it is on.
func thisMachine() Facts {
	f := Facts{Nodes: cpuset.Nodes(), IRQDigits: kernelDigits()}
	if all, err := cpuset.Online(); err == nil {
		f.CPUs = cpuset.FormatList(all, cpuset.Limit)
	}
	if _, err := os.Stat("/sys" + nodePath); err == nil && f.Nodes == "" {
		f.Nodes = "0"
	}
	var firmware []string
	for _, bus := range []string{"acpi", "platform"} {
		for _, id := range tpmIDs {
			found, _ := filepath.Glob("/sys/bus/" + bus + "/devices/" + id + ":*")
			for _, name := range found {
				firmware = append(firmware, filepath.Base(name))
			}
		}
	}
	slices.Sort(firmware)
	f.Firmware = strings.Join(slices.Compact(firmware), " ")
	return f
}

// tell makes facts those of this process, which may not look by itself.
func (f Facts) tell() error {
	all, err := cpuset.ParseList(f.CPUs)
	if err != nil {
		return err
	}
	cpuset.Tell(all, f.Nodes)
	return nil
}

// What devices are numbered by.
const (
	aNIC = iota
	aSlot
	aTPM
	anInterface
	numbered
)

// numbering gives devices numbers that they keep: in the order in which they come, each kind from where the System begins.
type numbering struct {
	base  Numbers
	next  [numbered]int
	given [numbered]map[string]int // by device
}

func newNumbering(base Numbers) numbering {
	n := numbering{base: base, next: base.starts()}
	for i := range n.given {
		n.given[i] = map[string]int{}
	}
	return n
}

func (n Numbers) starts() [numbered]int {
	return [numbered]int{aNIC: n.NICs, aSlot: n.Slots, aTPM: n.TPMs, anInterface: firstIfIndex + n.Devices}
}

// of is a device's number of a kind, from now on.
func (n *numbering) of(name string, kind int) int {
	if v, ok := n.given[kind][name]; ok {
		return v
	}
	v := n.next[kind]
	for n.taken(kind, v) {
		v++
	}
	n.next[kind] = v + 1
	n.given[kind][name] = v
	return v
}

func (n *numbering) taken(kind, v int) bool {
	for _, g := range n.given[kind] {
		if g == v {
			return true
		}
	}
	return false
}

// begun says that all is there that the plan, as the user made it, has: what comes later has numbers of its own.
func (n *numbering) begun(p *Plan) {
	if n.base.Plugged == 0 {
		return
	}
	end := n.base.starts()
	for _, d := range p.Devices {
		end[aNIC] += boolInt(isNetwork(d))
		end[aSlot] += boolInt(hasSlot(d))
		end[anInterface]++
	}
	for _, kind := range []int{aNIC, aSlot, anInterface} {
		n.next[kind] = max(n.next[kind], end[kind]+n.base.Plugged)
	}
}

// forget gives up what a device was called. Its numbers are not given again soon.
func (n *numbering) forget(name string) {
	for _, g := range n.given {
		delete(g, name)
	}
}

// numberOf is a device's number of a kind.
func (s *System) numberOf(name string, kind int) int {
	s.specs.Lock()
	defer s.specs.Unlock()
	return s.numbers.of(name, kind)
}

func (s *System) ifindexOf(name string) int { return s.numberOf(name, anInterface) }
