package pciehp

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus/bustest"
)

var update = flag.Bool("update", false, "write testdata anew")

// TestStates plays each event to each state. testdata/states.txt has, for each script, what the slot said and, after ">", the commands that it
// was given; an empty one changes nothing.
func TestStates(t *testing.T) {
	bustest.NoLeaks(t)
	const on = "plug; settle; =on; "
	const poweringOn = "hold probe; plug; held probe; =powering on; "
	const poweringOff = "plug; settle; hold close; power 0; held close; =powering off; "
	var all strings.Builder
	for _, c := range []struct{ name, profile, props, script string }{
		// Off.
		{name: "off: card, button", script: "plug; settle; =on"},
		{name: "off: card, button; 6.1", profile: "6.1", script: "plug; settle; =on"},
		{name: "off: card, no button", props: "button=off", script: "plug; settle; =on"},
		{name: "off: button, empty", script: "press; =blinking on; wait 4999ms; =blinking on; settle; =off"},
		{name: "off: fault", script: "fault; settle; =off"},
		{name: "off: power 0", script: "power 0; settle; =off"},
		{name: "off: power 1, empty", script: "power 1; settle; =off"},
		{name: "off: power 1, card", script: on + "power 0; settle; =off; plug; settle; =on; power 0; settle; =off"},
		{name: "off: power 2", script: "power 2; settle; =off"},
		{name: "off: latch open", props: "mrl=on auto_eject=off", script: "latch open; plug; settle; =off; latch closed; settle; =off; power 1; settle; =on"},
		{name: "off: link does not come up", script: "link down; plug; settle; =off"},
		{name: "off: link does not come up; power 1", script: "link down; plug; settle; power 1; settle; =off"},
		// Blinking on.
		{name: "blinking on: button", script: "press; =blinking on; wait 4s; press; =off; settle; =off"},
		{name: "blinking on: button; 6.1", profile: "6.1", script: "press; =blinking on; wait 4s; press; =off; settle; =off"},
		{name: "blinking on: button twice", script: "press; =blinking on; wait 3s; press; =off; wait 1s; press; =blinking on; wait 4s; =blinking on; settle; =off"},
		{name: "blinking on: card", props: "button=on", script: "press; =blinking on; wait 1s; plug; settle; =off"},
		{name: "blinking on: power 0", script: "press; =blinking on; power 0; said power 0 = ENODEV; settle; =off"},
		{name: "blinking on: power 1, empty", script: "press; =blinking on; power 1; said power 1 = ENODEV; settle; =off"},
		{name: "blinking on: fault", script: "press; =blinking on; fault; settle; =off"},
		// Powering on.
		{name: "powering on: button", script: poweringOn + "press; go probe; settle"},
		{name: "powering on: card pulled out", script: poweringOn + "unplug; go probe; settle; =off"},
		{name: "powering on: another card", props: "auto_eject=off", script: poweringOn + "replug; go probe; settle; =on"},
		{name: "powering on: link flap", props: "auto_eject=off", script: poweringOn + "link down; link up; go probe; settle; =on"},
		{name: "powering on: power 0", script: poweringOn + "power 0; said power 0 = ENODEV; go probe; settle; =on"},
		{name: "powering on: power 1", script: poweringOn + "power 1; said power 1 = ENODEV; go probe; settle; =on"},
		{name: "powering on: fault", script: poweringOn + "fault; go probe; settle; =off"},
		// On.
		{name: "on: button", script: on + "press; =blinking off; wait 4999ms; =blinking off; settle; =off"},
		{name: "on: button; 6.1", profile: "6.1", script: on + "press; =blinking off; settle; =off"},
		{name: "on: card pulled out", script: on + "unplug; settle; =off"},
		{name: "on: card pulled out, no button", props: "button=off", script: on + "unplug; settle; =off"},
		{name: "on: another card", props: "button=off auto_eject=off", script: on + "replug; settle; =on"},
		{name: "on: link down", script: on + "link down; settle; =off"},
		{name: "on: link flap", props: "auto_eject=off", script: on + "link down; link up; settle; =on"},
		{name: "on: fault", script: on + "fault; settle; =off"},
		{name: "on: power 0", script: on + "power 0; settle; =off"},
		{name: "on: power 1", script: on + "power 1; settle; =on"},
		{name: "on: latch open", props: "mrl=on", script: on + "latch open; settle; =off"},
		// Blinking off.
		{name: "blinking off: button", script: on + "press; =blinking off; wait 4s; press; =on; settle; =on"},
		{name: "blinking off: button; 6.1", profile: "6.1", script: on + "press; =blinking off; wait 4s; press; =on; settle; =on"},
		{name: "blinking off: card pulled out", script: on + "press; =blinking off; unplug; wait 0s; settle; =off"},
		{name: "blinking off: link down", script: on + "press; =blinking off; link down; wait 0s; settle; =off"},
		{name: "blinking off: power 0", script: on + "press; =blinking off; power 0; said > power off; settle; =off"},
		{name: "blinking off: power 1", script: on + "press; =blinking off; power 1; said power 1 = ENODEV; settle; =off"},
		{name: "blinking off: fault", script: on + "press; =blinking off; fault; wait 0s; settle; =off"},
		// Powering off.
		{name: "powering off: button", script: poweringOff + "press; go close; settle"},
		{name: "powering off: card pulled out", script: poweringOff + "unplug; go close; settle; =off"},
		{name: "powering off: power 0", script: poweringOff + "power 0; said power 0 = ENODEV; go close; settle; =off"},
		{name: "powering off: power 1", script: poweringOff + "power 1; said power 1 = ENODEV; go close; settle; =off"},
		// Slots that lack something.
		{name: "no power controller", props: "power=off button=off", script: on + "power 0; settle; =off; power 1; settle; =on; unplug; settle; =off"},
		{name: "no indicators", props: "led=off attn=off", script: on + "press; settle"},
		{name: "no command completed", props: "no-command-completed=on", script: on + "power 0; settle; =off"},
		{name: "slow commands", props: "cmd=300ms", script: on + "power 0; settle; =off"},
		{name: "commands too slow", props: "cmd=2s", script: on + "power 0; settle; =off"},
		{name: "no auto eject", props: "auto_eject=off", script: on + "power 0; settle; =off; power 1; settle; =on"},
	} {
		t.Run(strings.NewReplacer(" ", "_", ":", "", ";", "", ",", "").Replace(c.name), func(t *testing.T) {
			st := newStage(t, c.profile, Options{}, strings.Fields(c.props)...)
			st.settle()
			st.play(c.script)
			fmt.Fprintf(&all, "== %s\n%s\n\n", strings.TrimSpace(c.name+" ["+strings.TrimSpace(c.profile+" "+c.props)+"] "+c.script), st.x)
		})
	}
	if t.Failed() {
		return
	}
	const file = "testdata/states.txt"
	if *update {
		if err := os.WriteFile(file, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got, wanted := strings.Split(all.String(), "\n\n"), strings.Split(string(want), "\n\n")
	for i := range min(len(got), len(wanted)) {
		if got[i] != wanted[i] {
			t.Errorf("got\n%s\nwant\n%s", got[i], wanted[i])
		}
	}
	if len(got) != len(wanted) {
		t.Errorf("%d scripts, want %d; -update writes them", len(got), len(wanted))
	}
}
