package kernfs

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/internal/osthread"
)

// served runs f on a tree that is served by another process, with and without a guard. This process
// is the client.
func served(t *testing.T, f func(t *testing.T, s *server)) {
	for _, guard := range []bool{false, true} {
		t.Run(fmt.Sprintf("guard=%v", guard), func(t *testing.T) { f(t, serve(t, false, guard)) })
	}
}

// file is an open stream, by number, so that the runtime leaves its flags and waits alone.
type file struct {
	t  *testing.T
	fd int
}

func (s *server) open(name string, flags int) *file {
	s.t.Helper()
	fd, err := unix.Open(filepath.Join(s.dir, "dev", name), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		s.t.Fatalf("open(%s) = %v", name, err)
	}
	f := &file{s.t, fd}
	s.t.Cleanup(f.close)
	return f
}

func (f *file) close() {
	if f.fd >= 0 {
		unix.Close(f.fd)
	}
	f.fd = -1
}

// want is one read.
func (f *file) want(n int, want string, wantErr error) {
	f.t.Helper()
	p := make([]byte, n)
	got, err := unix.Read(f.fd, p)
	if err != wantErr || string(p[:max(got, 0)]) != want {
		f.t.Errorf("read(%d) = %q, %v, want %q, %v", n, p[:max(got, 0)], err, want, wantErr)
	}
}

func (f *file) write(s string) {
	f.t.Helper()
	if n, err := unix.Write(f.fd, []byte(s)); n != len(s) || err != nil {
		f.t.Errorf("write of %d bytes = %d, %v", len(s), n, err)
	}
}

// patience is how long to wait for what is certain to come.
const patience = 20 * time.Second

// wantBox is what the device has seen.
func (s *server) wantBox(name, want string) {
	s.t.Helper()
	var got string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if got = s.ask("box " + name); strings.Contains(got, want) {
			return
		}
	}
	s.t.Errorf("the device %s has seen %q, want %q", name, got, want)
}

// poking is the signal that ends a call in the background. Go's runtime sends none of this kind, and does nothing about it.
const poking = unix.SIGUSR1

// background runs f, which no other signal disturbs, and gives what it returns and the thread that runs it.
func background(f func() string) (tid int, result <-chan string) {
	id, r := make(chan int), make(chan string, 1)
	go func() {
		runtime.LockOSThread() // and the thread ends
		err := osthread.Undisturbed(func() error {
			id <- unix.Gettid()
			r <- f()
			return nil
		}, poking)
		if err != nil {
			panic(err)
		}
	}()
	return <-id, r
}

// reading is a read in the background.
func (f *file) reading() (tid int, result <-chan string) {
	return background(func() string {
		p := make([]byte, 100)
		n, err := unix.Read(f.fd, p)
		return fmt.Sprintf("%q %v", p[:max(n, 0)], err)
	})
}

func wantResult(t *testing.T, result <-chan string, want string) {
	t.Helper()
	select {
	case got := <-result:
		if got != want {
			t.Errorf("a blocked call gave %s, want %s", got, want)
		}
	case <-time.After(patience):
		t.Fatalf("a call is blocked, want %s", want)
	}
}

// inCall waits until a thread is in the same system call twice, and not in the one by which Go's runtime parks it. A kernel that
// does not tell has it wait for a time in which most are.
func inCall(t *testing.T, tid int) {
	t.Helper()
	before := -1
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) { // in which the server has it
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", tid))
		if err != nil {
			time.Sleep(100 * time.Millisecond)
			return
		}
		call, _, _ := strings.Cut(string(b), " ")
		n, err := strconv.Atoi(call) // else it is running
		if err != nil || n == unix.SYS_FUTEX {
			n = -1
		}
		if n >= 0 && n == before {
			return
		}
		before = n
		if time.Now().After(end) {
			t.Fatalf("the thread does %q, want a call that is blocked", b)
		}
	}
}

// poke sends a thread, once it is in a call, a signal that the runtime handles and nobody minds.
func poke(t *testing.T, tid int) {
	t.Helper()
	inCall(t, tid)
	if err := unix.Tgkill(os.Getpid(), tid, poking); err != nil {
		t.Fatal(err)
	}
}

