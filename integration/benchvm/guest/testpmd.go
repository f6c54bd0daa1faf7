//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// testpmd is DPDK's, sending, with commands on its terminal.
type testpmd struct {
	cmd  *exec.Cmd
	term *os.File // its terminal
	out  chan []byte
	all  bytes.Buffer // what it said and nobody expected yet
}

// hugePages is how many of 2 MiB testpmd gets. They go back afterwards: ring3 shall not have them
// unless it asks for some itself.
const hugePages = 48

// setHugePages reserves so many, in memory that is put together first.
func setHugePages(n int) error {
	const file = "/proc/sys/vm/nr_hugepages"
	if n > 0 {
		_ = write("/proc/sys/vm/compact_memory", "1")
	}
	if err := write(file, strconv.Itoa(n)); err != nil {
		return err
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(string(b)); n > 0 && got != strconv.Itoa(n) {
		return fmt.Errorf("huge pages: reserved %s of 2 MiB, want %d", got, n)
	}
	return nil
}

// dropHugeFiles removes what testpmd leaves behind, which keeps its huge pages.
func dropHugeFiles() error {
	files, err := filepath.Glob("/dev/hugepages/rtemap_*")
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}

// startTestpmd starts it on a device, with frames to the same addresses as the generators'. Frames of
// up to size bytes can be sent.
func startTestpmd(dir, addr string, size int) (*testpmd, error) {
	if err := errors.Join(dropHugeFiles(), setHugePages(hugePages)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll("/dev/hugepages", 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("hugetlbfs", "/dev/hugepages", "hugetlbfs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("mounting hugetlbfs: %w", err)
	}
	// It loads drivers only from where nobody else can have put them; an initramfs begins with 0777.
	if err := os.Chmod("/", 0o755); err != nil {
		return nil, err
	}
	lib := filepath.Join(dir, "lib")
	loaders, err := filepath.Glob(filepath.Join(lib, "ld-linux*.so*"))
	if err != nil || len(loaders) != 1 {
		return nil, fmt.Errorf("%s has loaders %q, want one", lib, loaders)
	}
	args := []string{"--library-path", lib, filepath.Join(dir, "bin/dpdk-testpmd"),
		"-l", "0-1", "-n", "1", "-d", filepath.Join(dir, "pmds"), "-a", addr, "--no-telemetry", "--",
		"--interactive", "--forward-mode=txonly", "--no-lsc-interrupt", "--total-num-mbufs=3072",
		"--eth-peer=0," + nobodyMAC, "--tx-ip=0.0.0.0," + nobodyIP, "--tx-udp=9,9"}
	if size > 1518 {
		args = append(args, "--mbuf-size="+strconv.Itoa(size+256), "--max-pkt-len="+strconv.Itoa(size+4))
	}
	t := &testpmd{cmd: exec.Command(loaders[0], args...), out: make(chan []byte, 64)}
	t.cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+lib)
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// A terminal, since it keeps back what it says to anything else.
	ours, theirs, err := terminal()
	if err != nil {
		return nil, err
	}
	t.term, t.cmd.Stdin, t.cmd.Stdout, t.cmd.Stderr = ours, theirs, theirs, theirs
	err = t.cmd.Start()
	theirs.Close()
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("testpmd: %w", err)
	}
	go t.listen(ours)
	if _, err := t.expect(pmdPrompt); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

// terminal makes a pseudo-terminal.
func terminal() (ours, theirs *os.File, err error) {
	if ours, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	fd := int(ours.Fd())
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
		var n int
		if n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN); err == nil {
			theirs, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
		}
	}
	if err != nil {
		ours.Close()
		return nil, nil, fmt.Errorf("making a terminal: %w", err)
	}
	return ours, theirs, nil
}

// listen passes on what it says.
func (t *testpmd) listen(out io.Reader) {
	defer close(t.out)
	for {
		b := make([]byte, 4096)
		n, err := out.Read(b)
		if n > 0 {
			t.out <- b[:n]
		}
		if err != nil {
			return
		}
	}
}

var (
	pmdPrompt = regexp.MustCompile(`testpmd> `)
	pmdRate   = regexp.MustCompile(`Tx-pps:\s+([0-9]+)\s`)
)

// expect waits until it says something, forgets what it said up to there, and returns what the
// expression caught last.
func (t *testpmd) expect(what *regexp.Regexp) (string, error) {
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		if m := what.FindSubmatchIndex(t.all.Bytes()); m != nil {
			found := string(t.all.Bytes()[m[len(m)-2]:m[len(m)-1]])
			t.all.Next(m[1])
			return found, nil
		}
		select {
		case b, ok := <-t.out:
			if !ok {
				return "", fmt.Errorf("testpmd ended: %s", lastLines(t.all.String(), 3))
			}
			t.all.Write(b)
		case <-late.C:
			return "", fmt.Errorf("testpmd does not say %q within %s: %s", what, patience, lastLines(t.all.String(), 3))
		}
	}
}

// do gives it commands.
func (t *testpmd) do(commands ...string) error {
	for _, c := range commands {
		if _, err := io.WriteString(t.term, c+"\n"); err != nil {
			return fmt.Errorf("testpmd: %s: %w", c, err)
		}
	}
	return nil
}

// rate is how many packets a second it sent since it was asked the last time, as it says.
func (t *testpmd) rate() (float64, error) {
	if err := t.do("show port stats 0"); err != nil {
		return 0, err
	}
	s, err := t.expect(pmdRate)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(s, 64)
}

// send sends for so long and returns packets a second.
func (t *testpmd) send(c sendCase, d time.Duration) (pps float64, err error) {
	if err := t.do("set burst "+strconv.Itoa(c.Burst), "set txpkts "+strconv.Itoa(c.Size), "start"); err != nil {
		return 0, err
	}
	if _, err := t.rate(); err != nil {
		return 0, err
	}
	time.Sleep(d)
	if pps, err = t.rate(); err != nil {
		return 0, err
	}
	return pps, t.do("stop")
}

// close ends it.
func (t *testpmd) close() error {
	_ = t.do("quit")
	late := time.AfterFunc(patience, func() { _ = t.cmd.Process.Kill() })
	defer late.Stop()
	for range t.out {
	}
	return errors.Join(t.cmd.Wait(), t.term.Close(), dropHugeFiles(), setHugePages(0))
}

// lastLines are the last n lines that are not empty, in one.
func lastLines(s string, n int) string {
	var lines []string
	for l := range strings.Lines(s) {
		if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}
