package vfiouser

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// asks are the server's own commands and their replies. With a twin socket whoever asks reads his
// reply there. Without one, replies come between the client's commands: whoever waits for something
// reads, if nobody does already, and hands over what is somebody else's.
type asks struct {
	mu      sync.Mutex
	changed *sync.Cond
	id      uint16
	reading bool
	broken  error // of the last receive
	waiting map[uint16]*ask
	queue   []*message // commands that were read by somebody who waited for a reply

	twinMu sync.Mutex // one at a time on the twin socket; after mu
	in     message    // of the twin socket
}

// ask is a command whose reply is to come.
type ask struct {
	cmd command
	m   *message // nil: not yet
}

// maxQueued bounds the commands that are kept while the server waits for its client.
const maxQueued = 4096

func (a *asks) init() {
	a.changed = sync.NewCond(&a.mu)
	a.waiting = map[uint16]*ask{}
}

// close forgets messages that nobody will handle.
func (a *asks) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.twinMu.Lock() // a device that is slow to let go of memory may still ask, in vain
	defer a.twinMu.Unlock()
	for _, m := range a.queue {
		m.closeFDs()
	}
	a.in.closeFDs()
}

// next is the client's next command.
func (x *session) next() (*message, error) {
	if x.twin != nil {
		for {
			err := x.s.receive(&x.in, ownTransfer+64)
			if !errors.Is(err, errIdle) {
				return &x.in, err
			}
		}
	}
	a := &x.asks
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		switch {
		case len(a.queue) > 0:
			m := a.queue[0]
			a.queue = a.queue[1:]
			return m, nil
		case a.broken != nil:
			return nil, a.broken
		case a.reading:
			a.changed.Wait()
			continue
		}
		if got := x.read(&x.in); got && !x.in.isReply() {
			return &x.in, nil
		} else if got {
			a.deliver(&x.in)
		}
	}
}

// read reads one message of either kind, with mu released meanwhile. It says false where none came.
func (x *session) read(m *message) bool {
	a := &x.asks
	a.reading = true
	a.mu.Unlock()
	err := x.s.receive(m, ownTransfer+64)
	a.mu.Lock()
	a.reading = false
	a.changed.Broadcast()
	if err != nil && !errors.Is(err, errIdle) {
		a.broken = err
	}
	return err == nil
}

// deliver hands a reply to whoever asked.
func (a *asks) deliver(m *message) {
	q := a.waiting[m.id]
	if q == nil || !m.answers(q.cmd) {
		m.closeFDs()
		a.broken = fmt.Errorf("a reply to message %d, %s, which asked for none: %w", m.id, m.cmd, bus.ErrProtocol)
		return
	}
	delete(a.waiting, m.id)
	q.m = &message{header: m.header, body: append([]byte(nil), m.body...)}
	m.closeFDs()
}

// late sends the client away in time, if it is not stopped before: the device stands still meanwhile, and would
// again at the next access.
func (x *session) late(cmd command) *time.Timer {
	limit := x.srv.patience()
	return time.AfterFunc(limit, func() {
		x.fail(fmt.Errorf("%s: the client did not answer within %v: %w", cmd, limit, bus.ErrTimeout))
	})
}

// ask sends the client a command, and calls done with the reply.
func (x *session) ask(cmd command, body writer, done func(m *message) error) error {
	await := x.await
	if x.twin != nil {
		await = x.awaitTwin
	}
	err := await(cmd, body, done)
	if err == nil {
		return nil
	}
	if e := x.failure(); e != nil {
		return e
	}
	return fmt.Errorf("%s: %w", cmd, err)
}

