package e1000

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

var (
	_ bus.ErrorHandler = (*nic)(nil)
	_ bus.PowerHandler = (*nic)(nil)
)

// errStopped is what changing a setting gives while the device is stopped, as the kernel's gives ENODEV for a device that is
// detached.
var errStopped = fmt.Errorf("stopped for recovery or suspend: %w", bus.ErrBusy)

// stopped says whether the device is out of service for a while.
func (n *nic) stopped() bool { return n.stops.Load()&1 != 0 }

// reportTime is how long an error's report may come after its effect: a port that contains an error, or resets its bus, takes the registers
// away before anybody can be told.
const reportTime = 50 * time.Millisecond

// missing is what a register that reads all-ones means, of a device whose count of stops was before when the read
// began: it is gone, unless it is or was stopped meanwhile, or is soon, and its registers out of reach.
func (n *nic) missing(before uint32, step string) {
	if before&1 != 0 {
		return
	}
	// An error is the bus's word that the device is gone.
	_ = n.poll(context.Background(), reportTime, func() bool { return n.dead.Load() || n.stops.Load() != before })
	if n.stops.Load() == before {
		n.fail(n.lost("%s", step))
	}
}

// pass waits until whoever holds m has let go of it.
func pass(m *sync.Mutex) {
	m.Lock()
	defer m.Unlock()
}

// stop takes the queues out of service until start: they take and give nothing, the link is down, and once stop has returned nobody
// but who holds recMu touches a register, but for a queue's cause that is armed. Called with recMu held.
func (n *nic) stop() {
	if n.stopped() {
		return
	}
	n.stops.Add(1)
	for _, m := range []*sync.Mutex{&n.irqMu, &n.confMu, &n.statsMu, &n.nvmMu, &n.mod.mu} {
		pass(m)
	}
	for q := range n.queues {
		pass(&n.tx[q].mu)
		pass(&n.rx[q].mu)
	}
}

// halt masks interrupts, and stops both directions of a device whose registers can be reached.
func (n *nic) halt() {
	n.confMu.Lock()
	defer n.confMu.Unlock()
	n.regs.Write32(regIMC, uint32(causeAll))
	n.regs.Write32(regRCTL, 0)
	n.regs.Write32(regTCTL, uint32(tctlPSP))
	n.statsMu.Lock()
	defer n.statsMu.Unlock()
	n.addStats(&n.stats) // a reset takes it away
	n.addMore(&n.stats)
}

// setUp resets a device that is stopped, and programs all that it was told before, up to where receiver and transmitter would be
// enabled. Auto-negotiation is not restarted. Called with recMu held.
func (n *nic) setUp(ctx context.Context, step string) error {
	n.confMu.Lock()
	defer n.confMu.Unlock()
	if err := n.present(step); err != nil {
		return err
	}
	pci.SetCommand(n.dev.Config(), pci.CmdMem|pci.CmdMaster, 0)
	if n.regs.Read32(regSTATUS) == allOnes {
		return n.lost("%s: STATUS reads all-ones", step)
	}
	if err := n.reset(ctx); err != nil {
		return err
	}
	n.initGeneral()
	n.restoreFilters()
	if err := n.restorePHY(ctx); err != nil {
		return err
	}
	for q := range n.queues {
		n.tx[q].mu.Lock()
		n.tx[q].abandon()
		n.tx[q].mu.Unlock()
		n.rx[q].mu.Lock()
		n.rx[q].restart()
		n.rx[q].mu.Unlock()
	}
	n.restartStats()
	n.programIRQs()
	n.restoreITR()
	_, on := n.Features()
	n.initReceive(on)
	n.initTransmit()
	if n.regs.Read32(regSTATUS) == allOnes { // from here on all of that holds
		return n.lost("%s: STATUS reads all-ones", step)
	}
	return n.present(step)
}

// present is alive for a device that is stopped.
func (n *nic) present(step string) error {
	err := n.dev.Err()
	if n.dead.Load() {
		err = n.Err()
	}
	if err != nil {
		return n.errorf("%s: %w", step, err)
	}
	return nil
}

