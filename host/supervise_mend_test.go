package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What a worker says is one line of a bearable length that steers no terminal, and stays the error that it is.
func TestSaid(t *testing.T) {
	for in, want := range map[string]string{
		"eth0: it hangs":                  "eth0: it hangs",
		"\x1b[31mred\x1b[0m\nand\tmore\n": "?[31mred?[0m; and more",
		strings.Repeat("x", 5000):         strings.Repeat("x", maxClaim),
	} {
		if got := said(in); got != want {
			t.Errorf("said(%.20q) = %.80q, want %.80q", in, got, want)
		}
	}
	err := plain(fmt.Errorf("a\x07b: %w", syscall.EIO))
	if !errors.Is(err, syscall.EIO) || strings.Contains(err.Error(), "\x07") || plain(nil) != nil {
		t.Errorf("plain = %q, want EIO and no bell", err)
	}
	if err := errors.New("x"); plain(err) != err {
		t.Error("plain changes what needs no change")
	}
}

// Lives that are longer than workedTime and shorter than steadyTime come to an end too: later and later, and then never.
func TestDelayOfARow(t *testing.T) {
	ch := &charge{}
	ch.deaths.early = 1
	last := time.Duration(0)
	for ch.deaths.row = 1; ch.deaths.row < maxRow; ch.deaths.row++ {
		d := ch.delay()
		if d < last || (ch.deaths.row <= maxRow/4) != (d == 0) {
			t.Errorf("delay after %d deaths in a row = %v after %v", ch.deaths.row, d, last)
		}
		last = d
	}
	if last != lastDelay {
		t.Errorf("the last delay is %v, want %v", last, lastDelay)
	}
}

// Only what changes nothing is asked again of the next worker.
func TestEthtoolReads(t *testing.T) {
	for raw, want := range map[string]bool{
		`{"op":"S"}`: true, `{"op":""}`: true, `{"op":"g"}`: true, `{"op":"K"}`: false, `{"op":"A"}`: false, `{"op":"C"}`: false, `{"op":"?"}`: false, `{`: false,
	} {
		if got := ethtoolReads([]byte(raw)); got != want {
			t.Errorf("ethtoolReads(%s) = %t, want %t", raw, got, want)
		}
	}
}

// A binary is the file that it was: gone from its folder it still runs. One that cannot run any more is replaced by this program, and that is no death.
func TestReloadedBinary(t *testing.T) {
	s, _ := supervise(t, nil, "edu0=sim:edu")
	ch := s.chargeOf("edu0")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	at := filepath.Join(dir, "other")
	for _, d := range []string{dir, filepath.Dir(dir)} { // workers are another user, if this is root
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at, self, 0o755); err != nil {
		t.Fatal(err)
	}
	v, err := s.reloadHandler(t.Context(), fmt.Appendf(nil, `{"device":"edu0","binary":%q}`, at), nil)
	if err != nil {
		t.Fatalf("reload = %+v, %v", v, err)
	}
	if err := os.Remove(at); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(ch.worker().p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d := awaitUp(t, ch, 1)
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", ch.worker().p.PID()))
	if d.early > 1 || err != nil || !strings.HasPrefix(exe, at) {
		t.Errorf("after a death %q runs, %v, after %d attempts, want what was %s", exe, err, d.early, at)
	}
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("nothing"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(broken)
	if err != nil {
		t.Fatal(err)
	}
	ch.setProgram(f)
	if err := syscall.Kill(ch.worker().p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if d := awaitUp(t, ch, 2); d.count != 2 {
		t.Errorf("%d deaths, want 2: what cannot be started does not die", d.count)
	}
}

// The state of a worker that is not the group's any more does not count.
func TestStateOfTheDead(t *testing.T) {
	w, dead := &worker{}, &worker{}
	ch := &charge{speaker: w}
	w.ch, dead.ch = ch, ch
	for _, c := range []struct {
		w    *worker
		body string
	}{{dead, `{"a":1}`}, {w, `{"b":2}`}, {dead, `{"a":3}`}} {
		if err := (life{c.w}).Event(lifeState, []byte(c.body), nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := string(ch.saved); got != `{"b":2}` {
		t.Errorf("what is saved is %s, want what the living one said", got)
	}
}
