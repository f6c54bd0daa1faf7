package portseen

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Line is a line of a log.
type Line struct {
	At   time.Duration // since some beginning
	Text string
}

// Log is where log lines come from. Lines are those since the last call.
type Log interface {
	Lines() ([]Line, error)
}

// KernelLog reads the kernel's log from now on.
func KernelLog() (Log, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /dev/kmsg: %w", err)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		return nil, fmt.Errorf("/dev/kmsg: %w", err)
	}
	return kmsg(fd), nil
}

type kmsg int

// Lines reads records: "PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT", one a read (Documentation/ABI/testing/dev-kmsg).
func (k kmsg) Lines() ([]Line, error) {
	var lines []Line
	buf := make([]byte, 8192)
	for {
		n, err := unix.Read(int(k), buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return lines, nil
		case err != nil:
			return nil, fmt.Errorf("reading /dev/kmsg: %w", err)
		}
		head, text, _ := strings.Cut(string(buf[:n]), ";")
		fields := strings.Split(head, ",")
		if len(fields) < 3 {
			return nil, fmt.Errorf("a record of /dev/kmsg begins with %q, want priority, number, microseconds", head)
		}
		us, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("reading /dev/kmsg: %w", err)
		}
		text, _, _ = strings.Cut(text, "\n") // variables follow
		// The kernel escapes what is no printable character.
		lines = append(lines, Line{time.Duration(us) * time.Microsecond, text})
	}
}

// CommandLog runs a command that prints all of a log, as dmesg and ring3 dmesg do. Lines that are there already are no news.
func CommandLog(argv ...string) (Log, error) {
	c := &commandLog{argv: argv}
	_, err := c.Lines()
	return c, err
}

type commandLog struct {
	argv []string
	had  int
}

var stamped = regexp.MustCompile(`^\[ *(\d+)\.(\d{6})\] (.*)$`)

func (c *commandLog) Lines() ([]Line, error) {
	out, err := exec.Command(c.argv[0], c.argv[1:]...).Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(c.argv, " "), err)
	}
	var lines []Line
	n := 0
	for s := range strings.Lines(string(out)) {
		if n++; n <= c.had {
			continue
		}
		l, err := stampedLine(strings.TrimSuffix(s, "\n"))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", strings.Join(c.argv, " "), err)
		}
		lines = append(lines, l)
	}
	c.had = n
	return lines, nil
}

// CommandFollow is CommandLog with a command that goes on and prints what comes, as ring3 dmesg -w does: it is started once, which on a slow machine
// counts. stop ends it.
func CommandFollow(argv ...string) (l Log, stop func(), err error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	f := &follower{}
	cmd.Stdout = f
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := fmt.Errorf("%s ended: %w", strings.Join(argv, " "), errors.Join(errors.New("no more lines"), cmd.Wait()))
		f.mu.Lock()
		defer f.mu.Unlock()
		f.err = err
	}()
	return f, func() { _ = cmd.Process.Kill(); <-done }, nil
}

// follower keeps what a command printed until somebody asks.
type follower struct {
	mu   sync.Mutex
	text []byte
	err  error
}

func (f *follower) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.text = append(f.text, p...)
	return len(p), nil
}

func (f *follower) Lines() ([]Line, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []Line
	for {
		s, rest, ok := bytes.Cut(f.text, []byte("\n"))
		if !ok {
			return lines, f.err
		}
		f.text = rest
		l, err := stampedLine(string(s))
		if err != nil {
			return nil, err
		}
		lines = append(lines, l)
	}
}

// stampedLine takes a line of dmesg apart.
func stampedLine(s string) (Line, error) {
	m := stamped.FindStringSubmatch(s)
	if m == nil {
		return Line{}, fmt.Errorf("a line of the log without a time: %q", s)
	}
	at, err := time.ParseDuration(m[1] + "." + m[2] + "s")
	return Line{at, m[3]}, err
}

// Uevent is what the kernel tells user space of a change: "KEY=VALUE", in order.
type Uevent struct {
	At  time.Time // when it was seen
	Env []string
}

// value is a variable's.
func (u *Uevent) value(key string) string {
	for _, e := range u.Env {
		if v, ok := strings.CutPrefix(e, key+"="); ok {
			return v
		}
	}
	return ""
}

// Events is where uevents come from: those since the last call, and an error if there will be no more.
type Events interface {
	Uevents() ([]Uevent, error)
}

// inbox keeps what a goroutine receives until somebody asks.
type inbox struct {
	mu  sync.Mutex
	got []Uevent
	err error
}

func (i *inbox) Uevents() ([]Uevent, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	got := i.got
	i.got = nil
	return got, i.err
}

func (i *inbox) put(u Uevent) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.got = append(i.got, u)
}

func (i *inbox) end(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.err = err
}

// KernelEvents listens to the kernel's own uevents. It listens until the process ends.
func KernelEvents() (Events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listening for uevents: %w", err)
	}
	// Room for many at once, while this process does not run.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listening for uevents: %w", err)
	}
	i := &inbox{}
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := unix.Read(fd, buf)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				i.end(fmt.Errorf("listening for uevents: %w", err))
				return
			}
			// "ACTION@DEVPATH", then the variables, each with a zero byte after it.
			fields := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
			i.put(Uevent{time.Now(), fields[1:]})
		}
	}()
	return i, nil
}

// CommandEvents listens to what a command prints that goes on: variables, one a line, with an empty line after each uevent, as udevadm monitor
// --property prints them. Lines without "=" are skipped. stop ends the command.
func CommandEvents(argv ...string) (e Events, stop func(), err error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	i := &inbox{}
	cmd.Stdout = &blocks{to: i}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		i.end(fmt.Errorf("%s ended: %w", strings.Join(argv, " "), errors.Join(errors.New("no more uevents"), cmd.Wait())))
	}()
	return i, func() { _ = cmd.Process.Kill(); <-done }, nil
}

// blocks makes uevents of lines.
type blocks struct {
	to   *inbox
	line []byte
	env  []string
}

func (b *blocks) Write(p []byte) (int, error) {
	b.line = append(b.line, p...)
	for {
		line, rest, ok := bytes.Cut(b.line, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		s := string(line)
		b.line = append([]byte(nil), rest...)
		key, _, isEnv := strings.Cut(s, "=")
		switch {
		case s == "" && len(b.env) > 0:
			b.to.put(Uevent{time.Now(), b.env})
			b.env = nil
		case isEnv && key == strings.ToUpper(key) && !strings.Contains(key, " "):
			b.env = append(b.env, s)
		}
	}
}

// errno is the name of what went wrong, or all that was said.
func errno(err error) string {
	var e unix.Errno
	if errors.As(err, &e) {
		return unix.ErrnoName(e)
	}
	return err.Error()
}

// isErrno tells whether the kernel, or who stands for it, refused something.
func isErrno(err error) bool {
	var e unix.Errno
	return errors.As(err, &e) && !os.IsTimeout(err)
}