// start puts a device that is set up into service again. Called with recMu held.
func (n *nic) start(step string) error {
	n.confMu.Lock()
	if err := n.present(step); err != nil {
		n.confMu.Unlock()
		return err
	}
	n.link.And(^uint32(statusLU)) // so that readLink finds it up
	n.enable((*rxQueue).repost)
	n.looking.Store(true) // nobody is told of a link that is down and only was not looked at
	n.stops.Add(1)
	n.confMu.Unlock()
	for _, h := range n.handlers {
		h.IRQ().Unmask()
	}
	n.readLink()
	n.looking.Store(false)
	n.arm(n.irq.other)
	for q := range n.queues {
		n.rx[q].wake.Wake()
		n.tx[q].wake.Wake()
	}
	return n.alive(step)
}

// ErrorDetected stops traffic; bus.ErrorHandler. What is in the rings stays there until the reset, since a device whose registers
// cannot be reached cannot be told to leave memory alone. It always wants a reset.
func (n *nic) ErrorDetected(frozen bool) bus.Verdict {
	n.recMu.Lock()
	defer n.recMu.Unlock()
	if n.present("error recovery") != nil {
		return bus.Disconnect
	}
	serving := !n.stopped()
	n.ready = false
	n.stop()
	if serving && !frozen {
		n.halt()
	}
	return bus.NeedReset
}

// SlotReset sets the device up again after its bus, or slot, was reset; bus.ErrorHandler. A device that does not answer, or
// cannot be reset, is out of service for good.
func (n *nic) SlotReset(ctx context.Context) bus.Verdict {
	n.recMu.Lock()
	defer n.recMu.Unlock()
	n.stop()
	if err := n.setUp(ctx, "recovering after a reset"); err != nil {
		n.fail(err)
		return bus.Disconnect
	}
	n.ready = true
	return bus.Recovered
}

// ErrorResume lets traffic go on; bus.ErrorHandler. Without a SlotReset before it resets the device itself. One that was suspended
// before stays so.
func (n *nic) ErrorResume() {
	n.recMu.Lock()
	defer n.recMu.Unlock()
	const step = "resuming after an error"
	if !n.stopped() || n.suspends {
		return
	}
	if !n.ready {
		if err := n.setUp(context.Background(), step); err != nil {
			n.fail(err)
			return
		}
	}
	if err := n.start(step); err != nil {
		n.fail(err)
	}
}

// Suspend stops traffic and resets the device, which is then quiet and can lose its power; bus.PowerHandler. What is in the rings
// is lost, and counted.
func (n *nic) Suspend(ctx context.Context) error {
	n.recMu.Lock()
	defer n.recMu.Unlock()
	const step = "suspending"
	if n.suspends {
		return n.present(step)
	}
	if err := n.alive(step); err != nil {
		return err
	}
	n.stop()
	n.halt()
	if err := n.suspend(ctx, step); err != nil {
		// A device that cannot be suspended stays in service, if it can.
		if again := n.setUp(context.WithoutCancel(ctx), step); again != nil {
			n.fail(again)
		} else if again := n.start(step); again != nil {
			n.fail(again)
		}
		return err
	}
	n.suspends = true
	return nil
}

// suspend resets the device, after which it touches no memory. The transmit rings' buffers can go back then.
func (n *nic) suspend(ctx context.Context, step string) error {
	n.confMu.Lock()
	defer n.confMu.Unlock()
	if err := n.present(step); err != nil {
		return err
	}
	if err := n.reset(ctx); err != nil {
		return err
	}
	for q := range n.queues {
		n.tx[q].mu.Lock()
		n.tx[q].abandon()
		n.tx[q].mu.Unlock()
		n.tx[q].wake.Wake() // who drains has nothing to wait for
	}
	n.endIntervals()
	return n.present(step)
}

// Resume puts a suspended device, which has its power again, into service; bus.PowerHandler. The device's config space is what it was.
func (n *nic) Resume(ctx context.Context) error {
	n.recMu.Lock()
	defer n.recMu.Unlock()
	const step = "resuming"
	if !n.suspends {
		return n.alive(step)
	}
	err := n.setUp(ctx, step)
	if err == nil {
		n.suspends = false
		err = n.start(step)
	}
	if err != nil {
		n.fail(err)
	}
	return err
}
