package host

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/attest"
	"github.com/ring3dev/ring3/tpmdd/chardev"
)

// TestFreeInstance: each TPM has a place of its own, though each machine of QEMU's calls its own MSFT0101:00.
func TestFreeInstance(t *testing.T) {
	if old, _ := filepath.Glob("/sys/bus/*/devices/MSFT0101:*"); old != nil {
		t.Skipf("the machine has %v, so numbers are others", old)
	}
	s := &System{}
	for i := range 3 {
		s.put(&boundDevice{spec: DeviceSpec{Name: fmt.Sprintf("tpm%d", i)}, tpm: &tpmNode{chip: &tpmdd.Chip{}}})
		s.put(&boundDevice{spec: DeviceSpec{Name: fmt.Sprintf("eth%d", i)}})
	}
	for i, want := range []string{"MSFT0101:00", "MSFT0101:01", "MSFT0101:02"} {
		if got := s.freeInstance(s.bound()[2*i], "MSFT0101"); got != want {
			t.Errorf("freeInstance of TPM %d = %q, want %q", i, got, want)
		}
	}
}

// TestSocketNames: a socket has its name though that is longer than a socket's address, and loses it at the end.
func TestSocketNames(t *testing.T) {
	refuse := func([]byte) []byte { return tpmdd.Answer(tpmdd.TagNoSessions, 0x143) }
	files := chardev.New(&tpmdd.Chip{}, nil, chardev.Options{Refuse: refuse})
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, n := range []int{10, 106, 107, 108, 109, 250} {
		path := filepath.Join(dir, "tpm0.sock")
		for len(path) < n {
			path = filepath.Join(filepath.Dir(path), strings.Repeat("d", min(100, max(n-len(path)-1, 1))), "tpm0.sock")
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		node := &tpmNode{}
		if err := node.serve(path, streams(files.OpenTPM), slog.New(slog.DiscardHandler)); err != nil {
			t.Errorf("a name of %d bytes: %v", len(path), err)
			continue
		}
		// Whoever serves it a second time hears why not, with the name once.
		err := node.serve(path, streams(files.OpenTPM), slog.New(slog.DiscardHandler))
		if !errors.Is(err, unix.EADDRINUSE) || strings.Count(err.Error(), path) != 1 {
			t.Errorf("serving it again: %v, want that the address is in use, and the name once", err)
		}
		c, err := attest.Dial(path)
		if err != nil {
			t.Errorf("a name of %d bytes: %v", len(path), err)
		} else {
			if a, err := c.Transmit(t.Context(), tpmdd.Command(tpmdd.TagNoSessions, tpmdd.CCGetRandom, 0, 1)); err != nil || len(a) != tpmdd.HeaderSize {
				t.Errorf("a name of %d bytes: an answer %x, %v, want one of 10 bytes", len(path), a, err)
			}
			_ = c.Close()
		}
		node.unlisten()
		node.wait()
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after close there is a socket still, with a name of %d bytes (%v)", len(path), err)
		}
	}
}
