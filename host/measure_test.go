package host

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus/fault"
)

// TestFlagsAreAll: what is measured has every field of a Plan, so that none is forgotten when one is added.
func TestFlagsAreAll(t *testing.T) {
	elsewhere := map[string]string{
		"Devices": "each is measured by itself",
		"Measure": "it is what measures",
	}
	plans := map[string]Plan{
		"Wires":    {Wires: []Wire{{A: "eth0", B: "eth1"}}},
		"Captures": {Captures: map[string]string{"eth0": "out.pcap"}},
		"Taps":     {Taps: []TapSpec{{Device: "eth0", Interface: "rt0"}}},
		"Forwards": {Forwards: [][2]string{{"eth0", "eth1"}}},
		"Faults":   {Faults: map[string]fault.Plan{"eth0": {Faults: []fault.Fault{{}}}}},
		"Arm":      {Arm: true},
		"Trace":    {Trace: TracePlan{Files: map[string]string{"eth0": "-"}, Crash: defaultCrash}},
		"RT":       {RT: 5},
		"Profile":  {Profile: "6.1"},
	}
	seen := map[string]string{}
	plan := reflect.TypeFor[Plan]()
	for i := range plan.NumField() {
		f := plan.Field(i)
		if elsewhere[f.Name] != "" {
			continue
		}
		p, ok := plans[f.Name]
		if !ok {
			t.Errorf("Plan.%s is not among the cases of this test, want it, and in flags()", f.Name)
			continue
		}
		if f.Name != "Trace" {
			p.Trace.Crash = defaultCrash
		}
		text := p.flags()
		if other := seen[text]; text == "" || other != "" {
			t.Errorf("flags() with %s = %q, want a text of its own (%s)", f.Name, text, other)
		}
		seen[text] = f.Name
	}
	if got := (&Plan{Trace: TracePlan{Crash: defaultCrash}}).flags(); got != "" {
		t.Errorf("flags() of a plan without any = %q, want nothing", got)
	}
}

// TestMeasurePCR takes the PCRs that a list of can prove something.
func TestMeasurePCR(t *testing.T) {
	for option, want := range map[string]string{
		"": "", ",pcr=10": "", ",pcr=15": "", ",pcr=9": "the firmware's", ",pcr=16": "any program can reset", ",pcr=17": "dynamic launch",
		",pcr=23": "any program can reset", ",pcr=24": "want 10 to 15", ",pcr=x": "want pcr=N, 10 to 15", ",bank=sha1": "want pcr=N, 10 to 15",
	} {
		_, err := (&upFlags{measure: "tpm0" + option}).plan([]string{"tpm0=sim:tpm-tis"})
		var u *usageError
		if (err == nil) != (want == "") || err != nil && (!errors.As(err, &u) || !strings.Contains(err.Error(), want)) {
			t.Errorf("--measure tpm0%s: %v, want a usage error with %q", option, err, want)
		}
	}
}
