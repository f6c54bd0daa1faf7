package rionet

import (
	"context"
	"fmt"
	"sync"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// needed are the operations that both ends of a pair must have, as source and as destination.
const needed = rapidio.OpMessage | rapidio.OpDoorbell

// capable tells whether an endpoint with these operations can be a peer.
func capable(srcOps, dstOps uint32) bool { return srcOps&dstOps&needed == needed }

// Driver is the driver of peers: the endpoints that a bus finds, for the Devices on its master ports. One serves a
// whole bus. Devices and endpoints may come in any order: an endpoint that is found before there is a Device on its
// port is kept for it.
type Driver struct {
	mu    sync.Mutex
	ports map[*rapidio.Mport]*portPeers
}

// portPeers are the endpoints that one master port reaches.
type portPeers struct {
	dev   *Device // nil: there is none yet
	found map[*rapidio.Device]struct{}
}

// NewDriver makes the driver of a bus; see Rapidio.
func NewDriver() *Driver { return &Driver{ports: make(map[*rapidio.Mport]*portPeers)} }

// Rapidio is what is to be registered on the bus.
func (v *Driver) Rapidio() *rapidio.Driver {
	return &rapidio.Driver{
		Name:  "rionet",
		IDs:   []rapidio.ID{{VID: rapidio.AnyID, DID: rapidio.AnyID, AsmVID: rapidio.AnyID, AsmDID: rapidio.AnyID}},
		Probe: v.probe,
	}
}

// probe takes an endpoint that can be a peer.
func (v *Driver) probe(_ context.Context, dev *rapidio.Device) (rapidio.Instance, error) {
	if dev.IsSwitch() || !capable(dev.SrcOps, dev.DstOps) {
		return nil, rapidio.ErrNoDevice
	}
	release, err := dev.RequestOutbDoorbell(doorbellJoin, doorbellLast)
	if err != nil {
		return nil, fmt.Errorf("%s rionet: claiming doorbells: %w", dev.Name(), err)
	}
	v.mu.Lock()
	p := v.port(dev.Mport)
	p.found[dev] = struct{}{}
	d := p.dev
	if d != nil {
		d.addPeer(dev)
	}
	v.mu.Unlock()
	return &found{driver: v, dev: dev, release: release}, nil
}

// found is an endpoint in service; rapidio.Instance.
type found struct {
	driver  *Driver
	dev     *rapidio.Device
	release func()
}

// Remove takes it out of service.
func (f *found) Remove() {
	v := f.driver
	v.mu.Lock()
	p := v.port(f.dev.Mport)
	delete(p.found, f.dev)
	if p.dev != nil {
		p.dev.removePeer(f.dev)
	}
	v.forget(f.dev.Mport)
	v.mu.Unlock()
	f.release()
}

// port is the entry of a port. Called with mu held.
func (v *Driver) port(m *rapidio.Mport) *portPeers {
	p := v.ports[m]
	if p == nil {
		p = &portPeers{found: make(map[*rapidio.Device]struct{})}
		v.ports[m] = p
	}
	return p
}

// forget drops the entry of a port that has nothing any more. Called with mu held.
func (v *Driver) forget(m *rapidio.Mport) {
	if p := v.ports[m]; p != nil && p.dev == nil && len(p.found) == 0 {
		delete(v.ports, m)
	}
}

// attach gives the endpoints of d's port to it, those that come later too.
func (v *Driver) attach(d *Device) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.port(d.port)
	if p.dev != nil {
		return fmt.Errorf("%s is on this port: %w", p.dev.name, rapidio.ErrClaimed)
	}
	p.dev = d
	for dev := range p.found {
		d.addPeer(dev)
	}
	return nil
}

// detach takes them away.
func (v *Driver) detach(d *Device) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p := v.ports[d.port]; p != nil && p.dev == d {
		p.dev = nil
	}
	v.forget(d.port)
}
