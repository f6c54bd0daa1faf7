package mounts

import (
	"reflect"
	"testing"
)

func TestParse(t *testing.T) {
	const in = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:39 / /tmp/a\040b\011\134 rw,nosuid - fuse.ring3 ring3 rw,user_id=0
41 22 0:40 / /tmp/x rw shared:2 master:1 - fuse /dev/fuse rw
broken line
42 22 0:41 / /y rw - fusectl fusectl rw
`
	want := []Entry{
		{"/", "254:0", "ext4", "/dev/vda"}, {"/tmp/a b\t\\", "0:39", "fuse.ring3", "ring3"},
		{"/tmp/x", "0:40", "fuse", "/dev/fuse"}, {"/y", "0:41", "fusectl", "fusectl"},
	}
	got := Parse(in)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Parse = %q, want %q", got, want)
	}
	for i, fuse := range []bool{false, true, true, false} {
		if got[i].IsFuse() != fuse {
			t.Errorf("%s IsFuse = %v", got[i].FSType, !fuse)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`/a\040b`: "/a b", `/a\134`: `/a\`, `/x\0`: `/x\0`, `\999`: `\999`, "": ""} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}
