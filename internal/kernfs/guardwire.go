package kernfs

import (
	"encoding/binary"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// The few requests that the guard knows, from linux/fuse.h.
const (
	opLookup      = 1
	opForget      = 2
	opOpen        = 14
	opRelease     = 18
	opFlush       = 25
	opOpendir     = 27
	opReleasedir  = 29
	opInterrupt   = 36
	opIoctl       = 39
	opPoll        = 40
	opBatchForget = 42

	inHeader  = 40      // len, opcode, unique, nodeid, uid, gid, pid, extlen, padding
	outHeader = 16      // len, error, unique
	intrBit   = 1       // set in the unique number of an INTERRUPT about that number
	ownBit    = 1 << 62 // set in the unique number of our own requests, whose answers nobody waits for
)

// interruptWait is how long a running server has for an interrupted request before we look
// whether it is stopped, again and again.
const interruptWait = 100 * time.Millisecond

// quitTime is how long an interrupted client's further requests fail at once: cd and a
// completion ask several times, and one Ctrl-C is meant for all.
const quitTime = 500 * time.Millisecond

var wire = binary.NativeEndian

// request takes a request from the kernel.
func (g *guard) request(m []byte) {
	if len(m) < inHeader {
		return
	}
	opcode, unique := wire.Uint32(m[4:]), wire.Uint64(m[8:])
	g.mu.Lock()
	defer g.mu.Unlock()
	switch opcode {
	case opFlush:
		// The kernel waits for this one even after SIGKILL, and the server's answer would
		// be the same.
		g.fail(unique, syscall.ENOSYS)
		return
	case opInterrupt:
		if len(m) < inHeader+8 || !g.interrupt(wire.Uint64(m[inHeader:])) {
			return
		}
	case opForget, opBatchForget, opReleasedir: // nobody waits for them
	case opRelease:
		if len(m) >= inHeader+8 {
			delete(g.streams, wire.Uint64(m[inHeader:]))
		}
	default:
		// A file with show and store is always ready, also while the server is stopped.
		if opcode == opPoll && len(m) >= pollIn && !g.streams[wire.Uint64(m[pollFh:])] {
			_, _ = g.dev.Write(pollAnswer(m, alwaysReady))
			return
		}
		pid := wire.Uint32(m[32:])
		if pid == g.quitPid && time.Now().Before(g.quitEnd) && g.stopped() {
			g.fail(unique, syscall.EINTR)
			return
		}
		g.waiting[unique] = &waiter{opcode: opcode, node: wire.Uint64(m[16:]), by: cause{tid: pid}}
	}
	g.send(m)
}

// send queues a message for the server. mu is held.
func (g *guard) send(m []byte) {
	g.queue = append(g.queue, m)
	g.more.Signal()
}

// fail answers a request with an error. mu is held: an answer is 16 bytes that the kernel
// takes at once.
func (g *guard) fail(unique uint64, e syscall.Errno) {
	m := make([]byte, outHeader)
	wire.PutUint32(m, outHeader)
	wire.PutUint32(m[4:], uint32(-int32(e)))
	wire.PutUint64(m[8:], unique)
	_, _ = g.dev.Write(m) // ENOENT: nobody waits any more
}

// quit answers an interrupted request. mu is held.
func (g *guard) quit(unique uint64, w *waiter) {
	g.quitPid, g.quitEnd = w.by.tid, time.Now().Add(quitTime)
	g.fail(unique, syscall.EINTR)
}

// interrupt handles the kernel's wish to end a request, and says whether the server is to
// hear of it. mu is held.
func (g *guard) interrupt(unique uint64) bool {
	w := g.waiting[unique]
	if w == nil || w.gone {
		return false
	}
	if g.stopped() && w.by.counts() && g.unqueue(unique) {
		delete(g.waiting, unique)
		g.quit(unique, w)
		return false
	}
	if !w.asked {
		w.asked = true
		w.timer = time.AfterFunc(interruptWait, func() { g.late(unique, w) })
	}
	return true
}

// unqueue takes back a request that the server never saw, if that is so. mu is held.
func (g *guard) unqueue(unique uint64) bool {
	for i, m := range g.queue {
		if wire.Uint64(m[8:]) == unique {
			g.queue = append(g.queue[:i:i], g.queue[i+1:]...)
			return true
		}
	}
	return false
}

// late looks after an interrupted request that the server did not answer so far.
func (g *guard) late(unique uint64, w *waiter) {
	stopped := g.stopped()
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.waiting[unique] != w:
	case stopped && w.by.counts():
		w.gone = true
		if g.unqueue(unique) {
			delete(g.waiting, unique)
		}
		g.quit(unique, w)
	default:
		w.timer.Reset(interruptWait)
	}
}

// answer takes an answer from the server, and says whether it is for the kernel.
func (g *guard) answer(m []byte) bool {
	if len(m) < outHeader {
		return false
	}
	unique := wire.Uint64(m[8:])
	g.mu.Lock()
	defer g.mu.Unlock()
	if unique&ownBit != 0 {
		return false
	}
	if unique == 0 {
		return true // not an answer: a file's readiness changed
	}
	if unique&intrBit != 0 {
		return true // an INTERRUPT is answered only to have it sent again
	}
	w := g.waiting[unique]
	if w == nil {
		return true // of a RELEASE
	}
	delete(g.waiting, unique)
	if w.timer != nil {
		w.timer.Stop()
	}
	if w.gone {
		g.undo(unique, w, m)
		return false
	}
	if w.opcode == opOpen && len(m) >= outHeader+12 && wire.Uint32(m[outHeader+8:])&fuse.FOPEN_STREAM != 0 {
		g.streams[wire.Uint64(m[outHeader:])] = true
	}
	return true
}

// undo gives back to the server what it handed out with an answer that the kernel never
// got. mu is held.
func (g *guard) undo(unique uint64, w *waiter, m []byte) {
	if wire.Uint32(m[4:]) != 0 || len(m) < outHeader+8 {
		return
	}
	var opcode uint32
	var body int
	nodeid, value := w.node, wire.Uint64(m[outHeader:]) // the first field: node id or file handle
	out := make([]byte, inHeader+24)
	switch w.opcode {
	case opLookup:
		opcode, body, nodeid = opForget, 8, value
		wire.PutUint64(out[inHeader:], 1)
	case opOpen:
		opcode, body = opRelease, 24
		wire.PutUint64(out[inHeader:], value)
	case opOpendir:
		opcode, body = opReleasedir, 24
		wire.PutUint64(out[inHeader:], value)
	default:
		return
	}
	wire.PutUint32(out, uint32(inHeader+body))
	wire.PutUint32(out[4:], opcode)
	wire.PutUint64(out[8:], unique|ownBit)
	wire.PutUint64(out[16:], nodeid)
	g.send(out[:inHeader+body])
}