func TestStreamOpens(t *testing.T) {
	served(t, func(t *testing.T, s *server) {
		path := filepath.Join(s.dir, "dev")
		for _, c := range []struct {
			name  string
			flags int
			want  error
		}{{"refused", unix.O_RDWR, unix.EPERM}, {"panic", unix.O_RDWR, unix.EIO}, {"ro", unix.O_RDWR, unix.EACCES}, {"none", unix.O_RDWR, unix.ENOENT}, {"one", unix.O_RDWR | unix.O_DIRECT, unix.EINVAL}} {
			if fd, err := unix.Open(path+"/"+c.name, c.flags, 0); err != c.want {
				t.Errorf("open(%s) = %d, %v, want %v", c.name, fd, err, c.want)
			}
		}
		f := s.open("one", unix.O_RDWR)
		if fd, err := unix.Open(path+"/one", unix.O_RDWR, 0); err != unix.EBUSY {
			t.Errorf("a second open of a file for one = %d, %v, want EBUSY", fd, err)
		}
		if got := s.sh(`: < $D/dev/one`); !strings.Contains(got, "Device or resource busy") {
			t.Errorf("another program's open = %q, want busy", got)
		}
		d, _ := unix.Dup(f.fd)
		f.close()
		s.wantBox("one", "open=1 ")
		unix.Close(d)
		s.wantBox("one", "open=0 opens=1 ")
		// The close is over before the next open, though it takes long and close(2) does not wait.
		for range 2 {
			f = s.open("slow", unix.O_RDWR)
			f.close()
		}
		for range 200 {
			f = s.open("one", unix.O_RDWR)
			f.close()
		}
		if got := s.sh(`stat -c '%s %a' $D/dev/one; echo x > $D/dev/many; head -c 1 $D/dev/many`); got != "0 600\nx" {
			t.Errorf("a shell: %q, want size 0, mode 600 and x", got)
		}
	})
}

// TestStreamCloseHangs: a close that takes long is in the way of the next open only where one open at a time is the rule.
func TestStreamCloseHangs(t *testing.T) {
	served(t, func(t *testing.T, s *server) {
		opening := func(name string, again bool) (int, <-chan string) { // again: after a signal, which the runtime sends on a busy machine, too
			return background(func() string {
				fd, err := unix.Open(filepath.Join(s.dir, "dev", name), unix.O_RDWR|unix.O_CLOEXEC, 0)
				for again && err == unix.EINTR {
					fd, err = unix.Open(filepath.Join(s.dir, "dev", name), unix.O_RDWR|unix.O_CLOEXEC, 0)
				}
				if err == nil {
					unix.Close(fd)
				}
				return fmt.Sprint(err)
			})
		}
		for _, name := range []string{"held-many", "held"} {
			s.open(name, unix.O_RDWR).close()
			defer s.ask("put " + name + " x") // or the close that hangs is in the way of the end
		}
		_, r := opening("held-many", true)
		wantResult(t, r, "<nil>")
		tid, r := opening("held", false)
		select {
		case got := <-r:
			t.Fatalf("an open during the close of a file for one = %s, want that it waits", got)
		case <-time.After(200 * time.Millisecond):
		}
		poke(t, tid)
		wantResult(t, r, "interrupted system call")
		_, r = opening("held", true)
		time.Sleep(50 * time.Millisecond)
		s.ask("put held x")
		wantResult(t, r, "<nil>")
	})
}

// TestStreamOpenInterrupted: a signal does not end an open that waits for a close which is under way.
func TestStreamOpenInterrupted(t *testing.T) {
	hold := make(chan struct{})
	f := &node.File{Mode: 0o600, OneOpen: true, Open: func(int) (node.Stream, error) { return &lent{close: func() { <-hold }}, nil }}
	tr := newTree(t.Context(), &node.Dir{}, slog.New(slog.DiscardHandler), time.Minute)
	var out fuse.OpenOut
	if st := tr.openStream(interrupt{}, "f", f, &fuse.OpenIn{Flags: unix.O_RDWR}, &out); st != fuse.OK {
		t.Fatal(st)
	}
	tr.leaving(out.Fh)
	go tr.finish(out.Fh)
	signal, status := make(chan struct{}), make(chan fuse.Status)
	close(signal)
	go func() {
		var out fuse.OpenOut
		status <- tr.openStream(interrupt{cancel: signal}, "f", f, &fuse.OpenIn{Flags: unix.O_RDWR}, &out)
	}()
	select {
	case st := <-status:
		t.Fatalf("an open during a close, with a signal: %v, want that it waits", st)
	case <-time.After(50 * time.Millisecond):
	}
	close(hold)
	if st := <-status; st != fuse.OK {
		t.Errorf("an open after a close, with a signal meanwhile: %v", st)
	}
}

