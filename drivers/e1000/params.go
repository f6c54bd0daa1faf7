package e1000

import (
	"context"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/sysfs"
)

// Params are the parameters of the kernel's drivers, under their names, as far as they mean something
// here, and this driver's own; pci.ParamUser.
func (n *nic) Params() []pci.Param {
	list := []pci.Param{
		{Name: "FlowControl", Get: n.flowParam, Set: n.number(3, n.setFlowParam)},
		{Name: "InterruptThrottleRate", Get: n.throttleRate, Set: n.setThrottleRate},
		{Name: "RxAbsIntDelay", Get: n.delay(delayRxAbs), Set: n.setDelay(delayRxAbs)},
		{Name: "RxDescriptors", Get: func() string { return strconv.Itoa(n.ring) }},
		{Name: "RxIntDelay", Get: n.delay(delayRx), Set: n.setDelay(delayRx)},
		{Name: "TxAbsIntDelay", Get: n.delay(delayTxAbs), Set: n.setDelay(delayTxAbs)},
		{Name: "TxDescriptors", Get: func() string { return strconv.Itoa(n.ring) }},
		{Name: "TxIntDelay", Get: n.delay(delayTx), Set: n.setDelay(delayTx)},
		{Name: "XsumRX", Get: n.sumParam, Set: n.number(1, n.setSumParam)},
		{Name: "queues", Get: func() string { return strconv.Itoa(n.queues) }},
		{Name: "weight", Get: n.weightParam, Set: n.number(netdev.Budget, n.setWeightParam)},
	}
	if n.chip.pcie {
		list = append(list, pci.Param{Name: "IntMode", Get: func() string { return strconv.Itoa(intModes[n.irq.mode]) }})
	}
	return list
}

// intModes are the values of IntMode.
var intModes = [...]int{bus.INTx: 0, bus.MSI: 1, bus.MSIX: 2}

// number makes a Set of what takes a number up to highest.
func (n *nic) number(highest uint64, set func(context.Context, int) error) func(context.Context, string) error {
	return func(ctx context.Context, s string) error {
		v, err := sysfs.ParseUint(s, highest)
		if err != nil {
			return err
		}
		if err := n.alive("parameters"); err != nil {
			return err
		}
		if err := set(ctx, int(v)); err != nil {
			return err
		}
		return n.alive("parameters")
	}
}

func (n *nic) setThrottleRate(_ context.Context, s string) error {
	v, err := parseITR(s)
	if err != nil {
		return err
	}
	if err := n.alive("interrupt moderation"); err != nil {
		return err
	}
	n.setITR(v, itrInterval(v))
	return n.alive("interrupt moderation")
}

// FlowControl: 1 pause frames are obeyed, 2 sent, 3 both.
const flowRx, flowTx = 1, 2

func (n *nic) flowParam() string {
	p, v := n.Pause(), 0
	if p.Rx {
		v |= flowRx
	}
	if p.Tx {
		v |= flowTx
	}
	return strconv.Itoa(v)
}

func (n *nic) setFlowParam(ctx context.Context, v int) error {
	return n.updatePause(ctx, func(p *netdev.Pause) { p.Rx, p.Tx = v&flowRx != 0, v&flowTx != 0 })
}

func (n *nic) sumParam() string {
	if _, on := n.Features(); on&netdev.RxCsum != 0 {
		return "1"
	}
	return "0"
}

func (n *nic) setSumParam(_ context.Context, v int) error {
	return n.updateFeatures(func(on netdev.Feature) netdev.Feature {
		if v == 0 {
			return on &^ netdev.RxCsum
		}
		return on | netdev.RxCsum
	})
}

func (n *nic) weightParam() string {
	if w := n.NAPI().Weight; w > 0 {
		return strconv.Itoa(w)
	}
	return strconv.Itoa(netdev.Budget)
}

func (n *nic) setWeightParam(_ context.Context, v int) error {
	if v < 1 {
		return fmt.Errorf("weight %d, want 1 to %d: %w", v, netdev.Budget, unix.ERANGE)
	}
	return netdev.ChangeNAPI(n, func(p *netdev.NAPI) { p.Weight = v })
}

// Delays of interrupts, in units of 1.024 us: from the last frame, and, absolute, from the first.
const (
	delayRx = iota
	delayRxAbs
	delayTx
	delayTxAbs
	numDelays
)

var delayRegs = [numDelays]bus.Off{regRDTR, regRADV, regTIDV, regTADV}

// delay makes the Get of a delay, and setDelay its Set, 13.4.30, 13.4.31, 13.4.41 and 13.4.44. A
// transmit descriptor asks for the delay in its command. MSI-X knows no delays.
func (n *nic) delay(i int) func() string {
	return func() string { return strconv.Itoa(int(n.delays[i].Load())) }
}

func (n *nic) setDelay(i int) func(context.Context, string) error {
	return n.number(0xffff, func(_ context.Context, v int) error {
		n.confMu.Lock()
		defer n.confMu.Unlock()
		if err := n.alive("delays of interrupts"); err != nil {
			return err
		}
		n.delays[i].Store(uint32(v))
		n.regs.Write32(delayRegs[i], uint32(v))
		report := txRS
		if n.delays[delayTx].Load() != 0 {
			report |= txIDE
		}
		for q := range n.queues {
			n.tx[q].mu.Lock()
			n.tx[q].report = report
			n.tx[q].mu.Unlock()
		}
		return nil
	})
}
