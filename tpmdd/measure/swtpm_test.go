package measure

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/tpmdd"
)

// swtpm is a software TPM behind a socket, one command at a time.
type swtpm struct {
	mu     sync.Mutex
	c      net.Conn
	family tpmdd.Family
	path   string
}

// startTPM runs a fresh swtpm for a test.
func startTPM(t *testing.T, family tpmdd.Family) *swtpm {
	t.Helper()
	exe, err := exec.LookPath("swtpm")
	if err != nil {
		t.Skip("no swtpm here")
	}
	dir, err := os.MkdirTemp("", "ring3-swtpm-") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &swtpm{family: family, path: filepath.Join(dir, "s")}
	args := []string{"socket", "--server", "type=unixio,path=" + s.path, "--ctrl", "type=unixio,path=" + filepath.Join(dir, "c"),
		"--flags", "not-need-init,startup-clear", "--tpmstate", "dir=" + dir}
	if family == tpmdd.TPM20 {
		args = append(args, "--tpm2")
	}
	cmd := exec.Command(exe, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if s.c, err = net.Dial("unix", s.path); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("swtpm: %v", err)
		}
	}
	t.Cleanup(func() { s.c.Close() })
	return s
}

func (s *swtpm) Transmit(_ context.Context, cmd []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	if _, err := s.c.Write(cmd); err != nil {
		return nil, err
	}
	p := make([]byte, tpmdd.HeaderSize)
	if _, err := io.ReadFull(s.c, p); err != nil {
		return nil, err
	}
	h, _ := tpmdd.ParseHeader(p)
	if h.Length < tpmdd.HeaderSize || h.Length > tpmdd.MaxCommand {
		return nil, fmt.Errorf("swtpm: answer %x: length %d", p, h.Length)
	}
	p = append(p, make([]byte, h.Length-tpmdd.HeaderSize)...)
	_, err := io.ReadFull(s.c, p[tpmdd.HeaderSize:])
	return p, err
}