// TestStreamForgets: what passed through a stream is in no buffer afterwards.
func TestStreamForgets(t *testing.T) {
	zero := func(what string, p []byte) {
		t.Helper()
		if strings.Trim(string(p), "\x00") != "" {
			t.Errorf("%s: %q is left", what, p)
		}
	}
	var read, written []byte // the buffers that the stream was given
	dev := &lent{read: func(p []byte) (int, error) { read = p; return copy(p, "secret"), nil },
		write: func(p []byte) (int, error) { written = p; return len(p), nil }}
	f := &node.File{Mode: 0o600, Open: func(int) (node.Stream, error) { return dev, nil }}
	tr := newTree(t.Context(), &node.Dir{}, slog.New(slog.DiscardHandler), time.Second)
	var out fuse.OpenOut
	if st := tr.openStream(interrupt{}, "f", f, &fuse.OpenIn{Flags: unix.O_RDWR}, &out); st != fuse.OK {
		t.Fatal(st)
	}
	h, _ := tr.handleOf(out.Fh)
	for range 2 {
		r, st := tr.readStream(interrupt{}, h, 0, 100)
		p, _ := r.Bytes(make([]byte, 100))
		if r.Done(); st != fuse.OK || string(p) != "secret" {
			t.Fatalf("a read = %q, %v", p, st)
		}
		zero("after a read", r.(secret))
		zero("after a read", read)
		late := []byte("secr")
		h.stream.keep(late)
		zero("what a late read gave", late)
		h.stream.keep([]byte("et"))
	}
	kept := h.stream.kept
	for range 2 { // both, whole or in parts
		r, _ := tr.readStream(interrupt{}, h, 0, 4)
		r.Done()
	}
	zero("what was kept and read", kept)
	h.stream.keep([]byte("secret"))
	kept = h.stream.kept
	w := []byte("secret")
	if _, st := tr.writeStream(interrupt{}, h, 0, w); st != fuse.OK {
		t.Fatal(st)
	}
	zero("after a write", written)
	tr.leaving(out.Fh)
	tr.finish(out.Fh)
	zero("what was kept at the end", kept)
	late := []byte("secret")
	h.stream.keep(late)
	if zero("what came after the end", late); h.stream.hasKept() {
		t.Error("a closed stream keeps what comes")
	}
}

// TestStreamNoFile: calls that are for files of bytes on a disk, which a character device is not.
func TestStreamNoFile(t *testing.T) {
	served(t, func(t *testing.T, s *server) {
		f := s.open("one", unix.O_RDWR)
		for _, c := range []struct {
			name      string
			err, want error
		}{
			{"fsync", unix.Fsync(f.fd), unix.EINVAL}, {"fdatasync", unix.Fdatasync(f.fd), unix.EINVAL},
			{"ftruncate", unix.Ftruncate(f.fd, 0), unix.EINVAL}, {"truncate", unix.Truncate(filepath.Join(s.dir, "dev", "one"), 0), unix.EINVAL},
			{"fchmod to what it is", unix.Fchmod(f.fd, 0o600), nil}, {"fchmod", unix.Fchmod(f.fd, 0o644), unix.EPERM},
			{"fchown to whose it is", unix.Fchown(f.fd, os.Geteuid(), os.Getegid()), nil},
		} {
			if c.err != c.want {
				t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
			}
		}
	})
}

