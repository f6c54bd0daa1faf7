package host

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"syscall"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/pci"
)

const faultArmHelp = `let 'ring3 fault arm' have devices fail while they are in use; for tests: a driver that came up and dies counts as one that had worked for long`

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
	if !ok && !s.plan.Arm {
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

// opFault arms faults of a device, where the instance was started for that.
const opFault = "fault"

// armArgs says which.
type armArgs struct {
	Device string `json:"device"`
	Spec   string `json:"spec"`          // of package bus/fault; "": none
	Keep   bool   `json:"keep"`          // leave those that are armed, and say what became of them
	Log    int    `json:"log,omitempty"` // how many accesses are wanted, the first ones
}

// FaultArmed is what became of the faults that a device had before, and what its driver did since they were armed.
type FaultArmed struct {
	Outcomes []FaultOutcome `json:"outcomes"`
	Accesses int            `json:"accesses"`
	Log      []fault.Access `json:"log,omitempty"`
}

// FaultOutcome is what became of one fault.
type FaultOutcome struct {
	Fault   string `json:"fault"`
	Reached bool   `json:"reached"` // its access came
	Made    bool   `json:"made"`    // and could go wrong in this way
	Text    string `json:"text"`
}

// maxArmLog bounds the accesses of one answer.
const maxArmLog = 1 << 13

// faultHandler answers opFault.
func (s *System) faultHandler(_ context.Context, raw json.RawMessage, _ func(any) error) (any, error) {
	var a armArgs
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, fmt.Errorf("arguments: %v: %w", err, syscall.EINVAL)
	}
	b := s.boundOf(a.Device)
	if b == nil || b.fault == nil {
		return nil, fmt.Errorf("no device is named %s: %w", a.Device, syscall.ENODEV)
	}
	var plan fault.Plan
	if a.Spec != "" {
		var err error
		if plan, err = fault.Parse(a.Spec); err != nil {
			return nil, fmt.Errorf("%v: %w", err, syscall.EINVAL)
		}
		_, plan.Registers = servedBy(b.spec.Device, b.fault.Unwrap(), s.drivers)
		if err := plan.Check(); err != nil {
			return nil, fmt.Errorf("%v: %w", err, syscall.EINVAL)
		}
	}
	r := FaultArmed{Accesses: b.fault.Accesses()}
	if a.Log > 0 {
		log := b.fault.Log()
		r.Log = log[:min(len(log), a.Log, maxArmLog)]
	}
	before := b.fault.Outcomes
	if !a.Keep {
		before = func() []fault.Outcome { return b.fault.Arm(plan.Faults) }
	}
	for _, o := range before() {
		r.Outcomes = append(r.Outcomes, FaultOutcome{o.Fault.String(), o.Reached, o.Made, o.String()})
	}
	return r, nil
}

// faultRoute names the device of an opFault.
func faultRoute(raw json.RawMessage) (string, error) {
	var a armArgs
	err := json.Unmarshal(raw, &a)
	return a.Device, err
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
