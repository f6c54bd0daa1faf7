// Package swtpmtest opens a software TPM, swtpm, in a Go test:
//
//	func TestQuote(t *testing.T) {
//		tpm := swtpmtest.Start(t, tpmdd.TPM20)
//		answer, err := tpm.Transmit(ctx, cmd)
//		...
//	}
//
// Each call starts a swtpm of its own, with nothing in it and started up (TPM2_Startup, TPM_Startup); it
// ends with the test. A [TPM] is what tpmdd/rm and tpmdd/chardev call a Chip, without registers below: commands go through
// swtpm's own data socket. What the TPM wants to be sent again is, as a Chip does. Commands are sent one at a time, and whoever waits waits in no particular order.
//
// # Where there is no swtpm
//
// A test is skipped, and says why. With RING3_NEED_QEMU set in the environment it fails instead: a CI that
// installs swtpm should set it. Anything else that keeps swtpm from starting fails the test.
//
// # Errors
//
// Transmit and Do fail with EINTR where ctx ends while they wait for their turn, with EPIPE where swtpm
// is gone, with ETIME where it says nothing for a minute. Nothing but the test's end closes it.
package swtpmtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
)

// patience bounds one command. RSA keys may take seconds on a busy machine.
const patience = time.Minute

// TPM is a software TPM. It is safe for concurrent use.
type TPM struct {
	family tpmdd.Family
	path   string
	turn   chan struct{} // full while somebody sends
	conn   net.Conn      // nil before the first command; whoever has the turn
}

// Start starts a swtpm for the test.
func Start(t testing.TB, family tpmdd.Family) *TPM {
	t.Helper()
	need(t)
	// Not t.TempDir: the name of a socket has 107 bytes at most.
	dir, err := os.MkdirTemp("", "swtpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	tpm := &TPM{family: family, path: filepath.Join(dir, "data"), turn: make(chan struct{}, 1)}
	args := []string{
		"socket", "--server", "type=unixio,path=" + tpm.path, "--ctrl", "type=unixio,path=" + filepath.Join(dir, "ctrl"),
		"--flags", "not-need-init,startup-clear", "--tpmstate", "dir=" + dir,
	}
	if family == tpmdd.TPM20 {
		args = append(args, "--tpm2")
	}
	cmd := exec.Command("swtpm", args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		cmd.Wait()
		close(gone)
	}()
	t.Cleanup(func() {
		if tpm.conn != nil {
			tpm.conn.Close()
		}
		cmd.Process.Kill()
		<-gone
	})
	if err := ready(tpm.path, gone); err != nil {
		t.Fatalf("starting swtpm: %v: %s", err, said.Bytes())
	}
	return tpm
}

// need skips or fails the test where there is no swtpm.
func need(t testing.TB) {
	t.Helper()
	_, err := exec.LookPath("swtpm")
	if err == nil {
		return
	}
	if os.Getenv("RING3_NEED_QEMU") != "" {
		t.Fatalf("needs swtpm (Debian: apt-get install swtpm), and RING3_NEED_QEMU is set: %v", err)
	}
	t.Skipf("needs swtpm (Debian: apt-get install swtpm): %v", err)
}

// ready waits until the data socket, which is the last thing that swtpm makes, takes connections. Nothing is
// sent, and swtpm waits for the next.
func ready(path string, gone <-chan struct{}) error {
	late := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-gone:
			return errors.New("it ended")
		case <-late:
			return fmt.Errorf("20 s: %w: %w", bus.ErrTimeout, err)
		case <-tick.C:
		}
	}
}

// Family is the language it speaks.
func (t *TPM) Family() tpmdd.Family { return t.family }

// Path is the data socket: a stream of commands and of answers. swtpm has one connection at a time, so it is for those
// who send nothing through Transmit or Do.
func (t *TPM) Path() string { return t.path }

// Transmit sends one command.
func (t *TPM) Transmit(ctx context.Context, cmd []byte) (rsp []byte, err error) {
	err = t.Do(ctx, func(x tpmdd.Exchanger) error {
		rsp, err = x.Transmit(ctx, cmd)
		return err
	})
	return rsp, err
}

// Do keeps the TPM for several commands.
func (t *TPM) Do(ctx context.Context, f func(x tpmdd.Exchanger) error) error {
	select {
	case t.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("swtpm: waiting for the turn: %w: %w", unix.EINTR, ctx.Err())
	}
	defer func() { <-t.turn }()
	return f((*exchanger)(t))
}

// exchanger is the TPM for who has the turn.
type exchanger TPM

func (x *exchanger) Transmit(_ context.Context, cmd []byte) ([]byte, error) {
	h, ok := tpmdd.ParseHeader(cmd)
	if !ok || h.Length != uint32(len(cmd)) {
		return nil, fmt.Errorf("swtpm: a command of %d bytes says that it has %d: %w", len(cmd), h.Length, unix.EINVAL)
	}
	rsp, err := x.exchange(cmd)
	// It asks to be asked again where it tests an algorithm first, before that is used for the first time.
	for delay := 5 * time.Millisecond; err == nil && delay < 2*time.Second && again(h, rsp); delay *= 2 {
		<-time.After(delay)
		rsp, err = x.exchange(cmd)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("swtpm: no answer after %v: %w: %w", patience, unix.ETIME, bus.ErrTimeout)
	}
	if err != nil {
		return nil, fmt.Errorf("swtpm: %w: %w: %w", unix.EPIPE, bus.ErrGone, err)
	}
	return rsp, nil
}

// again tells whether a command is to be sent once more (TPM_RC_RETRY).
func again(cmd tpmdd.Header, rsp []byte) bool {
	h, _ := tpmdd.ParseHeader(rsp)
	return cmd.Tag != tpmdd.TagRequest12 && h.Code == tpmdd.RCRetry
}

func (x *exchanger) exchange(cmd []byte) ([]byte, error) {
	if x.conn == nil {
		conn, err := net.Dial("unix", x.path)
		if err != nil {
			return nil, err
		}
		x.conn = conn
	}
	if err := x.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if _, err := x.conn.Write(cmd); err != nil {
		return nil, err
	}
	rsp := make([]byte, tpmdd.HeaderSize, tpmdd.MaxCommand)
	if _, err := io.ReadFull(x.conn, rsp); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(rsp[2:])
	if n < tpmdd.HeaderSize || n > tpmdd.MaxCommand {
		return nil, fmt.Errorf("an answer of %d bytes: %w", n, bus.ErrProtocol)
	}
	rsp = rsp[:n]
	_, err := io.ReadFull(x.conn, rsp[tpmdd.HeaderSize:])
	return rsp, err
}
