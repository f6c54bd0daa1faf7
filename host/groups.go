package host

import (
	"slices"
	"strings"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/internal/syspci"
)

// groupPlan is the part of a Plan that one worker has: devices that one machine carries, or that depend on each other otherwise.
type groupPlan struct {
	Name    string // "eth0+eth1"
	Plan    Plan
	Numbers Numbers
}

// Room between what two groups number: for what is plugged into one of them later, and for interrupts. What a plan has from the start is numbered as
// without a supervisor, but for its interrupts.
const (
	roomPlugged = 64
	roomIRQs    = 256
)

// cut splits a plan into what depends on each other: machines that --forward joins, functions of one IOMMU group, and with --measure everything, since the
// TPM comes first and what it is told stands in one list. Order is kept. iommuGroup tells the IOMMU group of a function of this machine, negative where it has none.
func (p *Plan) cut(iommuGroup func(device string) int) []groupPlan {
	machines := p.groups()
	root := make([]int, len(machines))
	of := map[string]int{} // machine by device
	for i, m := range machines {
		root[i] = i
		for _, d := range m {
			of[d.Name] = i
		}
	}
	join := func(a, b int) {
		x, y := root[a], root[b]
		for i := range root {
			if root[i] == max(x, y) {
				root[i] = min(x, y)
			}
		}
	}
	for _, f := range p.Forwards {
		join(of[f[0]], of[f[1]])
	}
	iommus := map[int]int{} // machine by IOMMU group
	for i, m := range machines {
		if p.Measure.TPM != "" {
			join(0, i)
		}
		for _, d := range m {
			// The subsystem numbers its ports through, and a node may be the peer of another here.
			if fabricOf(d).path != "" {
				join(of[p.firstNode()], i)
			}
			// So does the class of TPMs, whose first one is the machine's source of random numbers.
			if isTPM(d) {
				join(of[p.firstTPM()], i)
			}
			if d.Backend != "vfio" {
				continue
			}
			if g := iommuGroup(d.Device); g >= 0 {
				if o, ok := iommus[g]; ok {
					join(o, i)
				} else {
					iommus[g] = i
				}
			}
		}
	}
	var out []groupPlan
	n := Numbers{Domain: freeDomain(), FirstIRQ: firstIRQ()}
	for i := range machines {
		if root[i] != i {
			continue
		}
		var mine [][]DeviceSpec
		for k, m := range machines {
			if root[k] == i {
				mine = append(mine, m)
			}
		}
		g := groupPlan{Plan: p.only(slices.Concat(mine...)), Numbers: n}
		var names []string
		for _, d := range g.Plan.Devices {
			names = append(names, d.Name)
		}
		g.Name = strings.Join(names, "+")
		n.Domain += uint32(len(mine))
		n.FirstIRQ += roomIRQs
		n.NoLo = true
		for _, d := range g.Plan.Devices {
			n.Devices++
			n.NICs += boolInt(isNetwork(d))
			n.TPMs += boolInt(isTPM(d))
			n.Slots += boolInt(hasSlot(d))
			n.Ports += boolInt(fabricOf(d).path != "")
		}
		out = append(out, g)
	}
	for i := range out[:max(0, len(out)-1)] {
		// Behind all that the plan has, and all that may come to the groups behind.
		next := out[i+1].Numbers
		out[i].Numbers.Plugged = max(n.Devices-next.Devices, n.NICs-next.NICs, n.Slots-next.Slots) + (len(out)-1-i)*roomPlugged
	}
	return out
}

// iommuGroupOf is the IOMMU group of a function of this machine; negative where there is none, or nothing is known of it.
func iommuGroupOf(device string) int {
	a, err := pci.ParseAddr(device)
	if err != nil {
		return -1
	}
	f, err := syspci.Sys.Function(a)
	if err != nil || f.Group == syspci.NoGroup {
		return -1
	}
	return f.Group
}

func (p *Plan) firstNode() string {
	i := slices.IndexFunc(p.Devices, func(d DeviceSpec) bool { return fabricOf(d).path != "" })
	return p.Devices[i].Name
}

func (p *Plan) firstTPM() string {
	return p.Devices[slices.IndexFunc(p.Devices, isTPM)].Name
}

// only is what a plan says of some of its devices, which stand in the order that the plan has.
func (p *Plan) only(devices []DeviceSpec) Plan {
	has := func(name string) bool {
		return slices.ContainsFunc(devices, func(d DeviceSpec) bool { return d.Name == name })
	}
	q := *p
	q.Devices = slices.DeleteFunc(slices.Clone(p.Devices), func(d DeviceSpec) bool { return !has(d.Name) })
	q.Wires = slices.DeleteFunc(slices.Clone(p.Wires), func(w Wire) bool { return !has(w.A) })
	q.Taps = slices.DeleteFunc(slices.Clone(p.Taps), func(t TapSpec) bool { return !has(t.Device) })
	q.Forwards = slices.DeleteFunc(slices.Clone(p.Forwards), func(f [2]string) bool { return !has(f[0]) })
	q.Captures = onlyOf(p.Captures, has)
	q.Faults = onlyOf(p.Faults, has)
	q.Trace.Files = onlyOf(p.Trace.Files, has)
	return q
}

func onlyOf[V any](m map[string]V, has func(name string) bool) map[string]V {
	out := map[string]V{}
	for name, v := range m {
		if has(name) {
			out[name] = v
		}
	}
	return out
}

// hasSlot says whether a device is a port with a slot that has a number.
func hasSlot(d DeviceSpec) bool {
	switch d.Backend {
	case "qemu":
		return qemu.HasSlot(d.Device)
	case "sim":
		return sim.HasSlot(d.Device)
	}
	return false
}
