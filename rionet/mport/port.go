package mport

import (
	"context"
	"fmt"

	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// LocalRead reads one of the port's own registers.
func (p *Port) LocalRead(ctx context.Context, off rapidio.Off, w rapidio.Width) (uint32, error) {
	return p.config(ctx, &shm.Header{Kind: shm.KindLocal, Off: uint32(off), Width: w})
}

// LocalWrite writes one.
func (p *Port) LocalWrite(ctx context.Context, off rapidio.Off, w rapidio.Width, v uint32) error {
	_, err := p.config(ctx, &shm.Header{Kind: shm.KindLocal, Off: uint32(off), Width: w, Write: true, Value: v})
	return err
}

// Read reads a register of another device.
func (p *Port) Read(ctx context.Context, dest rapidio.DestID, hop uint8, off rapidio.Off, w rapidio.Width) (uint32, error) {
	return p.config(ctx, &shm.Header{Kind: shm.KindMaint, Peer: dest, Hop: hop, Off: uint32(off), Width: w})
}

// Write writes one.
func (p *Port) Write(ctx context.Context, dest rapidio.DestID, hop uint8, off rapidio.Off, w rapidio.Width, v uint32) error {
	_, err := p.config(ctx, &shm.Header{Kind: shm.KindMaint, Peer: dest, Hop: hop, Off: uint32(off), Width: w, Write: true, Value: v})
	return err
}

func (p *Port) config(ctx context.Context, h *shm.Header) (uint32, error) {
	what := "read"
	if h.Write {
		what = "write"
	}
	w := uint32(h.Width)
	if w != 1 && w != 2 && w != 4 || h.Off%w != 0 || h.Off >= rapidio.ConfigSize {
		return 0, fmt.Errorf("%s: config %s of %d bytes at %#x: %w", p.info.Name, what, w, h.Off, rapidio.ErrRange)
	}
	v, err := p.transact(ctx, h, nil)
	switch {
	case err == nil:
		return v, nil
	case h.Kind == shm.KindLocal:
		return 0, fmt.Errorf("%s: config %s at %#x: %w", p.info.Name, what, h.Off, err)
	}
	return 0, fmt.Errorf("%s: config %s of device %#x, hop %d, at %#x: %w", p.info.Name, what, uint16(h.Peer), h.Hop, h.Off, err)
}

// Doorbell sends one.
func (p *Port) Doorbell(ctx context.Context, dest rapidio.DestID, info uint16) error {
	if _, err := p.transact(ctx, &shm.Header{Kind: shm.KindDoorbell, Peer: dest, Info: info}, nil); err != nil {
		return fmt.Errorf("%s: doorbell %#x to device %#x: %w", p.info.Name, info, uint16(dest), err)
	}
	return nil
}

// PortWrite sends one.
func (p *Port) PortWrite(ctx context.Context, dest rapidio.DestID, b []byte) error {
	if n := len(b); n < 4 || n > rapidio.MaxPortWrite || n%4 != 0 {
		return fmt.Errorf("%s: port-write of %d bytes: %w", p.info.Name, n, rapidio.ErrRange)
	}
	err := ctx.Err()
	if err == nil {
		err = p.Err()
	}
	if err == nil {
		err = p.send(ctx, &shm.Header{Kind: shm.KindPortWrite, Peer: dest}, b)
	}
	if err != nil {
		return fmt.Errorf("%s: port-write to device %#x: %w", p.info.Name, uint16(dest), err)
	}
	return nil
}

// OpenDoorbells lets doorbells in, or not.
func (p *Port) OpenDoorbells(open bool) error {
	h := shm.Header{Kind: shm.KindDoorbells}
	if open {
		h.Value = 1
	}
	if _, err := p.transact(context.Background(), &h, nil); err != nil {
		return fmt.Errorf("%s: opening or closing doorbells: %w", p.info.Name, err)
	}
	return nil
}

// Start begins the calling of e.
func (p *Port) Start(e rapidio.Events) {
	p.boxes.Lock()
	defer p.boxes.Unlock()
	if p.closing || p.started.Swap(true) || !p.enter() {
		return
	}
	up, count := p.node.Link()
	l := listener{p: p, e: e, up: up, link: count, config: p.node.Config()}
	p.leave()
	p.wg.Go(l.run)
}

// listener calls Events.
type listener struct {
	p      *Port
	e      rapidio.Events
	up     bool
	link   uint32 // as it was told last
	config uint32
	pw     [rapidio.MaxPortWrite]byte
}

func (l *listener) run() {
	for {
		more := l.look()
		select {
		case <-l.p.done:
			return
		default:
		}
		if more {
			continue
		}
		select {
		case <-l.p.done:
			return
		case <-l.p.events.C():
		}
	}
}

// look tells what there is to be told, and says whether there may be more.
func (l *listener) look() (more bool) {
	p := l.p
	up, link := l.up, l.link
	config := l.config
	if !p.use(func() { up, link = p.node.Link(); config = p.node.Config() }) {
		return false
	}
	if link != l.link {
		if l.link = link; up == l.up {
			l.e.Link(!up) // it changed twice
		}
		l.up = up
		l.e.Link(up)
	}
	if config != l.config {
		l.config = config
		l.e.ConfigWritten()
	}
	for range maxEvents {
		if !l.one() {
			break
		}
	}
	p.use(func() {
		p.node.Events.Release()
		more = p.node.Events.Arm()
	})
	if err := p.node.Events.Err(); err != nil {
		p.broken("events", err)
	}
	return more
}

// maxEvents is how many are told before the link is looked at again.
const maxEvents = 256

// one tells one event.
func (l *listener) one() bool {
	var h shm.Header
	n, ok := 0, false
	l.p.use(func() {
		var data []byte
		data, ok = l.p.node.Events.Next(&h)
		n = copy(l.pw[:], data)
	})
	switch {
	case !ok:
		return false
	case h.Kind == shm.KindDoorbell:
		l.e.Doorbell(h.Peer, h.Info)
	case h.Kind == shm.KindPortWrite && n >= 4 && n%4 == 0:
		l.e.PortWrite(l.pw[:n])
	}
	return true
}

// use runs f while the memory is there.
func (p *Port) use(f func()) bool {
	if !p.enter() {
		return false
	}
	defer p.leave()
	f()
	return true
}
