package host

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/pci"
)

const faultHelp = "make a device fail: `NAME=SPEC`, such as eth0=STATUS#3:gone (package bus/fault has the words)"

// addFaults reads the flags --fault, NAME=SPEC.
func (p *Plan) addFaults(faults []string) error {
	p.Faults = map[string]fault.Plan{}
	for _, s := range faults {
		name, spec, ok := strings.Cut(s, "=")
		switch {
		case !ok || spec == "":
			return usagef("--fault %q: want NAME=SPEC, such as eth0=STATUS#3:gone", s)
		case p.find(name) == nil:
			return usagef("--fault %q: no device is named %s", s, name)
		case len(p.Faults[name].Faults) > 0:
			return usagef("--fault %q: %s has a fault already: join them with a plus sign", s, name)
		}
		plan, err := fault.Parse(spec)
		if err != nil {
			return usagef("--fault %q: %v", s, err)
		}
		p.Faults[name] = plan
	}
	return nil
}

// servedBy is the driver that will serve a device, as far as its ID tells, and the registers that it describes; nil if there
// is none. Firmware has one ID for TPMs with any interface; where several drivers know it, it is the one that is called
// as the model, or else the first.
func servedBy(model string, dev bus.Device, drivers []*pci.Driver) (*pci.Driver, []bus.Register) {
	serves, _ := pci.Match(dev)
	var found *pci.Driver
	for _, d := range drivers {
		if serves(d) && (found == nil || strings.ReplaceAll(d.Name, "_", "-") == model) {
			found = d
		}
	}
	if found == nil || found.Registers == nil {
		return found, nil
	}
	return found, found.Registers(functionID(dev))
}

// functionID is what Driver.Registers is asked with.
func functionID(dev bus.Device) pci.FunctionID {
	if len(bus.HardwareIDs(dev)) > 0 {
		return pci.FunctionID{}
	}
	return pci.ReadID(dev.Config())
}

// wrapFault puts the faults that were asked for around a device.
func (s *System) wrapFault(b *boundDevice, drivers []*pci.Driver) error {
	plan, ok := s.plan.Faults[b.spec.Name]
	if !ok {
		return nil
	}
	_, plan.Registers = servedBy(b.spec.Device, b.dev, drivers)
	if err := plan.Check(); err != nil {
		return usagef("--fault %s: %v", b.spec.Name, err)
	}
	plan.Process, plan.Violate = s.watched, s.violate
	b.fault = fault.Wrap(b.dev, plan)
	b.dev = b.fault
	return nil
}

// tellFaults logs what became of the faults, and returns whether all went wrong as planned.
func (b *boundDevice) tellFaults(log *slog.Logger) bool {
	if b.fault == nil {
		return true
	}
	made := true
	for _, o := range b.fault.Outcomes() {
		log.Warn(fmt.Sprintf("%s: fault %s", b.spec.Name, o))
		made = made && o.Made
	}
	return made
}
