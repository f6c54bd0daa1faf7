package mirror

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func inode(t *testing.T, f *os.File) uint64 {
	t.Helper()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Ino
}

// sh runs a script with D as the mount, bounded.
func (m *mounted) sh(script string) string {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.Env = append(os.Environ(), "D="+m.dir, "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		m.t.Fatalf("script hangs: %s\nso far: %s", script, out)
	}
	if err != nil {
		return string(out) + "[" + err.Error() + "]"
	}
	return string(out)
}

// TestOpenFileSurvives kills the worker under a program's open file and working directory.
func TestOpenFileSurvives(t *testing.T) {
	m := mount(t)
	f, err := os.Open(m.dir + "/proc/net/generation")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read := func() string {
		b := make([]byte, 100)
		n, err := f.ReadAt(b, 0)
		if err != nil && err != io.EOF {
			return err.Error()
		}
		return string(b[:n])
	}
	if got := read(); got != "1\n" {
		t.Fatalf("the file says %q, want 1", got)
	}
	ctl, err := os.OpenFile(m.dir+"/proc/net/ctl", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	before := inode(t, f)
	shell := exec.Command("bash", "-c", "cd $D/proc/net; echo there; read x; cat generation")
	shell.Env = append(os.Environ(), "D="+m.dir)
	in, _ := shell.StdinPipe()
	out, _ := shell.StdoutPipe()
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(out, make([]byte, len("there\n")))
	m.ask("kill", "ok")
	got := make(chan string, 1)
	go func() { got <- read() }()
	wrote := make(chan error, 1)
	go func() {
		_, err := ctl.Write([]byte("hello"))
		wrote <- err
	}()
	m.ask("spawn", "<nil>")
	if s := <-got; s != "2\n" {
		t.Errorf("a read that was made without a worker says %q, want 2", s)
	}
	if err := <-wrote; err != nil {
		t.Errorf("a write that was made without a worker: %v", err)
	}
	if s := m.sh("cat $D/proc/net/ctl"); s != "hello" {
		t.Errorf("what was written without a worker is %q, want hello", s)
	}
	_, _ = io.WriteString(in, "x\n")
	text, _ := io.ReadAll(out)
	if _ = shell.Wait(); string(text) != "2\n" {
		t.Errorf("a shell whose directory it is says %q, want 2", text)
	}
	again, err := os.Open(m.dir + "/proc/net/generation")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if a, b := inode(t, f), inode(t, again); a != before || b != before {
		t.Errorf("the inode was %d; it is %d for who has it open, %d for who opens it", before, a, b)
	}
	m.ask("fail", "ok")
	if s := m.sh("cat $D/proc/net/dev; echo x > $D/proc/net/ctl"); strings.Count(s, "Input/output error") != 2 {
		t.Errorf("with the worker given up: %q, want two of EIO", s)
	}
	m.ask("spawn", "<nil>")
	if got := read(); got != "3\n" {
		t.Errorf("after another try the file says %q, want 3", got)
	}
	m.ask("remove", "ok")
	if s := m.sh("ls $D $D/proc"); !strings.HasPrefix(s, "ls: cannot access '"+m.dir+"/proc'") || !strings.Contains(s, "direct") {
		t.Errorf("with the part removed there is %q", s)
	}
}

// TestNamesComeAndGo has entries come, go and be others, as a program sees it.
func TestNamesComeAndGo(t *testing.T) {
	m := mount(t)
	for _, c := range []struct{ script, want string }{
		{"echo a > $D/proc/net/make; cat $D/proc/made/a; ls $D/proc/made", "made\na\n"},
		{"stat -c %h $D/proc", "4\n"},
		{"exec 3< $D/proc/made/a; echo a > $D/proc/net/remove; ls $D/proc/made; cat <&3; cat $D/proc/made/a 2>/dev/null", "made\n[exit status 1]"},
		{"for i in 1 2 3 4 5 6 7 8 9; do echo b > $D/proc/net/make; cat $D/proc/made/b; echo b > $D/proc/net/remove; cat $D/proc/made/b 2>/dev/null; done; ls $D/proc/made",
			strings.Repeat("made\n", 9)},
		{"stat -c '%s %a' $D/proc/net/ctl $D/proc/net/dev $D/dev/echo", "4096 644\n0 444\n0 600\n"},
	} {
		if got := m.sh(c.script); got != c.want {
			t.Errorf("%s: %q, want %q", c.script, got, c.want)
		}
	}
}

// TestStuck has a worker's code that does not return, and a worker that does nothing: a program can be interrupted.
func TestStuck(t *testing.T) {
	m := mount(t)
	for _, script := range []string{"cat $D/proc/net/stuck", "echo x > $D/proc/net/stuck", "echo x > $D/proc/net/start"} {
		if got := m.sh("timeout -s INT 0.3 bash -c '" + script + "'; echo $?"); !strings.HasSuffix(got, "124\n") && !strings.HasSuffix(got, "130\n") {
			t.Errorf("%s, interrupted: %q", script, got)
		}
	}
	m.ask("stop", "<nil>")
	if got := m.sh("timeout -s INT 0.3 cat $D/proc/net/dev; echo $?; cat $D/direct/proc/net/dev"); got != "124\n0123456789\n" {
		t.Errorf("with the worker stopped: %q, want 124 and the other tree's text", got)
	}
	m.ask("kill", "ok")
	m.ask("spawn", "<nil>")
	if got := m.sh("cat $D/proc/net/dev"); got != "0123456789\n" {
		t.Errorf("with the next worker: %q", got)
	}
}

// TestStreamSurvives kills the worker under a program's open device.
func TestStreamSurvives(t *testing.T) {
	m := mount(t)
	open := func() (int, error) {
		return unix.Open(m.dir+"/dev/echo", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	}
	fd, err := open()
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	defer func() {
		if !closed {
			unix.Close(fd)
		}
	}()
	write := func(s string) error {
		for {
			if _, err := unix.Write(fd, []byte(s)); err != unix.EINTR {
				return err
			}
		}
	}
	read := func() (string, error) {
		b := make([]byte, 100)
		for {
			if n, err := unix.Read(fd, b); err != unix.EINTR {
				return string(b[:max(n, 0)]), err
			}
		}
	}
	// poll waits for one of events.
	poll := func(events int16) int16 {
		for end := time.Now().Add(20 * time.Second); ; {
			p := []unix.PollFd{{Fd: int32(fd), Events: events}}
			n, err := unix.Poll(p, int(time.Until(end).Milliseconds()))
			if n > 0 {
				return p[0].Revents
			}
			if err != unix.EINTR {
				t.Fatalf("poll for %#x: %d, %v", events, n, err)
			}
		}
	}
	if _, err := open(); err != unix.EBUSY {
		t.Errorf("a second open: %v, want EBUSY", err)
	}
	if _, err := read(); err != unix.EAGAIN {
		t.Errorf("read with nothing there: %v, want EAGAIN", err)
	}
	ready := make(chan int16, 1)
	go func() { ready <- poll(unix.POLLIN) }()
	if err := write("hello"); err != nil {
		t.Fatal(err)
	}
	if got := <-ready; got&unix.POLLIN == 0 {
		t.Errorf("poll says %#x, want POLLIN", got)
	}
	if s, err := read(); s != "1:hello" || err != nil {
		t.Errorf("read = %q, %v, want 1:hello", s, err)
	}
	go func() { ready <- poll(unix.POLLIN) }()
	m.ask("kill", "ok")
	if got := <-ready; got&unix.POLLERR == 0 {
		t.Errorf("poll, at the worker's death, says %#x, want POLLERR", got)
	}
	if err := write("lost"); err != unix.EIO {
		t.Errorf("write after the worker's death: %v, want EIO", err)
	}
	go func() { ready <- poll(unix.POLLOUT) }() // waits for the next worker
	m.ask("spawn", "<nil>")
	if got := <-ready; got&unix.POLLOUT == 0 || got&unix.POLLERR != 0 {
		t.Errorf("poll, with the next worker, says %#x, want POLLOUT", got)
	}
	if err := write("again"); err != nil {
		t.Errorf("write with the next worker: %v", err)
	}
	if s, err := read(); s != "2:again" || err != nil {
		t.Errorf("read = %q, %v, want 2:again", s, err)
	}
	// For one program at a time: the next open comes after the close.
	for range 20 {
		unix.Close(fd)
		if fd, err = open(); err != nil {
			closed = true
			t.Fatalf("an open after the close: %v", err)
		}
	}
}

// TestStreamBlocked kills the worker under a read that waits, and interrupts one.
func TestStreamBlocked(t *testing.T) {
	m := mount(t)
	if got := m.sh("timeout -s INT 0.3 cat $D/dev/echo; echo $?"); got != "124\n" {
		t.Errorf("a read that is interrupted: %q, want 124", got)
	}
	f, err := os.OpenFile(m.dir+"/dev/echo", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	done := make(chan error, 1)
	go func() {
		_, err := f.Read(make([]byte, 10))
		done <- err
	}()
	// It has begun when its worker has it: no way to see that from here, and none of the two orders is wrong.
	m.ask("kill", "ok")
	if err := <-done; !errors.Is(err, syscall.EIO) {
		t.Errorf("a read under which its worker died: %v, want EIO", err)
	}
}

// TestExchange has the next worker's file look another way, or be something else, under a program that has it open.
func TestExchange(t *testing.T) {
	m := mount(t)
	f, err := os.Open(m.dir + "/proc/net/varies")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, c := range []struct{ look, open string }{
		{"444 0 regular empty file\none\n", "one\n"},
		{"644 4096 regular file\ntwo\n", "two\n"},
		{"777 10 symbolic link\n3\n", "no such device"},
		{"555 0 directory\nfour\n", "no such device"},
		{"700 0 directory\nfive\n", "no such device"},
		{"stat: cannot statx '" + m.dir + "/proc/net/varies': No such file or directory\n", "no such device"},
	} {
		if i > 0 {
			m.ask("kill", "ok")
			m.ask("spawn", "<nil>")
		}
		if got := m.sh("cd $D/proc/net; stat -c '%a %s %F' $PWD/varies && cat varies/in 2>/dev/null || cat varies 2>/dev/null; true"); got != c.look {
			t.Errorf("of worker %d a program sees %q, want %q", i+1, got, c.look)
		}
		b := make([]byte, 10)
		n, err := f.ReadAt(b, 0)
		if got := string(b[:n]); got != c.open && (err == nil || !strings.Contains(err.Error(), c.open)) {
			t.Errorf("of worker %d a file that is open since the first says %q, %v, want %q", i+1, got, err, c.open)
		}
	}
}
