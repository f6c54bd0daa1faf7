package fabricd

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// wait sleeps until a vector of the node's is signalled.
func (p *peer) wait(vec int) {
	fds := []unix.PollFd{{Fd: int32(p.own[vec]), Events: unix.POLLIN}}
	_, _ = unix.Poll(fds, int(patience.Milliseconds()))
	var b [8]byte
	_, _ = unix.Read(p.own[vec], b[:])
}

// takeAll is node 6: it takes every message for mailbox 0, for ever.
func takeAll(p *peer) {
	p.setID(6)
	p.openMailbox(0, 1024)
	fmt.Print("+")
	buf := make([]byte, rapidio.MaxMessage)
	in := p.node.Mbox[0]
	for idle := 0; ; {
		var h shm.Header
		k := 0
		for ; k < 32; k++ {
			data, ok := in.Next(&h)
			if !ok {
				break
			}
			copy(buf, data)
		}
		if k > 0 {
			idle = 0
			if in.Release() {
				p.kick()
			}
			continue
		}
		if idle++; idle < 32 {
			runtime.Gosched()
			continue
		}
		if !in.Arm() {
			p.wait(shm.VecMbox)
		}
		in.Disarm()
	}
}

// flood is node 5: for each line "messages size" on its standard input it sends so many in bursts of 32, and says how long it took.
func flood(p *peer) {
	p.setID(5)
	p.route(5, 0)
	p.route(6, 1)
	fmt.Print("+")
	for {
		var n, size int
		if _, err := fmt.Scanln(&n, &size); err != nil {
			os.Exit(0)
		}
		d, failed := p.floodOnce(n, make([]byte, size))
		fmt.Println(d.Nanoseconds(), failed)
	}
}

func (p *peer) floodOnce(n int, data []byte) (d time.Duration, failed int) {
	begin := time.Now()
	h := shm.Header{Kind: shm.KindMessage, Peer: 6}
	for sent, done, idle := 0, 0, 0; done < n; {
		progress := false
		for k := 0; k < 32 && sent < n && sent-done < 1024 && p.node.Tx.Put(&h, data); k++ {
			h.Tag++
			sent++
			progress = true
		}
		if p.node.Tx.Publish() {
			p.kick()
		}
		var a shm.Header
		for {
			if _, ok := p.node.Answers.Next(&a); !ok {
				break
			}
			if a.Status != rapidio.Done {
				failed += int(a.Len)
			}
			done += int(a.Len)
			progress = true
		}
		if p.node.Answers.Release() {
			p.kick()
		}
		if progress {
			idle = 0
			continue
		}
		if idle++; idle < 32 {
			runtime.Gosched()
			continue
		}
		if !p.node.Answers.Arm() {
			p.wait(shm.VecAnswers)
		}
		p.node.Answers.Disarm()
	}
	return time.Since(begin), failed
}

// drainSocket reads messages from descriptor 3, and writes one byte for each line of its standard input's worth of them: "messages".
func drainSocket() {
	fmt.Print("+")
	buf := make([]byte, rapidio.MaxMessage)
	for {
		var n int
		if _, err := fmt.Scanln(&n); err != nil {
			os.Exit(0)
		}
		for range n {
			if _, err := unix.Read(3, buf); err != nil {
				os.Exit(1)
			}
		}
		_, _ = unix.Write(3, buf[:1])
	}
}

// BenchmarkFabric is messages from one process to another, through the daemon in a third (this one).
func BenchmarkFabric(b *testing.B) {
	s, _ := start(b, starTopology)
	child(b, "take", s.path, "pe1")
	in, out := talk(b, "flood", s.path, "pe0", nil)
	for _, size := range []int{64, 256, 1024, 4096} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(int64(size))
			fmt.Fprintln(in, b.N, size)
			var ns int64
			var failed int
			if _, err := fmt.Fscanln(out, &ns, &failed); err != nil {
				b.Fatal(err)
			}
			if failed > 0 {
				b.Errorf("%d of %d messages failed", failed, b.N)
			}
			b.ReportMetric(float64(b.N)/float64(ns)*1e9, "msg/s")
		})
	}
}

// TestAllocations: messages on their way through the daemon allocate nothing, whatever waits, signals and full mailboxes they meet.
func TestAllocations(t *testing.T) {
	s, _ := start(t, starTopology)
	child(t, "take", s.path, "pe1")
	in, out := talk(t, "flood", s.path, "pe0", nil)
	var before, after runtime.MemStats
	const n = 100000
	for range 2 { // the first finds the way
		runtime.ReadMemStats(&before)
		fmt.Fprintln(in, n, 64)
		var ns int64
		var failed int
		if _, err := fmt.Fscanln(out, &ns, &failed); err != nil || failed > 0 {
			t.Fatalf("%d of %d messages failed, %v", failed, n, err)
		}
		runtime.ReadMemStats(&after)
	}
	if a := after.Mallocs - before.Mallocs; a > n/100 {
		t.Errorf("%d messages allocated %d times", n, a)
	}
}

// BenchmarkSocket is the same over a pair of Unix sockets, without anybody between.
func BenchmarkSocket(b *testing.B) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "socket")
	defer unix.Close(fds[0])
	in, _ := talk(b, "drain", "-", "-", theirs)
	theirs.Close()
	for _, size := range []int{64, 256, 1024, 4096} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(int64(size))
			buf := make([]byte, size)
			fmt.Fprintln(in, b.N)
			for range b.N {
				if _, err := unix.Write(fds[0], buf); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := unix.Read(fds[0], buf[:1]); err != nil { // it has them all
				b.Fatal(err)
			}
		})
	}
}

// talk starts another process in a role, to be talked to.
func talk(t testing.TB, role, path, name string, extra *os.File) (io.Writer, io.Reader) {
	t.Helper()
	cmd := command(t, role, path, name)
	if extra != nil {
		cmd.ExtraFiles = []*os.File{extra}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	return in, launch(t, cmd)
}
