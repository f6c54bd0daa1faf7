package uevent

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseSynth(t *testing.T) {
	const id = "a63a5a05-8f2d-4a3c-9f0d-0123456789ab"
	for _, c := range []struct {
		s, action string
		env       []string
	}{
		{"add", Add, []string{"SYNTH_UUID=0"}}, {"change\n", Change, []string{"SYNTH_UUID=0"}}, {"remove\x00", Remove, []string{"SYNTH_UUID=0"}},
		{"add " + id, Add, []string{"SYNTH_UUID=" + id}}, {"add " + id + " A=1 b=C\n", Add, []string{"SYNTH_UUID=" + id, "SYNTH_ARG_A=1", "SYNTH_ARG_b=C"}},
		{"", "", nil}, {"\n", "", nil}, {"Add", "", nil}, {"add\n\n", "", nil}, {"add ", "", nil}, {"add 1", "", nil}, {"add " + id + " ", "", nil},
		{"add " + id + " A=", "", nil}, {"add " + id + " A_B=1", "", nil}, {"add " + id + "\nx", "", nil},
	} {
		action, env, err := ParseSynth(c.s)
		if action != c.action || !slices.Equal(env, c.env) || (err == nil) != (c.action != "") || err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("ParseSynth(%q) = %q, %q, %v, want %q, %q", c.s, action, env, err, c.action, c.env)
		}
	}
}
