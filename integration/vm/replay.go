package vm

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"testing"
)

// replay turns what a test binary says, run with -test.v=test2json for one test, into the
// same subtests with the same logs of a test here.
type replay struct {
	t       *testing.T
	name    string // of the test in the VM
	line    []byte // what is not a line yet
	current string // whose lines these are
	subs    map[string]*sub
	result  string // of the test itself, "" before its end
}

// sub is a subtest that has not ended, or a part of one that has not.
type sub struct {
	name   string // after its parent's
	log    bytes.Buffer
	result string
	time   string // how long it took, as go test says it
	subs   []*sub
}

func newReplay(t *testing.T, name string) *replay {
	return &replay{t: t, name: name, current: name, subs: map[string]*sub{}}
}

// marker stands before every line of the test framework's in this mode.
const marker = 0x16

var (
	began = regexp.MustCompile(`^=== (RUN|PAUSE|CONT|NAME) +(.*)$`)
	ended = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): (.+) \(([0-9.]+s)\)$`)
)

// write takes the next piece of output.
func (r *replay) write(b []byte) {
	r.line = append(r.line, b...)
	for {
		i := bytes.IndexByte(r.line, '\n')
		if i < 0 {
			return
		}
		line := string(r.line[:i])
		r.line = r.line[i+1:]
		if said, framed, ok := strings.Cut(line, string(rune(marker))); !ok {
			r.log(line + "\n")
		} else {
			if said != "" {
				r.log(said + "\n")
			}
			r.framed(framed)
		}
	}
}

// close takes what was said without a line's end.
func (r *replay) close() {
	if len(r.line) > 0 {
		r.log(string(r.line) + "\n")
		r.line = nil
	}
	// Subtests that began and did not end: the test died in them.
	for name, s := range r.subs {
		if parent, _ := cutLast(name); parent == r.name {
			s.report(r.t)
		}
	}
}

// framed takes a line of the framework's.
func (r *replay) framed(line string) {
	if m := began.FindStringSubmatch(line); m != nil {
		r.current = m[2]
		if m[1] == "RUN" {
			r.begin(m[2])
		}
		return
	}
	m := ended.FindStringSubmatch(line)
	switch {
	case line == "PASS" || line == "FAIL": // of the whole binary
	case m == nil:
		r.log(line + "\n")
	case m[2] == r.name:
		r.current, r.result = r.name, m[1]
	default:
		r.current = m[2]
		s := r.subs[m[2]]
		if s == nil {
			r.log(line + "\n")
			return
		}
		s.result, s.time = m[1], m[3]
		if parent, _ := cutLast(m[2]); parent == r.name {
			s.report(r.t)
			maps.DeleteFunc(r.subs, func(name string, _ *sub) bool { return name == m[2] || strings.HasPrefix(name, m[2]+"/") })
		}
	}
}

// begin notes a subtest.
func (r *replay) begin(name string) {
	parent, last := cutLast(name)
	if parent == "" {
		return
	}
	s := &sub{name: last}
	r.subs[name] = s
	if p := r.subs[parent]; p != nil {
		p.subs = append(p.subs, s)
	}
}

// cutLast splits a test's name into its parent's and its own.
func cutLast(name string) (parent, last string) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}

// log takes a line that the current test said.
func (r *replay) log(line string) {
	if s := r.subs[r.current]; s != nil {
		s.log.WriteString(line)
		return
	}
	_, _ = r.t.Output().Write([]byte(line))
}

// report replays a subtest below t.
func (s *sub) report(t *testing.T) {
	t.Run(s.name, func(t *testing.T) {
		_, _ = t.Output().Write(s.log.Bytes())
		if s.time != "" && s.time != "0.00s" {
			fmt.Fprintf(t.Output(), "(%s in the VM)\n", s.time)
		}
		for _, below := range s.subs {
			below.report(t)
		}
		switch s.result {
		case "PASS":
		case "SKIP":
			t.SkipNow()
		case "":
			t.Errorf("it did not end: the test died in it")
		default:
			t.Fail()
		}
	})
}
