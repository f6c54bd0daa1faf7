package fabric

import (
	"sync/atomic"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// device is an endpoint or a switch.
type device struct {
	f     *Fabric
	name  string
	index int // in its list
	ports []*port
	sw    *tables // nil: an endpoint

	mailboxes, serial bool // of an endpoint
	// node is who is attached to an endpoint.
	node atomic.Pointer[Port]
	// baseID is an endpoint's Base Device ID register.
	baseID atomic.Uint32

	regs  registers // guarded by Fabric.mu
	count deviceCounts
}

// registers are what a device keeps besides its ports.
type registers struct {
	lock, tag                      uint32
	pell, lcs0, lcs1               uint32
	linkTimeout, respTimeout, genC uint32

	logDetect, logEnable uint32
	capID, capControl    uint32
	pwTarget, ttl        uint32
	pwTold               bool // pwTarget was written: it means something
}

// deviceCounts are what a switch counts that lost a packet, and an endpoint.
type deviceCounts struct {
	unrouted atomic.Uint64 // no route for it
	looped   atomic.Uint64 // it had passed too many switches
	target   atomic.Uint64 // an endpoint refused it: not its ID
}

// tables are how a switch routes.
type tables struct {
	tsi500   bool
	sel      uint32 // Standard Route Configuration Destination ID Select
	fallback uint32 // Standard Route Default Port
	routes   []uint8
	nibbles  [tsiPorts][tsiSize / 4]uint32
}

func newEndpoint(f *Fabric, i int, e Endpoint) *device {
	d := &device{f: f, name: e.Name, index: i, mailboxes: !e.NoMailboxes, serial: !e.NoSerial}
	d.ports = []*port{{dev: d}}
	d.reset()
	return d
}

func newSwitch(f *Fabric, i int, s Switch) *device {
	d := &device{f: f, name: s.Name, index: i, serial: true, sw: &tables{tsi500: s.Kind == Tsi500}}
	if !d.sw.tsi500 {
		d.sw.routes = make([]uint8, int(f.ids.Any())+1)
	}
	for n := range s.Ports {
		d.ports = append(d.ports, &port{dev: d, n: n})
	}
	d.reset()
	return d
}

// reset gives all registers the values they have after power-up. The caller holds f.mu, or has the device for itself; it looks after
// links that were disabled.
func (d *device) reset() {
	d.regs = registers{lock: rapidio.LockFree, linkTimeout: timeoutReset, respTimeout: timeoutReset, pell: 1, logEnable: logAll}
	if d.sw == nil {
		d.baseID.Store(d.baseIDMask())
	} else {
		d.sw.reset()
	}
	for _, p := range d.ports {
		p.control, p.errs, p.detect, p.rateEn, p.linkReq, p.linkResp, p.resets = ctlReset, 0, 0, detectAll, 0, 0, 0
	}
	d.f.gen.Add(1)
}

func (t *tables) reset() {
	t.sel, t.fallback = 0, rapidio.InvalidRoute
	for i := range t.routes {
		t.routes[i] = rapidio.InvalidRoute
	}
	for i := range t.nibbles {
		for j := range t.nibbles[i] {
			t.nibbles[i][j] = 0xffffffff
		}
	}
}

// route is the port by which a packet leaves that came in through a port; false: it has none.
func (d *device) route(in int, dest rapidio.DestID) (*port, bool) {
	n := uint32(rapidio.InvalidRoute)
	switch t := d.sw; {
	case t.tsi500:
		n = t.nibbles[in][dest>>3&0x1f] >> (4 * (dest & 7)) & 0xf
	default:
		// In range: both have the width of the fabric's IDs.
		if int(dest) < len(t.routes) {
			n = uint32(t.routes[dest])
		}
		if n == rapidio.InvalidRoute {
			n = t.fallback
		}
	}
	if int(n) >= len(d.ports) {
		return nil, false
	}
	return d.ports[n], true
}

func (d *device) baseIDMask() uint32 {
	if d.f.ids == rapidio.Large {
		return 0x00ffffff
	}
	return 0x00ff0000
}

// id is an endpoint's own device ID.
func (d *device) id() rapidio.DestID { return d.f.ids.Of(d.baseID.Load()) }

// features is RegPEF.
func (d *device) features() rapidio.PEF {
	v := rapidio.PEFExtValid | rapidio.PEFAddr34
	if d.f.ids == rapidio.Large {
		v |= rapidio.PEFLargeIDs
	}
	switch {
	case d.sw == nil:
		v |= rapidio.PEFProcessor | rapidio.PEFDoorbell
		if d.mailboxes {
			v |= rapidio.PEFMboxes
		}
	case d.sw.tsi500:
		v |= rapidio.PEFSwitch
	default:
		v |= rapidio.PEFSwitch | rapidio.PEFStdRoute
	}
	return v
}

// sourceOps and destOps are RegSrcOps and RegDstOps.
func (d *device) sourceOps() uint32 {
	if d.sw != nil {
		return rapidio.OpPortWrite
	}
	return d.destOps()
}

func (d *device) destOps() uint32 {
	switch {
	case d.sw != nil:
		return 0
	case d.mailboxes:
		return rapidio.OpMessage | rapidio.OpDoorbell | rapidio.OpPortWrite
	}
	return rapidio.OpDoorbell | rapidio.OpPortWrite
}
