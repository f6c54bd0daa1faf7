package vfiouser

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/mmio"
)

// bell is a register whose value goes through memory that both sides have, and whose write is told
// by an eventfd: libvfio-user's shadow ioeventfd.
type bell struct {
	off   uint64
	width uint64
	mem   *mmio.Region // a page of it
	at    bus.Off
	kick  *kick
}

func (b *bell) close() {
	_ = b.mem.Close()
	b.kick.close()
}

// ring writes the register. What was written before is done first: the server may look at the bell
// before it reads messages.
func (b *bell) ring(d *Device, v uint64) {
	d.settle()
	switch b.width {
	case 4:
		b.mem.Write32(b.at, uint32(v))
	default:
		b.mem.Write64(b.at, v)
	}
	b.kick.ring(d.l.dead.Load)
}

// bellAt is the bell of exactly this access.
func (g *region) bellAt(off bus.Off, width uint64) *bell {
	for i := range g.bells {
		if b := &g.bells[i]; b.off == uint64(off) && b.width == width {
			return b
		}
	}
	return nil
}

// openBells asks for doorbells, where there is nothing better. Most servers have none.
func (g *region) openBells() error {
	d := g.d
	if d.queue != nil || d.o.Without&Doorbells != 0 {
		return nil
	}
	const room = ioFDsSize + maxDoorbells*shadowFDSize
	err := d.l.ask(request{
		cmd:   cmdRegionFDs,
		body:  func(w *writer) { w.ioFDs(ioFDs{argsz: room, index: uint32(g.info.Index)}) },
		reply: g.takeBells,
	})
	if err != nil && d.l.dead.Load() {
		return err
	}
	return nil // refused: there are none
}

// takeBells takes those that can be used: shadow ioeventfds of one register, in memory that stays.
// The others are written by message.
func (g *region) takeBells(m *message) error {
	r := reader{b: m.body}
	h := r.ioFDs()
	if err := r.err(m); err != nil {
		return err
	}
	if h.count == 0 || int(h.argsz) > len(m.body) {
		return nil
	}
	size := (int(h.argsz) - ioFDsSize) / int(h.count)
	if h.count > maxDoorbells || size < shadowFDSize || len(r.b) < size*int(h.count) {
		return nil // of a kind that has no value in memory
	}
	for i := range int(h.count) {
		e := reader{b: r.b[i*size:]}
		s := e.shadowFD()
		if s.kind != typeShadowFD || s.flags != 0 || s.size != 4 && s.size != 8 || s.off&(s.size-1) != 0 || s.off >= g.info.Size || s.memOff&(s.size-1) != 0 {
			continue
		}
		if s.fd >= uint32(len(m.fds)) || s.mem >= uint32(len(m.fds)) {
			return fmt.Errorf("doorbell %d uses descriptors %d and %d of %d: %w", i, s.fd, s.mem, len(m.fds), bus.ErrProtocol)
		}
		b, err := newBell(s, m.fds[s.fd], m.fds[s.mem])
		if err != nil {
			return err
		}
		if b != nil {
			g.bells = append(g.bells, *b)
			g.d.l.kicks.add(b.kick)
		}
	}
	return nil
}

// newBell maps the page of a bell; nil where it cannot be used. Descriptors may be shared by
// several, so they are duplicated.
func newBell(s shadowFD, event, mem int) (*bell, error) {
	if !isEventfd(event) || s.memOff > 1<<62 {
		return nil, nil
	}
	page := s.memOff &^ (pageSize - 1)
	fd, err := unix.FcntlInt(uintptr(mem), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicating a descriptor: %w", err)
	}
	f := os.NewFile(uintptr(fd), "doorbells")
	defer f.Close()
	b, stays, err := mapFile(f, int64(page), pageSize)
	if err != nil || !stays {
		return nil, err
	}
	r, err := mmio.NewRegion(bus.RegionInfo{Size: pageSize}, b, unix.Munmap)
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(b))
	}
	own, err := unix.FcntlInt(uintptr(event), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("duplicating a descriptor: %w", err), r.Close())
	}
	return &bell{off: s.off, width: s.size, mem: r, at: bus.Off(s.memOff - page), kick: &kick{fd: own}}, nil
}
