package tap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/ioctl"
	"github.com/ring3dev/ring3/netdev"
)

// flows is how many flows are joined at the same time within one poll.
const flows = 8

// receiver carries frames from one queue of the device to one of the interface.
type receiver struct {
	b     *Bridge
	q     *file
	rx    netdev.RxQueue
	join  bool
	open  []*group // the groups that were begun
	spare []*group // the others
	hdr   [headerLen]byte
	tag   [tagLen]byte
	iov   []unix.Iovec
	write func(fd uintptr) bool
	err   error // of the last write

	frames, bytes, writes, joined, dropped, kept atomic.Uint64
}

func newReceiver(b *Bridge, queue int) *receiver {
	r := &receiver{
		b: b, q: b.tap.queues[queue%len(b.tap.queues)], rx: b.dev.Rx(queue),
		join: !b.cfg.NoOffload && !b.cfg.NoGRO,
		open: make([]*group, 0, flows), iov: make([]unix.Iovec, 0, maxGroup+1),
	}
	for range flows {
		r.spare = append(r.spare, &group{})
	}
	r.write = func(fd uintptr) bool {
		for {
			if _, r.err = ioctl.Writev(int(fd), r.iov); r.err != unix.EINTR {
				return true
			}
		}
	}
	return r
}

// run receives until the bridge ends.
func (r *receiver) run() {
	if r.rx == nil {
		return
	}
	poll := netdev.Poll
	if r.b.cfg.RT != nil {
		poll = netdev.PollThread
	}
	if err := poll(r.b.ctx, r.rx, r.take); err != nil {
		r.b.fail(err)
	} else if r.b.ctx.Err() == nil {
		r.b.fail(fmt.Errorf("tap %s: %s was closed: %w", r.b.tap.name, r.b.dev.Info().Name, bus.ErrClosed))
	}
}

// take gives the frames of one poll to the kernel, and frees them.
func (r *receiver) take(frames []*dma.Buf) {
	if watch := r.b.watch.Load(); watch != nil {
		(*watch)(frames)
	}
	var bytes uint64
	for _, b := range frames {
		bytes += uint64(len(b.Data))
		switch {
		case r.b.cfg.Drop != nil && r.b.cfg.Drop(b):
			b.Free()
			r.kept.Add(1)
		case !r.join || !r.gather(b):
			r.single(b)
		}
	}
	for _, g := range r.open {
		r.flush(g)
		r.spare = append(r.spare, g)
	}
	r.open = r.open[:0]
	r.frames.Add(uint64(len(frames)))
	r.bytes.Add(bytes)
}

// gather takes a frame into a group: its flow's, or a new one. It returns false where the
// frame is to go alone; what came before it in its flow has gone then.
func (r *receiver) gather(b *dma.Buf) bool {
	if b.Meta.Flags&dma.VLAN != 0 {
		return false
	}
	s, ok := parse(b.Data)
	if !ok {
		return false
	}
	plain := s.plain() && s.verified(b)
	for i, g := range r.open {
		if g.first.v6 != s.v6 || !sameFlow(b.Data, g.bufs[0].Data, &s) {
			continue
		}
		if plain && g.add(b, s) {
			if g.full() {
				r.finish(i)
			}
			return true
		}
		r.finish(i)
		break
	}
	if !plain || s.flags&flagPSH != 0 {
		return false
	}
	if len(r.open) == flows {
		r.finish(0)
	}
	g := r.spare[len(r.spare)-1]
	r.spare = r.spare[:len(r.spare)-1]
	g.start(b, s)
	r.open = append(r.open, g)
	return true
}

// finish gives an open group to the kernel.
func (r *receiver) finish(i int) {
	g := r.open[i]
	r.flush(g)
	r.open = append(r.open[:i], r.open[i+1:]...)
	r.spare = append(r.spare, g)
}

// flush gives a group to the kernel as one frame.
func (r *receiver) flush(g *group) {
	if g.n == 1 {
		r.single(g.bufs[0])
		return
	}
	g.seal(r.hdr[:])
	r.iov = r.iov[:0]
	r.piece(r.hdr[:])
	r.piece(g.bufs[0].Data[:g.first.end])
	for i, b := range g.bufs[1:g.n] {
		// The headers are as long as the first's; padding comes after the IP packet's end.
		r.piece(b.Data[g.first.payload:g.ends[1+i]])
	}
	r.joined.Add(uint64(g.n))
	r.put(g.n)
	for _, b := range g.bufs[:g.n] {
		b.Free()
	}
}

// single gives one frame to the kernel.
func (r *receiver) single(b *dma.Buf) {
	clear(r.hdr[:])
	if b.Meta.Flags&dma.CsumGood != 0 && !r.b.cfg.NoOffload {
		r.hdr[hdrFlags] = flagDataValid
	}
	r.iov = r.iov[:0]
	r.piece(r.hdr[:])
	if b.Meta.Flags&dma.VLAN != 0 && len(b.Data) > macsLen {
		binary.BigEndian.PutUint16(r.tag[0:], unix.ETH_P_8021Q)
		binary.BigEndian.PutUint16(r.tag[2:], b.Meta.VLAN)
		r.piece(b.Data[:macsLen])
		r.piece(r.tag[:])
		r.piece(b.Data[macsLen:])
	} else {
		r.piece(b.Data)
	}
	r.put(1)
	b.Free()
}

// piece adds a piece to what is written.
func (r *receiver) piece(p []byte) {
	if len(p) == 0 {
		return
	}
	v := unix.Iovec{Base: &p[0]}
	v.SetLen(len(p))
	r.iov = append(r.iov, v)
}

// put writes what the pieces make, which stands for n received frames. The kernel refuses
// it while the interface is down (EIO), has no memory, or does not like the frame: that is
// a drop. An interface that is no more ends the bridge.
func (r *receiver) put(n int) {
	r.err = nil
	if err := r.q.raw.Write(r.write); err != nil {
		r.err = err
	}
	if r.err == nil {
		r.writes.Add(1)
		return
	}
	r.dropped.Add(uint64(n))
	if errors.Is(r.err, unix.EBADFD) && r.b.ctx.Err() == nil {
		r.b.fail(fmt.Errorf("tap %s: writing: %w", r.b.tap.name, r.err))
	}
}
