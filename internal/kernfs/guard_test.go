package kernfs

import (
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ends are the far ends of a guard: what the kernel and what the server see.
type ends struct {
	t           *testing.T
	kernel, srv *os.File
	stopped     atomic.Bool
}

// guarded starts a guard between two packet sockets.
func guarded(t *testing.T) *ends {
	t.Helper()
	var f [4]*os.File
	for i := 0; i < 4; i += 2 {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		f[i], f[i+1] = os.NewFile(uintptr(p[0]), "far"), os.NewFile(uintptr(p[1]), "near")
	}
	e := &ends{t: t, kernel: f[0], srv: f[2]}
	g := newGuard(f[1], f[3], 0)
	g.stopped = e.stopped.Load
	done := make(chan struct{})
	go func() {
		g.run()
		close(done)
	}()
	t.Cleanup(func() {
		e.kernel.Close()
		e.srv.Close()
		<-done
		f[1].Close()
		f[3].Close()
	})
	return e
}

// ask sends a request as the kernel would.
func (e *ends) ask(opcode uint32, unique, nodeid uint64, body ...uint64) {
	e.t.Helper()
	m := make([]byte, inHeader+8*len(body))
	wire.PutUint32(m, uint32(len(m)))
	wire.PutUint32(m[4:], opcode)
	wire.PutUint64(m[8:], unique)
	wire.PutUint64(m[16:], nodeid)
	wire.PutUint32(m[32:], 4242)
	for i, v := range body {
		wire.PutUint64(m[inHeader+8*i:], v)
	}
	if _, err := e.kernel.Write(m); err != nil {
		e.t.Fatal(err)
	}
}

// reply answers as the server would, with success.
func (e *ends) reply(unique, first uint64) {
	e.t.Helper()
	m := make([]byte, outHeader+16)
	wire.PutUint32(m, uint32(len(m)))
	wire.PutUint64(m[8:], unique)
	wire.PutUint64(m[outHeader:], first)
	if _, err := e.srv.Write(m); err != nil {
		e.t.Fatal(err)
	}
}

// next is the next message at an end; nil if none comes soon.
func next(f *os.File) []byte {
	_ = f.SetReadDeadline(time.Now().Add(400 * time.Millisecond))
	buf := make([]byte, 4096)
	n, err := f.Read(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// wantErr is an answer with an error at the kernel's end.
func (e *ends) wantErr(unique uint64, want syscall.Errno) {
	e.t.Helper()
	m := next(e.kernel)
	if len(m) != outHeader || wire.Uint64(m[8:]) != unique || int32(wire.Uint32(m[4:])) != -int32(want) {
		e.t.Fatalf("the kernel got %x, want %v for request %d", m, want, unique)
	}
}

// wantOp is a request at the server's end.
func (e *ends) wantOp(opcode uint32, nodeid, first uint64) {
	e.t.Helper()
	m := next(e.srv)
	if len(m) < inHeader || wire.Uint32(m[4:]) != opcode || wire.Uint64(m[16:]) != nodeid || int(wire.Uint32(m)) != len(m) {
		e.t.Fatalf("the server got %x, want opcode %d about node %d", m, opcode, nodeid)
	}
	if len(m) >= inHeader+8 && wire.Uint64(m[inHeader:]) != first {
		e.t.Fatalf("the server got %x, want opcode %d with %d", m, opcode, first)
	}
}

func TestGuardUndoesLateAnswers(t *testing.T) {
	for _, c := range []struct {
		op, undo       uint32
		node, answer   uint64
		undoNode, what uint64
	}{
		{opLookup, opForget, 1, 77, 77, 1},
		{opOpen, opRelease, 5, 9, 5, 9},
		{opOpendir, opReleasedir, 6, 10, 6, 10},
	} {
		e := guarded(t)
		e.ask(c.op, 100, c.node)
		e.wantOp(c.op, c.node, 0)
		e.stopped.Store(true)
		e.ask(opInterrupt, 101, 0, 100)
		e.wantErr(100, syscall.EINTR)
		e.wantOp(opInterrupt, 0, 100)
		// The same client asks on: it fails at once, another's request does not.
		e.ask(opOpen, 102, 3)
		e.wantErr(102, syscall.EINTR)
		e.stopped.Store(false)
		e.reply(100, c.answer)
		e.wantOp(c.undo, c.undoNode, c.what)
		if m := next(e.kernel); m != nil {
			t.Errorf("opcode %d: the kernel got a late answer %x", c.op, m)
		}
	}
}

func TestGuardLeavesARunningServerAlone(t *testing.T) {
	e := guarded(t)
	e.ask(opFlush, 98, 4)
	e.wantErr(98, syscall.ENOSYS)
	e.ask(opLookup, 100, 1)
	e.wantOp(opLookup, 1, 0)
	e.ask(opInterrupt, 101, 0, 100)
	e.wantOp(opInterrupt, 0, 100)
	if m := next(e.kernel); m != nil { // longer than interruptWait
		t.Errorf("an interrupt of a running server's request was answered: %x", m)
	}
	e.reply(100, 50)
	if m := next(e.kernel); len(m) != outHeader+16 || wire.Uint64(m[8:]) != 100 {
		t.Errorf("the kernel got %x, want the answer to 100", m)
	}
	e.ask(opInterrupt, 103, 0, 100) // too late
	e.reply(1<<62|5, 0)             // to an undoing
	if m := next(e.kernel); m != nil {
		t.Errorf("the kernel got %x, want nothing", m)
	}
	if m := next(e.srv); m != nil {
		t.Errorf("the server got %x, want nothing", m)
	}
}

func TestIsStopped(t *testing.T) {
	if isStopped(os.Getpid()) || isStopped(-1) {
		t.Error("isStopped() = true for this process or none")
	}
}
