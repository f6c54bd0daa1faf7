package attest

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/measure"
	"github.com/ring3dev/ring3/tpmdd/swtpmtest"
)

func TestDial(t *testing.T) {
	tpm := swtpmtest.Start(t, tpmdd.TPM20)
	c, err := Dial(tpm.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	v, err := Open(t.Context(), tpm.Path(), c).ReadPCRs(measure.SHA256, []int{0, 17})
	if err != nil || len(v[0]) != 32 || v[17][0] != 0xff {
		t.Errorf("ReadPCRs = %v, %v", v, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Transmit(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Transmit with an ended context = %v", err)
	}
}

func TestDialErrors(t *testing.T) {
	dir, err := os.MkdirTemp("", "ring3-") // a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, path := range []string{filepath.Join(dir, "none"), dir, dead} {
		if _, err := Dial(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("Dial(%s) = %v, want an error that names it", path, err)
		}
	}
}

// TestAnswers are those of a peer that is no TPM, or sends its answer in pieces.
func TestAnswers(t *testing.T) {
	dir, err := os.MkdirTemp("", "ring3-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	good := tpmdd.Command(tpmdd.TagNoSessions, 0, make([]byte, 100)...)
	for _, c := range []struct {
		name   string
		pieces [][]byte
		want   error
	}{
		{"whole", [][]byte{good}, nil},
		{"in pieces", [][]byte{good[:3], good[3:11], good[11:]}, nil},
		{"too much", [][]byte{append(append([]byte(nil), good...), 0)}, bus.ErrProtocol},
		{"a short length", [][]byte{{0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0}}, bus.ErrProtocol},
		{"a long length", [][]byte{{0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}}, bus.ErrProtocol},
	} {
		go func() {
			s, err := l.Accept()
			if err != nil {
				return
			}
			defer s.Close()
			cmd := make([]byte, tpmdd.HeaderSize)
			if _, err := s.Read(cmd); err != nil {
				return
			}
			for _, p := range c.pieces {
				if _, err := s.Write(p); err != nil {
					return
				}
			}
			_, _ = s.Read(cmd) // until it is closed
		}()
		conn, err := Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		ans, err := conn.Transmit(t.Context(), tpmdd.Command(tpmdd.TagNoSessions, 1))
		if !errors.Is(err, c.want) || c.want == nil && string(ans) != string(good) {
			t.Errorf("%s: %x, %v, want %v", c.name, ans, err, c.want)
		}
		conn.Close()
	}
}
