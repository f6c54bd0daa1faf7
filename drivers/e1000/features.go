package e1000

import (
	"context"

	"github.com/ring3dev/ring3/netdev"
)

// vlanFeatures are one bit to the hardware, CTRL.VME.
const vlanFeatures = netdev.TxVLAN | netdev.RxVLAN

// tsoFeatures take TxCsum.
const tsoFeatures = netdev.TxTSO4 | netdev.TxTSO6

// available is what the device can do. The 8254x segment IPv4 only, as the kernel's driver has
// it; the 82574L hashes for two queues.
func (n *nic) available() netdev.Feature {
	f := netdev.RxCsum | netdev.TxCsum | netdev.TxTSO4 | vlanFeatures
	if n.chip.pcie {
		f |= netdev.TxTSO6
	}
	if n.extended() {
		f |= netdev.RxHash
	}
	return f
}

// defaults is what is on at first: all but VLAN tags, which a program that looks at frames expects in
// them, and on a device that may be QEMU's 82574L segmentation, see doc.go.
func (n *nic) defaults() netdev.Feature {
	f := n.available() &^ vlanFeatures
	if n.chip.fragments {
		f &^= tsoFeatures
	}
	return f
}

// Features says what the device can do for frames, and what of that is on; netdev.Offloader.
func (n *nic) Features() (available, on netdev.Feature) {
	return n.available(), netdev.Feature(n.features.Load())
}

// settle makes of the features asked for those that can be together, as the kernel does: no
// segmentation without checksums, and both ways of VLAN tags or neither, whichever was changed.
func settle(was, want netdev.Feature) netdev.Feature {
	if want&netdev.TxCsum == 0 {
		want &^= tsoFeatures
	}
	if v := want & vlanFeatures; v != 0 && v != vlanFeatures {
		want ^= vlanFeatures ^ v // both
		if was&vlanFeatures != 0 {
			want &^= vlanFeatures // one was switched off
		}
	}
	return want
}

// SetFeatures switches features on and off; netdev.Offloader. What depends on another one
// follows it: segmentation on TxCsum, TxVLAN and RxVLAN on each other.
func (n *nic) SetFeatures(_ context.Context, on netdev.Feature) error {
	return n.updateFeatures(func(netdev.Feature) netdev.Feature { return on })
}

// updateFeatures makes what is on something else, and nobody else does between.
func (n *nic) updateFeatures(update func(on netdev.Feature) netdev.Feature) error {
	n.confMu.Lock()
	defer n.confMu.Unlock()
	was := netdev.Feature(n.features.Load())
	on := update(was)
	if no := on &^ n.available(); no != 0 {
		return n.errorf("switching on %s: the %s cannot do that: %w", no, n.chip.model, errInvalid)
	}
	if err := n.alive("switching features"); err != nil {
		return err
	}
	n.applyFeatures(settle(was, on))
	return n.alive("switching features")
}

// applyFeatures tells the queues and the device. A frame that is sent with a feature that is off
// is an error, so the device learns first what is on, and last what is off. Called with confMu held,
// or before anybody knows the device.
func (n *nic) applyFeatures(on netdev.Feature) {
	was := netdev.Feature(n.features.Load())
	n.programFeatures(was | on)
	for i := range n.queues {
		q := &n.tx[i]
		q.mu.Lock()
		q.features = on
		q.mu.Unlock()
		r := &n.rx[i]
		r.mu.Lock()
		r.hash = on&netdev.RxHash != 0
		r.mu.Unlock()
	}
	n.programFeatures(on)
	n.features.Store(uint32(on))
}

// programFeatures writes RXCSUM and CTRL.VME, 3.2.9 and 9.
func (n *nic) programFeatures(on netdev.Feature) {
	var sum rxcsum
	if on&netdev.RxCsum != 0 {
		if sum = rxcsumIPOFL | rxcsumTUOFL; !n.chip.pcie {
			sum |= rxcsumV6OFL
		}
	}
	if n.extended() {
		sum |= rxcsumPCSD
	}
	n.regs.Write32(regRXCSUM, uint32(sum))
	old := ctrl(n.regs.Read32(regCTRL))
	c := old &^ ctrlVME
	if on&vlanFeatures != 0 {
		c |= ctrlVME
	}
	if c != old && uint32(old) != allOnes {
		n.regs.Write32(regCTRL, uint32(c))
	}
}
