package instance

import (
	"reflect"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/internal/mounts"
)

func TestParseStat(t *testing.T) {
	const tail = " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 99 0"
	for _, name := range []string{"sleep", "a b", ") S 1 (", "(((", ""} {
		start, state, err := parseStat([]byte("77 (" + name + ") Z" + tail))
		if start != 4242 || state != 'Z' || err != nil {
			t.Errorf("parseStat of %q = %d, %c, %v, want 4242, Z", name, start, state, err)
		}
	}
	for _, bad := range []string{"", "77 (x", "77 (x) S 1 2", "77 (x) S" + strings.Replace(tail, "4242", "-1", 1)} {
		if start, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("parseStat(%q) = %d, want an error", bad, start)
		}
	}
}

func TestWatchedLines(t *testing.T) {
	s := State{ID: "ID", Proc: Proc{Pid: 7, Start: 8}}
	m := Mount{Dir: "/a b\n\"", Dev: "0:39"}
	text := msgInstance("/run/a b", "r0", s) + msgChild(Proc{Pid: 1, Start: 2}) + msgChild(Proc{Pid: 3, Start: 4}) +
		msgNoChild(1) + "garbage\n" + "child x\n" + msgMount(Mount{Dir: "/gone", Dev: "0:1"}) + msgMount(m) + msgNoMount("/gone") + msgDir("/a b")
	w := listen(strings.NewReader(text + "child 5 6"))
	want := watched{base: "/run/a b", name: "r0", state: State{ID: "ID", Proc: s.Proc, Children: []Proc{{Pid: 3, Start: 4}}, Mounts: []Mount{m}, Dirs: []string{"/a b"}}}
	if !reflect.DeepEqual(w, want) {
		t.Errorf("listen = %+v, want %+v", w, want)
	}
	if w := listen(strings.NewReader(text + msgDone + msgChild(Proc{Pid: 9}))); !w.done || len(w.state.Children) != 1 {
		t.Errorf("listen after done = %+v", w)
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"format":1,"id":"x","pid":1,"start":2}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseState(b)
		if err != nil && s.ID != "" {
			t.Fatalf("parseState = %+v, %v", s, err)
		}
		if err == nil && (s.ID == "" || s.Pid <= 0) {
			t.Fatalf("parseState = %+v", s)
		}
	})
}

func TestBelow(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{{"/a", "/a", true}, {"/a/b", "/a", true}, {"/ab", "/a", false}, {"/", "/a", false}, {"/a", "/", true}} {
		if got := below(c.path, c.dir); got != c.want {
			t.Errorf("below(%q, %q) = %v, want %v", c.path, c.dir, got, c.want)
		}
	}
}

func FuzzForeignText(f *testing.F) {
	f.Add("77 (x) S 1 2 3")
	f.Add(`40 22 0:39 / /tmp/a\040b rw - fuse.ring3 ring3 rw`)
	f.Add(msgMount(Mount{Dir: "/x", Dev: "0:1"}) + "child 1 2\ninstance \"/\" a b 1 2\n")
	f.Fuzz(func(t *testing.T, s string) {
		_, _, _ = parseStat([]byte(s))
		for _, e := range mounts.Parse(s) {
			_ = e.IsFuse()
		}
		w := listen(strings.NewReader(s))
		if w.name != "" && CheckName(w.name) != nil {
			t.Fatalf("watcher took the name %q", w.name)
		}
	})
}
