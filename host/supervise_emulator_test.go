package host

import (
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/klog"
)

// TestSuperviseEmulatorDies: a QEMU that is killed in the middle of pktgen's run is replaced, and the run goes on to its count; `start` is not answered before.
func TestSuperviseEmulatorDies(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip(err)
	}
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	plan, err := ParsePlan([]string{"eth0=qemu:e1000e", "eth1=qemu:e1000e"}, []string{"eth0-eth1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var emulator atomic.Int64
	s, err := newSupervisor(t.Context(), superviseConfig{Args: []string{workerArg}, Config: Config{Plan: plan, Drivers: testProgram.Drivers, Log: klog.New(klog.Options{}).Logger(),
		Started: func(pid int, what string) {
			if strings.Contains(strings.ToLower(what), "qemu") {
				emulator.Store(int64(pid))
			}
		}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	started := sends(t, s, "eth0", "52:54:00:12:34:57", 100*time.Microsecond)
	awaitSending(t, s)
	if err := syscall.Kill(int(emulator.Load()), syscall.SIGKILL); err != nil {
		t.Fatalf("killing QEMU (pid %d): %v", emulator.Load(), err)
	}
	awaitUp(t, s.chargeOf("eth0"), 1)
	awaitSending(t, s)
	select {
	case err := <-started:
		t.Fatalf("start was answered when QEMU died: %v", err)
	default:
	}
	s.set(t, "/proc/net/pktgen/pgctrl", "stop")
	if err := <-started; err != nil {
		t.Errorf("start: %v", err)
	}
	awaitAccount(t, s, "eth1")
}
