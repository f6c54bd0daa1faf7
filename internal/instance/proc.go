package instance

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Proc names one process for good: a pid that was used again has another start time.
type Proc struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot; field 22 of /proc/pid/stat
	What  string `json:"what,omitempty"`
}

// here is where pids mean something: this boot, this pid namespace.
type here struct {
	Boot  string `json:"boot"`
	PidNS string `json:"pidns"`
}

func thisHere() here {
	var h here
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		h.Boot = strings.TrimSpace(string(b))
	}
	h.PidNS, _ = os.Readlink("/proc/self/ns/pid")
	return h
}

// procOf describes a live process.
func procOf(pid int, what string) (Proc, error) {
	start, _, err := procStart(pid)
	if err != nil {
		return Proc{}, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	return Proc{Pid: pid, Start: start, What: what}, nil
}

// procStart reads start time and state letter of a process.
func procStart(pid int) (start uint64, state byte, err error) {
	if pid <= 0 {
		return 0, 0, unix.ESRCH
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	return parseStat(b)
}

// parseStat takes /proc/pid/stat apart. The second field is the program's name in
// parentheses, which may itself hold spaces and parentheses, so fields count from the
// last one.
func parseStat(b []byte) (start uint64, state byte, err error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, 0, fmt.Errorf("stat has no program name: %.40q", b)
	}
	f := bytes.Fields(b[i+1:]) // f[0] is field 3
	if len(f) < 20 {
		return 0, 0, fmt.Errorf("stat has %d fields, want at least 22", len(f)+2)
	}
	start, err = strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("stat's start time: %w", err)
	}
	return start, f[0][0], nil
}

// alive tells whether p still runs. A zombie does not.
func (p Proc) alive() bool {
	start, state, err := procStart(p.Pid)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// killWait bounds the wait for a killed process to be gone.
const killWait = 3 * time.Second

// kill ends p and waits until it is gone; nil where it was gone already. The pidfd is
// taken before the start time is compared, so the signal cannot meet another process.
func (p Proc) kill() error {
	if p.Pid <= 1 || p.Pid == os.Getpid() {
		return nil
	}
	fd, err := unix.PidfdOpen(p.Pid, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil
	case err != nil: // a kernel before 5.3, or a seccomp filter
		return p.killByPid()
	}
	defer unix.Close(fd)
	if !p.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing %s: %w", p, err)
	}
	end := time.Now().Add(killWait)
	for {
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("killing %s: still there after %v: %w", p, killWait, unix.ETIMEDOUT)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", p, err)
		}
		if n > 0 {
			return nil
		}
	}
}

func (p Proc) killByPid() error {
	if !p.alive() {
		return nil
	}
	if err := unix.Kill(p.Pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing %s: %w", p, err)
	}
	if !p.waitGone(killWait) {
		return fmt.Errorf("killing %s: still there after %v: %w", p, killWait, unix.ETIMEDOUT)
	}
	return nil
}

// waitGone waits until p does not run any more.
func (p Proc) waitGone(most time.Duration) bool {
	for end := time.Now().Add(most); p.alive(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

func (p Proc) String() string {
	if p.What == "" {
		return fmt.Sprintf("process %d", p.Pid)
	}
	return fmt.Sprintf("%s (process %d)", p.What, p.Pid)
}
