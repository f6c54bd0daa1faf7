package userns

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
	"testing"

	"github.com/ring3dev/ring3/internal/node"
)

// echo is a device that gives back what an open of it has written.
type echo struct {
	mu   sync.Mutex
	text []byte
	busy *sync.Mutex // held while it is open
}

func (e *echo) Read(_ context.Context, p []byte, _ int) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := copy(p, e.text)
	e.text = e.text[n:]
	return n, nil
}

func (e *echo) Write(_ context.Context, p []byte, _ int) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.text = append(e.text, p...)
	return len(p), nil
}

func (e *echo) Close() error {
	e.busy.Unlock()
	return nil
}

// putDev makes devices, in dev itself and in directories that machines have too, and a
// link to a socket in the run folder.
func putDev(dev *node.Dir, run string) (*net.UnixListener, error) {
	var busy sync.Mutex
	f := &node.File{Mode: 0o600, Open: func(int) (node.Stream, error) {
		if !busy.TryLock() {
			return nil, syscall.EBUSY
		}
		return &echo{busy: &busy}, nil
	}}
	dev.Put("ring3test", f)
	dev.MkdirAll("net").Put("ring3test", f)
	dev.MkdirAll("pts").Put("ring3test", f) // a file system of its own, which stays whole
	dev.Put("alias", &node.Link{Target: "ring3test"})
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: run + "/old.sock", Net: "unix"})
	if err != nil {
		return nil, err
	}
	dev.Put("ring3test.sock", &node.Link{Target: run + "/old.sock"})
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "connected")
			c.Close()
		}
	}()
	return ln, nil
}

// TestDev is /dev inside: the machine's devices work as they do outside, and ours beside them.
func TestDev(t *testing.T) {
	each(t, func(t *testing.T, in *instance) {
		for _, c := range []struct{ script, want string }{
			{`exec 3<>/dev/ring3test; echo hello >&3; read -r x <&3; echo "$x"; (: < /dev/ring3test) 2>&1 | grep -o busy; exec 3>&-; : < /dev/ring3test && echo free`, "hello\nbusy\nfree\n"},
			{`exec 3<>/dev/alias; echo a >&3; cat <&3; stat -L -c '%s %a' /dev/ring3test /dev/net/ring3test; [ -w /dev/ring3test ] && echo writable`, "a\n0 600\n0 600\nwritable\n"},
			{`echo x > /dev/null; head -c 3 /dev/zero | tr '\0' z; head -c 9 /dev/urandom | wc -c; echo; [ -c /dev/null ] && [ -d /dev/pts ] && echo kept`, "zzz9\n\nkept\n"},
			{`timeout 10 script -qec 'test -t 0 && test -c $(tty) && echo terminal' /dev/null < /dev/null | tr -d '\r'; ls /dev/pts | grep -cx ptmx`, "terminal\n1\n"},
			{`echo shared > /dev/shm/ring3test.$$ && cat /dev/shm/ring3test.$$; rm /dev/shm/ring3test.$$; cat <(echo fd) /dev/stdin <<< in`, "shared\nfd\nin\n"},
			{`ls /dev | grep -cx -e null -e ring3test -e alias -e ring3test.sock; readlink /dev/fd`, "4\n/proc/self/fd\n"},
			{`perl -MIO::Socket::UNIX -e 'print IO::Socket::UNIX->new("/dev/ring3test.sock")->getline'`, "connected\n"},
		} {
			got, status := in.sh(c.script)
			if got != c.want || status != 0 {
				t.Errorf("%s\n got %q, %d\nwant %q", c.script, got, status, c.want)
			}
		}
	})
}
