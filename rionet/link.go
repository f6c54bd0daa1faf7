package rionet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// defaultSpeed is what a port that does not tell its speed counts as, in Mb/s: four lanes of 3.125 Gbaud, of which 8 in 10 bits are data.
const defaultSpeed = 10000

// linkState is what is known of the port.
type linkState struct {
	up    atomic.Bool
	mac   atomic.Pointer[net.HardwareAddr]
	speed atomic.Int32 // Mb/s

	// the keeper's
	id    rapidio.DestID // the port's
	known bool           // phy is what the port has
	late  int            // looks in a row that had no answer in time
	phy   rapidio.Off    // its LP-serial block; 0: none
}

// setID is the port's device ID, which makes the address.
func (l *linkState) setID(id rapidio.DestID) {
	l.id = id
	mac := net.HardwareAddr{0x00, 0x01, 0x00, 0x01, byte(id >> 8), byte(id)}
	l.mac.Store(&mac)
}

// Fields of the LP-serial block's registers of a port (part 6, 6.6).
const (
	ctl2Baud = 28 // PHYPortControl2, 31:28: selected baud rate
	ctlWidth = 27 // PHYPortControl, 29:27: initialized port width
	width3   = 0b111
)

// bauds are the rates of a lane in Mb/s of data, by the field's value: 1.25, 2.5, 3.125, 5, 6.25 Gbaud with 8 in 10 bits, 10.3125
// and 12.5 with 64 in 67.
var bauds = [...]int{1: 1000, 2: 2000, 3: 2500, 4: 4000, 5: 5000, 6: 9850, 7: 11940}

// lanes are the widths by the field's value.
var lanes = [8]int{1, 1, 4, 2, 8, 16, 1, 1}

// speed is what two registers say of a link, in Mb/s.
func speed(ctl, ctl2 uint32) int {
	baud := int(ctl2 >> ctl2Baud)
	if baud >= len(bauds) || bauds[baud] == 0 {
		return defaultSpeed
	}
	return bauds[baud] * lanes[ctl>>ctlWidth&width3]
}

// linkUp tells whether frames can go anywhere.
func (d *Device) linkUp() bool { return d.link.up.Load() }

// Link is up when the port's link is and it has a device ID; netdev.Device. It is as the keeper saw it last.
func (d *Device) Link() netdev.Link {
	return netdev.Link{Up: d.linkUp(), Speed: int(d.link.speed.Load()), FullDuplex: true}
}

// lateLooks is how many looks in a row may have no answer before the link counts as down.
const lateLooks = 2

// lookAtPort reads the port's state. It runs in New and then in the keeper alone.
func (d *Device) lookAtPort() {
	ctx, cancel := context.WithTimeout(d.life, ringTime)
	defer cancel()
	id, up, err := d.readPort(ctx)
	switch {
	case err == nil:
		d.link.late = 0
	case d.link.up.Load() && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, rapidio.ErrNoReply)):
		if d.link.late++; d.link.late <= lateLooks { // a busy machine, rather than a fabric that is stuck
			return
		}
		fallthrough
	default:
		up = false
		d.link.known = false // whoever comes back may be another port
	}
	was := d.link.up.Load()
	moved := up && id != d.link.id
	if moved {
		d.link.setID(id)
	}
	if up == was && !moved {
		return
	}
	if was { // who knew us under the old ID, or before, is to know us anew
		d.dropAll()
	}
	d.link.up.Store(up)
	if !up {
		if d.life.Err() == nil {
			d.log.Info("link down")
		}
		return
	}
	d.mu.Lock()
	for _, p := range d.all {
		p.nextJoin, p.wait = time.Time{}, joinFirst
	}
	d.mu.Unlock()
	d.log.Info(fmt.Sprintf("link up, %d Mb/s", d.link.speed.Load()), "mac", d.MAC().String())
}

// readPort reads the port's device ID and whether its link is up.
func (d *Device) readPort(ctx context.Context) (id rapidio.DestID, up bool, err error) {
	if id, err = d.port.DestID(ctx); err != nil {
		return 0, false, err
	}
	l := &d.link
	if !l.known {
		f, err := rapidio.FindFeatures(ctx, rapidio.Local{Mport: d.port})
		if err != nil {
			return 0, false, err
		}
		l.phy, l.known = f.PHY, true
	}
	up = id != d.port.IDs().Any()
	if l.phy == 0 { // the 2005 design's endpoint, which does not tell
		l.speed.Store(defaultSpeed)
		return id, up, nil
	}
	var regs [3]uint32
	for i, off := range [...]rapidio.Off{rapidio.PHYPortErrStat, rapidio.PHYPortControl, rapidio.PHYPortControl2} {
		if regs[i], err = d.port.LocalRead32(ctx, l.phy+off); err != nil {
			return 0, false, err
		}
	}
	l.speed.Store(int32(speed(regs[1], regs[2])))
	return id, up && regs[0]&rapidio.PortOK != 0, nil
}
