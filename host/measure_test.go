package host

import (
	"reflect"
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
