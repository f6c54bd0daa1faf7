package bench

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

const (
	rioBurst   = 32
	rioEntries = 1024 // of a mailbox: the most
	ringSize   = 256  // messages of a bare ring, as of a direct link
)

// rioWay is how messages go to the other process and come from it.
type rioWay interface {
	// send sends a message n times.
	send(p []byte, n int) error
	// finish waits until all that was sent is with the other; p is sent again where it was refused.
	finish(p []byte) error
	// receive takes n messages into memory of its own.
	receive(n int) error
}

// giveWay offers the processor to the other process.
func giveWay() { _, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// mailWay is a mailbox in each direction.
type mailWay struct {
	ctx   context.Context
	to    rapidio.DestID
	in    rapidio.Inbox
	out   rapidio.Outbox
	tx    [rioBurst]rapidio.Message
	rx    [rioBurst]rapidio.Message
	room  [rioBurst][]byte
	st    [rioBurst]rapidio.Status
	again int // were refused, for want of room
}

func openMail(ctx context.Context, m *rapidio.Mport) (*mailWay, error) {
	w := &mailWay{ctx: ctx}
	for i := range w.room {
		w.room[i] = make([]byte, rapidio.MaxMessage)
	}
	var err error
	if w.in, err = m.RequestInbMbox("bench", 0, rioEntries); err != nil {
		return nil, err
	}
	w.out, err = m.RequestOutbMbox("bench", 0, rioEntries)
	return w, err
}

func (w *mailWay) send(p []byte, n int) error {
	for n > 0 || w.again > 0 {
		n, w.again = n+w.again, 0
		k := min(n, rioBurst)
		for i := range k {
			w.tx[i] = rapidio.Message{Peer: w.to, Data: p}
		}
		taken := w.out.Add(w.tx[:k])
		n -= taken
		refused, err := w.results()
		switch {
		case err != nil:
			return err
		case taken < k:
			err = w.out.Wait(w.ctx)
		case refused:
			giveWay()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// results takes those that there are.
func (w *mailWay) results() (refused bool, err error) {
	for {
		n := w.out.Results(w.st[:])
		for _, st := range w.st[:n] {
			switch st {
			case rapidio.Done:
			case rapidio.Retry:
				w.again++
				refused = true
			default:
				return false, fmt.Errorf("a message to %d: %w", w.to, st.Err())
			}
		}
		if n < len(w.st) {
			return refused, nil
		}
	}
}

func (w *mailWay) finish(p []byte) error {
	for w.out.InFlight() > 0 || w.again > 0 {
		if _, err := w.results(); err != nil {
			return err
		}
		if err := w.send(p, 0); err != nil {
			return err
		}
		if w.out.InFlight() == 0 {
			continue
		}
		if err := w.out.Wait(w.ctx); err != nil {
			return err
		}
	}
	return nil
}

func (w *mailWay) receive(n int) error {
	for n > 0 {
		k := min(n, rioBurst)
		for i := range k {
			w.rx[i].Data = w.room[i]
		}
		got := w.in.Get(w.rx[:k])
		if n -= got; got > 0 {
			continue
		}
		if err := w.in.Wait(w.ctx); err != nil {
			return err
		}
	}
	return nil
}

// socketWay is an end of a pair of sockets that keep messages apart: a write and a read each.
type socketWay int

func (w socketWay) send(p []byte, n int) error {
	for range n {
		if _, err := unix.Write(int(w), p); err != nil {
			return err
		}
	}
	return nil
}

func (w socketWay) finish([]byte) error { return nil }

func (w socketWay) receive(n int) error {
	var buf [rapidio.MaxMessage]byte
	for range n {
		if k, err := unix.Read(int(w), buf[:]); err != nil || k == 0 {
			return fmt.Errorf("%d bytes: %w", k, err)
		}
	}
	return nil
}

// A bare ring has the other process's progress and ours, each in lines of their own, and slots with a length before the data. Nothing that it
// says is checked, and who finds nothing to do offers the processor to the other, again and again.
const (
	ringTail   = 0
	ringHead   = 128
	ringSlots  = 256
	ringData   = 64
	ringStride = ringData + rapidio.MaxMessage
	ringBytes  = ringSlots + ringSize*ringStride
)

// ringsBytes is the memory of two of them, in pages.
const ringsBytes = (2*ringBytes + 4095) &^ 4095

// bareRing is the end of one.
type bareRing struct {
	b     []byte
	mine  uint32 // the next message
	other uint32 // as it was when we last looked
}

type ringWay struct {
	out, in bareRing
	buf     [rioBurst][]byte
}

// openRings maps the memory: the ring with the number here is the one to send by.
func openRings(fd, here, there int) (*ringWay, error) {
	b, err := unix.Mmap(fd, 0, ringsBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("bench: memory for rings: %w", err)
	}
	w := new(ringWay)
	w.out.b, w.in.b = b[here*ringBytes:][:ringBytes], b[there*ringBytes:][:ringBytes]
	for i := range w.buf {
		w.buf[i] = make([]byte, rapidio.MaxMessage)
	}
	return w, nil
}

func (w *ringWay) send(p []byte, n int) error {
	r := &w.out
	for n > 0 {
		k := min(n, rioBurst)
		for ringSize-int(r.mine-r.other) < k {
			if r.other = dma.Load32(r.b, ringHead); ringSize-int(r.mine-r.other) < k {
				giveWay()
			}
		}
		for range k {
			s := r.b[ringSlots+int(r.mine%ringSize)*ringStride:]
			binary.LittleEndian.PutUint32(s, uint32(len(p)))
			copy(s[ringData:], p)
			r.mine++
		}
		dma.Store32(r.b, ringTail, r.mine)
		n -= k
	}
	return nil
}

func (w *ringWay) finish([]byte) error { return nil }

func (w *ringWay) receive(n int) error {
	r := &w.in
	for n > 0 {
		for r.other == r.mine {
			if r.other = dma.Load32(r.b, ringTail); r.other == r.mine {
				giveWay()
			}
		}
		k := min(n, rioBurst, int(r.other-r.mine))
		for i := range k {
			s := r.b[ringSlots+int(r.mine%ringSize)*ringStride:]
			copy(w.buf[i], s[ringData:ringData+binary.LittleEndian.Uint32(s)])
			r.mine++
		}
		dma.Store32(r.b, ringHead, r.mine)
		n -= k
	}
	return nil
}
