package e1000

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// verifyEvery is how often a controller in service is looked at: as often as the kernel's driver does, whose watchdog looks for a hang. One
// that was reset by itself, whose bus mastering somebody switched off, or on its way to which a write was lost, is deaf and dumb, and says nothing.
const verifyEvery = 2 * time.Second

// verify says whether receiver and transmitter are as they were set up. Called with confMu held, of a device that is not stopped.
func (n *nic) verify() error {
	r := n.regs
	var seen string
	want := func(name string, got, want uint32) bool {
		if got != want && seen == "" {
			seen = fmt.Sprintf("%s=%#x, want %#x", name, got, want)
		}
		return got == want
	}
	// A descriptor that says that it is done before the device came to it has driver and device in different places from then on: stale frames, and
	// buffers that are used again too early. One that the device passed, and that does not say so, stops the queue for ever; since a device may be
	// about to say so, it is that only where it was so at the look before.
	head := func(name string, got, first uint32, c *counters, done func() bool) {
		ahead, passed := uint64(got-first)&c.mask, c.passed
		c.passed = 0
		switch {
		case seen != "":
		case ahead > uint64(c.used()):
			seen = fmt.Sprintf("%s=%d, want one of the %d descriptors from %d on", name, got, c.used()+1, first)
		case ahead > 0 && !done():
			if c.passed = c.head + 1; passed == c.passed {
				seen = fmt.Sprintf("%s=%d, and descriptor %d does not say that it is done", name, got, first)
			}
		}
	}
	want("RCTL.EN", r.Read32(regRCTL)&uint32(rctlEN), uint32(rctlEN))
	want("TCTL.EN", r.Read32(regTCTL)&uint32(tctlEN), uint32(tctlEN))
	for q := range n.queues {
		rx, tx := &n.rx[q], &n.tx[q]
		want(fmt.Sprintf("RDBAL%d", q), r.Read32(regRDBAL(q)), uint32(rx.mem.IOVA))
		want(fmt.Sprintf("RDBAH%d", q), r.Read32(regRDBAH(q)), uint32(rx.mem.IOVA>>32))
		want(fmt.Sprintf("RDLEN%d", q), r.Read32(regRDLEN(q)), uint32(len(rx.ring)))
		if rx.mu.TryLock() { // whoever refills writes RDT under it, and may hang there
			want(fmt.Sprintf("RDT%d", q), r.Read32(regRDT(q)), rx.at(rx.c.tail))
			head(fmt.Sprintf("RDH%d", q), r.Read32(regRDH(q)), rx.at(rx.c.head), &rx.c, func() bool { return rx.stat(rx.at(rx.c.head))&rxDD != 0 })
			rx.mu.Unlock()
		}
		want(fmt.Sprintf("TDBAL%d", q), r.Read32(regTDBAL(q)), uint32(tx.mem.IOVA))
		want(fmt.Sprintf("TDBAH%d", q), r.Read32(regTDBAH(q)), uint32(tx.mem.IOVA>>32))
		want(fmt.Sprintf("TDLEN%d", q), r.Read32(regTDLEN(q)), uint32(len(tx.ring)))
		if tx.mu.TryLock() {
			head(fmt.Sprintf("TDH%d", q), r.Read32(regTDH(q)), tx.c.at(tx.c.head), &tx.c, func() bool {
				last := tx.last[tx.c.at(tx.c.head)] // the device may be in the middle of the group that it reports for
				return doneTx(tx.ring, tx.c.at(last-1)) || r.Read32(regTDH(q)) != tx.c.at(tx.c.tail)
			})
			tx.mu.Unlock()
		}
	}
	want("RAL[0]", r.Read32(regRAL(0)), binary.LittleEndian.Uint32(n.mac[0:4]))
	want("RAH[0]", r.Read32(regRAH(0))&(rahAV|0xffff), rahAV|uint32(binary.LittleEndian.Uint16(n.mac[4:6])))
	if n.chip.pcie {
		format, queues := uint32(0), uint32(0)
		if n.queues > 1 {
			format, queues = rfctlEXTEN, uint32(mrqcRSS)
		}
		want("RFCTL.EXTEN", r.Read32(regRFCTL)&rfctlEXTEN, format)
		want("MRQC", r.Read32(regMRQC)&uint32(mrqcRSS), queues)
	}
	if n.irq.mode == bus.MSIX {
		want("IVAR", r.Read32(regIVAR), n.ivar)
	}
	const all = 0xffff // config space is gone
	if c := n.dev.Config().Read16(pci.CfgCommand); (pci.Command(c)&pci.CmdMaster == 0 || c == all) && seen == "" {
		seen = fmt.Sprintf("Command=%#x, want bus mastering", c)
	}
	if seen == "" {
		return nil
	}
	if err := n.dev.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%s: the controller is not as it was set up: %w", seen, bus.ErrProtocol)
}

// check takes a controller out of service that is not as it was set up. An error of the bus may be reported later than it shows, see missing; and one
// read of a register may lie.
func (n *nic) check() {
	before := n.stops.Load()
	if n.dead.Load() || before&1 != 0 {
		return
	}
	// Somebody is at work in a queue. If he hangs there, a watchdog sees it by the accesses that are not made any more: none are made here.
	for q := range n.queues {
		for _, m := range []*sync.Mutex{&n.tx[q].mu, &n.rx[q].mu} {
			if !m.TryLock() {
				return
			}
			m.Unlock()
		}
	}
	look := func() error {
		n.confMu.Lock()
		defer n.confMu.Unlock()
		if n.dead.Load() || n.stops.Load() != before {
			return nil
		}
		return n.verify()
	}
	if look() == nil {
		return
	}
	_ = n.poll(context.Background(), reportTime, func() bool { return n.dead.Load() || n.stops.Load() != before })
	if err := look(); err != nil {
		n.fail(n.errorf("in service: %w", err))
	}
}
