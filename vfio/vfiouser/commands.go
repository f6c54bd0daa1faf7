package vfiouser

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
)

// command handles what the server asks, and returns the reply; nil: none. One at a time.
func (d *Device) command(m *message) []byte {
	r := reader{b: m.body}
	switch m.cmd {
	case cmdDMARead:
		a := r.dmaAccess()
		if r.short || len(r.b) != 0 || a.count > ownTransfer {
			return reply(m, nil, unix.EINVAL)
		}
		w := make(writer, headerSize, headerSize+dmaAccessSize+a.count)
		w.dmaAccess(a)
		w = w[:cap(w)]
		err := d.dma.reach(a.addr, a.count, false, func(p *piece) error { return p.read(a.addr, w[headerSize+dmaAccessSize:]) })
		if err != nil {
			return reply(m, nil, unix.EFAULT)
		}
		return reply(m, w, 0)
	case cmdDMAWrite:
		a := r.dmaAccess()
		if r.short || uint64(len(r.b)) != a.count {
			return reply(m, nil, unix.EINVAL)
		}
		if err := d.dma.reach(a.addr, a.count, true, func(p *piece) error { return p.write(a.addr, r.b) }); err != nil {
			return reply(m, nil, unix.EFAULT)
		}
		w := make(writer, headerSize)
		w.dmaAccess(a)
		return reply(m, w, 0)
	case cmdLastWords:
		d.l.fail(lastWords(m.body))
		return nil
	}
	return reply(m, nil, unix.ENOSYS)
}

// reply completes a reply, whose header is still to be written; with an errno there is only that.
func reply(m *message, w writer, errno unix.Errno) []byte {
	h := header{id: m.id, cmd: m.cmd, flags: typeReply}
	if errno != 0 || w == nil {
		w = make(writer, headerSize)
	}
	if errno != 0 {
		h.flags, h.errno = h.flags|flagError, uint32(errno)
	}
	h.size = uint32(len(w))
	h.put(w)
	return w
}

// read and write copy from and to a piece. Words are copied at once, as a device writes them.
func (p *piece) read(addr uint64, to []byte) error {
	o := addr - p.base
	if p.b == nil {
		_, err := p.mem.ReadAt(to, int64(o))
		return err
	}
	switch {
	case len(to) == 8 && o&7 == 0:
		binary.LittleEndian.PutUint64(to, dma.Load64(p.b, int(o)))
	case len(to) == 4 && o&3 == 0:
		binary.LittleEndian.PutUint32(to, dma.Load32(p.b, int(o)))
	default:
		quietCopy(to, p.b[o:])
	}
	return nil
}

func (p *piece) write(addr uint64, from []byte) error {
	o := addr - p.base
	if p.b == nil {
		_, err := p.mem.WriteAt(from, int64(o))
		return err
	}
	switch {
	case len(from) == 8 && o&7 == 0:
		dma.Store64(p.b, int(o), binary.LittleEndian.Uint64(from))
	case len(from) == 4 && o&3 == 0:
		dma.Store32(p.b, int(o), binary.LittleEndian.Uint32(from))
	default:
		quietCopy(p.b[o:], from)
	}
	return nil
}

// quietCopy copies as many bytes as the shorter has. The race detector is not told: it is a device that
// reads and writes the memory, and what orders that with the driver's own accesses is the socket, of which
// the detector knows nothing.
//
//go:norace
func quietCopy(to, from []byte) {
	n := min(len(to), len(from))
	to, from = to[:n], from[:n]
	for len(from) >= 8 {
		binary.LittleEndian.PutUint64(to, binary.LittleEndian.Uint64(from))
		to, from = to[8:], from[8:]
	}
	for len(from) > 0 { // of copy the detector hears even here
		to[0] = from[0]
		to, from = to[1:], from[1:]
	}
}

// Reasons of last words.
const (
	wordsGone uint32 = iota
	wordsDMAFault
	wordsTimeout
	wordsClosed
	wordsProtocol
)

var wordErrors = map[uint32]error{wordsGone: bus.ErrGone, wordsDMAFault: bus.ErrDMAFault, wordsTimeout: bus.ErrTimeout, wordsClosed: bus.ErrGone, wordsProtocol: bus.ErrProtocol}

// maxWords is the most that a server may say in the end.
const maxWords = 1024

// wordsOf is the body of the server's last words about why its device died.
func wordsOf(err error) []byte {
	reason := wordsGone
	switch {
	case errors.Is(err, bus.ErrDMAFault):
		reason = wordsDMAFault
	case errors.Is(err, bus.ErrGone):
	case errors.Is(err, bus.ErrTimeout):
		reason = wordsTimeout
	case errors.Is(err, bus.ErrClosed):
		reason = wordsClosed
	case errors.Is(err, bus.ErrProtocol):
		reason = wordsProtocol
	}
	text := err.Error()
	var w writer
	w.u32(reason)
	return append(w, text[:min(len(text), maxWords)]...)
}

// lastWords is the error that they are.
func lastWords(b []byte) error {
	r := reader{b: b}
	reason := wordErrors[r.u32()]
	if reason == nil {
		reason = bus.ErrGone
	}
	return fmt.Errorf("the server says: %q: %w", r.b[:min(len(r.b), maxWords)], reason)
}