func TestStreamReadsAndWrites(t *testing.T) {
	served(t, func(t *testing.T, s *server) {
		f := s.open("one", unix.O_RDWR)
		f.write(strings.Repeat("a", 10) + strings.Repeat("b", 10) + strings.Repeat("c", 4980))
		s.wantBox("one", "writes=1 last=5000 ")
		f.want(10, "aaaaaaaaaa", nil)
		f.want(10, "bbbbbbbbbb", nil)
		f.want(8192, strings.Repeat("c", 4980), nil)
		if n, err := unix.Write(f.fd, nil); n != 0 || err != nil {
			t.Errorf("write of nothing = %d, %v, want 0", n, err)
		}
		f.write(strings.Repeat("d", 124<<10))
		s.wantBox("one", "writes=2 last=126976 ") // the empty one did not arrive
		f.want(124<<10, strings.Repeat("d", 124<<10), nil)

		for _, nonblock := range []bool{true, false, true} {
			if err := unix.SetNonblock(f.fd, nonblock); err != nil {
				t.Fatal(err)
			}
			f.write("x")
			s.wantBox("one", fmt.Sprintf("nonblock=%v ", nonblock))
			f.want(100, "x", nil)
		}
		f.want(100, "", unix.EAGAIN)

		if _, err := unix.Pread(f.fd, make([]byte, 1), 0); err != unix.ESPIPE {
			t.Errorf("pread = %v, want ESPIPE", err)
		}
		if _, err := unix.Seek(f.fd, 0, 0); err != unix.ESPIPE {
			t.Errorf("lseek = %v, want ESPIPE", err)
		}
		// One of a terminal, TPMIOC_TRANSMIT as trousers tries it, and one with a long answer.
		for _, req := range []uint{unix.TCGETS, 0xa100, 2<<30 | 8000<<16 | 0xa101} {
			if _, err := unix.IoctlGetTermios(f.fd, req); err != unix.ENOTTY {
				t.Errorf("ioctl %#x = %v, want ENOTTY", req, err)
			}
		}
	})
}

func TestStreamsDoNotWaitForEachOther(t *testing.T) {
	served(t, func(t *testing.T, s *server) {
		reader, other := s.open("many", unix.O_RDWR), s.open("many", unix.O_WRONLY)
		for _, w := range []*file{reader, other} { // by one descriptor, by two opens
			_, r := reader.reading()
			time.Sleep(100 * time.Millisecond)
			start := time.Now()
			w.write("hello")
			wantResult(t, r, `"hello" <nil>`)
			if took := time.Since(start); took > wakeTime {
				t.Errorf("a write beside a blocked read took %v", took)
			}
		}
		_, r := reader.reading()
		time.Sleep(100 * time.Millisecond)
		if got := s.sh(`timeout 5 bash -c 'echo -n other > $D/dev/many'`); got != "" {
			t.Errorf("another program's write: %s", got)
		}
		wantResult(t, r, `"other" <nil>`)
	})
}

func TestStreamInterrupts(t *testing.T) {
	served(t, func(t *testing.T, s *server) {
		f := s.open("many", unix.O_RDWR)
		tid, r := f.reading()
		time.Sleep(100 * time.Millisecond)
		poke(t, tid)
		wantResult(t, r, `"" interrupted system call`)
		_, r = f.reading()
		time.Sleep(50 * time.Millisecond)
		s.ask("put many again")
		wantResult(t, r, `"again" <nil>`)

		// A Read that does not mind: its client goes, and what it reads comes next.
		f = s.open("slow", unix.O_RDWR)
		tid, r = f.reading()
		time.Sleep(100 * time.Millisecond)
		poke(t, tid)
		wantResult(t, r, `"" interrupted system call`)
		time.Sleep(600 * time.Millisecond)
		f.want(2, "la", nil)
		f.want(100, "te", nil)

		// A Write that does not mind, longer than the grace time: it was done, and its client hears so.
		tid, r = background(func() string {
			n, err := unix.Write(f.fd, []byte("command"))
			return fmt.Sprint(n, err)
		})
		time.Sleep(100 * time.Millisecond)
		poke(t, tid)
		wantResult(t, r, "7 <nil>")
		s.wantBox("slow", "writes=1 ")
	})
}

func TestUnmountClosesStreams(t *testing.T) {
	served(t, func(t *testing.T, s *server) {
		f := s.open("one", unix.O_RDWR)
		_, r := s.open("many", unix.O_RDWR).reading()
		time.Sleep(100 * time.Millisecond)
		start := time.Now()
		s.ask("unmount")
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("Unmount() took %v", took)
		}
		if got := <-r; !strings.HasPrefix(got, `"" `) || strings.Contains(got, "nil") {
			t.Errorf("a read during Unmount gave %s, want an error", got)
		}
		for _, name := range []string{"one", "many"} {
			var line string
			for line = s.ask("box " + name); !strings.HasPrefix(line, "open="); line = s.line() {
				if line == "end of output" {
					break
				}
			}
			if !strings.HasPrefix(line, "open=0 opens=1 ") {
				t.Errorf("after Unmount %s has seen %q, want its close", name, line)
			}
		}
		if _, err := unix.Write(f.fd, []byte("x")); err != syscall.ENOTCONN && err != syscall.ECONNABORTED && err != syscall.ENODEV {
			t.Errorf("a write after Unmount = %v, want ENOTCONN", err)
		}
	})
}
