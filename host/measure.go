package host

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/internal/profile"
	"github.com/ring3dev/ring3/tpmdd/measure"
)

// MeasurePlan says what is measured where. The zero value measures nothing.
type MeasurePlan struct {
	TPM    string // name of the TPM
	PCR    int
	DB     string // database of known digests; "" for none
	Policy measure.Policy
}

const (
	measureHelp = "measure what is started into a PCR of a TPM: `TPM[,pcr=N]` (10 to 15; 10)"
	enforceHelp = "with --measure, what to do with what is not in the database: `DB=log|deny|lock`"
)

// addMeasure adds what --measure and --enforce say.
func (p *Plan) addMeasure(spec, enforce string) error {
	if spec == "" {
		if enforce != "" {
			return usagef("--enforce %q: want --measure too, which says where digests go", enforce)
		}
		return nil
	}
	name, option, more := strings.Cut(spec, ",")
	m := MeasurePlan{TPM: name, PCR: measure.DefaultPCR}
	d := p.find(name)
	switch {
	case d == nil:
		return usagef("--measure %q: no device is named %s", spec, name)
	case !isTPM(*d):
		return usagef("--measure %q: %s is no TPM", spec, name)
	}
	if more {
		v, ok := strings.CutPrefix(option, "pcr=")
		n, err := strconv.Atoi(v)
		if !ok || err != nil {
			return usagef("--measure %q: option %q: want pcr=N, %d to %d", spec, option, measure.DefaultPCR, measure.LastPCR)
		}
		if err := measure.CheckPCR(n); err != nil {
			return usagef("--measure %q: %v", spec, err)
		}
		m.PCR = n
	}
	if enforce != "" {
		i := strings.LastIndexByte(enforce, '=')
		if i <= 0 {
			return usagef("--enforce %q: want DB=log, DB=deny or DB=lock", enforce)
		}
		var err error
		if m.Policy, err = measure.ParsePolicy(enforce[i+1:]); err != nil {
			return usagef("--enforce %q: want DB=log, DB=deny or DB=lock", enforce)
		}
		m.DB = enforce[:i]
	}
	p.Measure = m
	return nil
}

// bindOrder is the devices in the order in which they get their drivers: the TPM that measures the others comes first.
func (s *System) bindOrder() []*boundDevice {
	order := slices.Clone(s.bound())
	slices.SortStableFunc(order, func(a, b *boundDevice) int {
		return boolInt(b.spec.Name == s.plan.Measure.TPM) - boolInt(a.spec.Name == s.plan.Measure.TPM)
	})
	return order
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// measureStart begins the list, once the TPM is there: with this program, and with what it was told to do.
func (s *System) measureStart(ctx context.Context, b *boundDevice) error {
	p := s.plan.Measure
	o := measure.Options{Chip: b.tpm.chip, Family: b.tpm.chip.Family(), Name: p.TPM, PCR: p.PCR, Policy: p.Policy, Log: s.log}
	var err error
	if p.DB != "" {
		if o.DB, err = measure.OpenDatabase(p.DB); err != nil {
			return fmt.Errorf("--enforce: %w", err)
		}
	}
	if s.measurer, err = measure.New(ctx, o); err != nil {
		return err
	}
	if err := s.measurer.Self(ctx); err != nil {
		return err
	}
	if text := s.plan.flags(); text != "" {
		if err := s.measurer.Data(ctx, "config:flags", []byte(text)); err != nil {
			return err
		}
	}
	return s.measureDevice(ctx, b)
}

// measureDevice measures what a device's driver is told, before it starts.
func (s *System) measureDevice(ctx context.Context, b *boundDevice) error {
	if s.measurer == nil {
		return nil
	}
	return s.measurer.Data(ctx, ConfigName(b.spec), []byte(b.spec.String()))
}

// ConfigName is what a device's configuration is called in a measurement list.
func ConfigName(d DeviceSpec) string { return "config:" + d.Name }

// flags is what the plan says beyond its devices, as the command line does: everything that says where frames and
// records go, and how drivers are made to behave.
func (p *Plan) flags() string {
	var all []string
	add := func(flag, value string) { all = append(all, "--"+flag+" "+value) }
	for _, w := range p.Wires {
		add("wire", w.String())
	}
	for _, t := range p.Taps {
		add("tap", t.String())
	}
	for _, f := range p.Forwards {
		add("forward", f[0]+"-"+f[1])
	}
	for _, n := range slices.Sorted(maps.Keys(p.Captures)) {
		add("pcap", n+"="+p.Captures[n])
	}
	for _, n := range slices.Sorted(maps.Keys(p.Faults)) {
		add("fault", n+"="+p.Faults[n].String())
	}
	if p.Arm {
		all = append(all, "--fault-arm")
	}
	for _, n := range slices.Sorted(maps.Keys(p.Trace.Files)) {
		add("trace", n+"="+p.Trace.Files[n])
	}
	if p.Trace.Filter != "" {
		add("trace-filter", p.Trace.Filter)
	}
	if p.Trace.Crash != defaultCrash {
		add("crash-records", strconv.Itoa(p.Trace.Crash))
	}
	if p.Profile != "" && p.Profile != profile.Default {
		add("profile", p.Profile)
	}
	if p.RT != 0 {
		add("rt", strconv.Itoa(p.RT))
	}
	return strings.Join(all, " ")
}

// exportMeasurements puts the list where IMA has it.
func (s *System) exportMeasurements(root *node.Dir) {
	if s.measurer == nil {
		return
	}
	security := root.MkdirAll("sys/kernel/security")
	ima := security.MkdirAll("integrity/ima")
	for name, f := range s.measurer.Log().Files() {
		ima.Put(name, f)
	}
	security.Put("ima", &node.Link{Target: "integrity/ima"})
}
