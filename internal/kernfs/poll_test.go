package kernfs

import (
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// poll is poll(2) for all events, within a time.
func (f *file) poll(wait time.Duration) int16 {
	return f.pollFor(unix.POLLIN|unix.POLLOUT|pollRdNorm|pollWrNorm, wait)
}

func (f *file) pollFor(events int16, wait time.Duration) int16 {
	f.t.Helper()
	p := []unix.PollFd{{Fd: int32(f.fd), Events: events}}
	for end := time.Now().Add(wait); ; {
		_, err := unix.Poll(p, int(max(0, time.Until(end).Milliseconds())))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			f.t.Fatal(err)
		}
		return p[0].Revents
	}
}

// wakeTime is far more than a wake-up takes, on a machine that is busy with something else.
const wakeTime = 3 * time.Second

func TestPoll(t *testing.T) {
	served(t, func(t *testing.T, s *server) {
		const in, out = unix.POLLIN | pollRdNorm, unix.POLLOUT | pollWrNorm
		before := s.ask("left")
		f, other := s.open("many", unix.O_RDWR), s.open("many", unix.O_RDWR)
		for range 3 {
			if got := f.poll(0); got != out {
				t.Fatalf("poll of what is empty = %#x, want %#x", got, out)
			}
			if got := f.pollFor(unix.POLLIN, 20*time.Millisecond); got != 0 {
				t.Errorf("poll for input of what is empty = %#x, want none", got)
			}
			// One open that is polled by two threads, and another open.
			woken := make(chan time.Time, 3)
			for _, file := range []*file{f, f, other} {
				go func() {
					if got := file.pollFor(unix.POLLIN, 5*time.Second); got != unix.POLLIN {
						t.Errorf("a blocked poll = %#x, want POLLIN", got)
					}
					woken <- time.Now()
				}()
			}
			time.Sleep(150 * time.Millisecond)
			start := time.Now()
			s.ask("put many x")
			for range 3 {
				if took := (<-woken).Sub(start); took > wakeTime {
					t.Errorf("a blocked poll woke after %v", took)
				}
			}
			if got := f.poll(0); got != in|out {
				t.Errorf("poll of what has input = %#x, want %#x", got, in|out)
			}
			f.want(10, "x", nil)
		}
		f.pollFor(unix.POLLIN, 10*time.Millisecond) // leaves a wait
		f.close()
		other.close()
		s.wantBox("many", "open=0 ")
		if after := s.ask("left"); after != before {
			t.Errorf("after polling and closing: %s, want %s", after, before)
		}
	})
}

// TestPollInTheRuntime is a program in Go, whose runtime waits in epoll for what it opened.
func TestPollInTheRuntime(t *testing.T) {
	served(t, func(t *testing.T, s *server) {
		f := s.open("many", unix.O_RDWR)
		if err := unix.SetNonblock(f.fd, true); err != nil {
			t.Fatal(err)
		}
		ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(ep)
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff, Fd: 1}
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, f.fd, &ev); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			f.want(10, "", unix.EAGAIN)
			s.ask("put many y")
			got := make([]unix.EpollEvent, 1)
			n, err := unix.EpollWait(ep, got, 2000)
			for err == unix.EINTR {
				n, err = unix.EpollWait(ep, got, 2000)
			}
			if n != 1 || got[0].Events&unix.EPOLLIN == 0 {
				t.Fatalf("epoll_wait = %d, %#x, %v, want input", n, got[0].Events, err)
			}
			f.want(10, "y", nil)
		}
	})
}

func TestPollWithoutPoller(t *testing.T) {
	served(t, func(t *testing.T, s *server) {
		s.open("many", unix.O_RDWR).poll(0) // before and after the kernel knows POLL
		fd, err := unix.Open(filepath.Join(s.dir, "proc/cmd"), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		cmd := &file{t, fd}
		defer cmd.close()
		plain := s.open("plain", unix.O_RDWR)
		for _, f := range []*file{cmd, plain} {
			if got := f.poll(time.Second); got != alwaysReady {
				t.Errorf("poll = %#x, want always ready, %#x", got, alwaysReady)
			}
		}
	})
}

// TestPollOfStoppedServer: what is always ready still is; who polls a stream can be interrupted.
func TestPollOfStoppedServer(t *testing.T) {
	s := serve(t, false, true)
	fd, err := unix.Open(filepath.Join(s.dir, "proc/cmd"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd, f := &file{t, fd}, s.open("many", unix.O_RDWR)
	defer cmd.close()
	f.poll(0)
	s.pause()
	if got := cmd.poll(time.Second); got != alwaysReady {
		t.Errorf("poll of a command file = %#x, want always ready", got)
	}
	tid, r := background(func() string {
		p := []unix.PollFd{{Fd: int32(f.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, -1)
		if err != nil {
			return err.Error()
		}
		if n == 1 && p[0].Revents == unix.POLLERR {
			return "POLLERR"
		}
		return "?"
	})
	time.Sleep(200 * time.Millisecond)
	poke(t, tid)
	wantResult(t, r, "POLLERR") // the kernel's word for a POLL that failed
	_ = s.cmd.Process.Signal(unix.SIGCONT)
	time.Sleep(100 * time.Millisecond)
	if got := f.poll(0); got != unix.POLLOUT|pollWrNorm {
		t.Errorf("poll after the server goes on = %#x", got)
	}
	asked := make(chan string)
	go func() { asked <- s.ask("put many x") }()
	if got := f.pollFor(unix.POLLIN, patience); got != unix.POLLIN {
		t.Errorf("poll after the server goes on = %#x, want POLLIN", got)
	}
	<-asked
}