// await asks on the socket that the client's commands come by.
func (x *session) await(cmd command, body writer, done func(m *message) error) error {
	defer x.late(cmd).Stop()
	a := &x.asks
	a.mu.Lock()
	defer a.mu.Unlock()
	a.id++
	id, q := a.id, &ask{cmd: cmd}
	a.waiting[id] = q
	defer delete(a.waiting, id)
	a.mu.Unlock()
	err := x.s.send(commandOf(id, cmd, body))
	a.mu.Lock()
	if err != nil {
		x.shutdown() // half a message may be on its way
		return err
	}
	for q.m == nil {
		switch {
		case a.broken != nil:
			return a.broken
		case a.reading:
			a.changed.Wait()
			continue
		}
		m := new(message)
		if !x.read(m) {
			continue
		}
		switch {
		case m.isReply():
			a.deliver(m)
		case len(a.queue) >= maxQueued:
			m.closeFDs()
			a.broken = fmt.Errorf("%d commands, and no reply: %w", len(a.queue), bus.ErrProtocol)
		default:
			a.queue = append(a.queue, m)
		}
	}
	return finish(q.m, done)
}

// awaitTwin asks on the twin socket.
func (x *session) awaitTwin(cmd command, body writer, done func(m *message) error) error {
	a := &x.asks
	a.twinMu.Lock()
	defer a.twinMu.Unlock()
	defer x.late(cmd).Stop()
	a.id++
	err := x.twin.send(commandOf(a.id, cmd, body))
	if err == nil {
		err = x.twin.receive(&a.in, ownTransfer+64)
	}
	defer a.in.closeFDs()
	if err == nil && (!a.in.isReply() || a.in.id != a.id || !a.in.answers(cmd)) {
		err = fmt.Errorf("the answer is no reply to it: %w", bus.ErrProtocol)
	}
	switch {
	case ended(err):
		x.shutdown()
		return err
	case err != nil: // what comes later would be taken for the next one's
		x.fail(fmt.Errorf("%s: %w", cmd, err))
		return err
	}
	return finish(&a.in, done)
}

func finish(m *message, done func(m *message) error) error {
	if m.flags&flagError != 0 {
		return fmt.Errorf("the client refuses, with error number %d (%w)", m.errno, unix.Errno(m.errno))
	}
	return done(m)
}

// commandOf is a message that begins with room for its header.
func commandOf(id uint16, cmd command, w writer) []byte {
	h := header{id: id, cmd: cmd, size: uint32(len(w)), flags: typeCommand}
	h.put(w)
	return w
}

// remote is a window that the client reads and writes itself.
type remote struct {
	x          *session
	base, size uint64
}

// each splits a copy into messages.
func (m *remote) each(p []byte, off int64, do func(addr uint64, p []byte) error) (int, error) {
	if err := fits(p, off, int64(m.size)); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		n := min(len(p)-done, m.x.client.transfer())
		if err := do(m.base+uint64(off)+uint64(done), p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// ReadAt is DMA_READ.
func (m *remote) ReadAt(p []byte, off int64) (int, error) {
	return m.each(p, off, func(addr uint64, p []byte) error {
		w := make(writer, headerSize)
		w.dmaAccess(dmaAccess{addr, uint64(len(p))})
		return m.x.ask(cmdDMARead, w, func(m *message) error {
			r := reader{b: m.body}
			if a := r.dmaAccess(); r.short || a.count != uint64(len(p)) || len(r.b) != len(p) {
				return fmt.Errorf("%d bytes, said to be %d, want %d: %w", len(r.b), a.count, len(p), bus.ErrProtocol)
			}
			copy(p, r.b)
			return nil
		})
	})
}

// WriteAt is DMA_WRITE.
func (m *remote) WriteAt(p []byte, off int64) (int, error) {
	return m.each(p, off, func(addr uint64, p []byte) error {
		w := make(writer, headerSize, headerSize+dmaAccessSize+len(p))
		w.dmaAccess(dmaAccess{addr, uint64(len(p))})
		return m.x.ask(cmdDMAWrite, append(w, p...), func(m *message) error {
			r := reader{b: m.body}
			if len(m.body) == 0 {
				return nil // QEMU's
			}
			if a := r.dmaAccess(); r.short || a.count != uint64(len(p)) || len(r.b) != 0 {
				return fmt.Errorf("a reply of %d bytes, %d are said to be written, want %d: %w", len(m.body), a.count, len(p), bus.ErrProtocol)
			}
			return nil
		})
	})
}
