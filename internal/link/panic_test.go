package link

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/ring3dev/ring3/internal/crash"
)

type guilty struct{ echo }

func (guilty) Call(context.Context, Method, []byte, []*os.File, func([]byte) error) ([]byte, []*os.File, error) {
	panic("guilty")
}

// TestPanic: a handler's panic is the answer; with Options.Panics it is the end of the process, which has its last words before.
func TestPanic(t *testing.T) {
	x, _ := pair(t, guilty{})
	if os.Getenv("RING3_LINK_PANICS") != "" {
		crash.Notify(func() { os.Stderr.WriteString("last words\n") })
		ours, theirs, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		far, err := Open(theirs)
		if err != nil {
			t.Fatal(err)
		}
		New(far, Mux{1: guilty{}}, Options{Panics: true})
		_, _, err = New(ours, Mux{}, Options{}).Call(t.Context(), 0x101, nil)
		t.Fatalf("it lives: %v", err)
	}
	if _, _, err := x.Call(t.Context(), 0x101, nil); !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "guilty") {
		t.Errorf("Call = %v, want EIO and the panic", err)
	}
	c := exec.Command(os.Args[0], "-test.run=^TestPanic$")
	c.Env = append(os.Environ(), "RING3_LINK_PANICS=1")
	out, err := c.CombinedOutput()
	if err == nil || !regexp.MustCompile(`(?s)^last words\npanic: guilty.*link\.guilty\.Call`).Match(out) {
		t.Errorf("a panic printed (%v)\n%s\nwant the last words, and then the panic with where it began", err, out)
	}
}

// TestPlain: what the other side says of an error steers no terminal.
func TestPlain(t *testing.T) {
	err := errorOf(errorBody(errors.New("a\tb\n\x1b[31mred\x07\u009b2J\u202e\xff")))
	if want := "a\tb\n?[31mred??2J??"; err.Error() != want {
		t.Errorf("errorOf() = %q, want %q", err, want)
	}
}
