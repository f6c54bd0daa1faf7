package e1000

import (
	"context"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/netdev"
)

// filters is what the address filters hold. Guarded by nic.confMu.
type filters struct {
	mode  netdev.RxMode
	exact [raPairs]group   // receive addresses; 0 is the station's, a zero group a free one
	mta   [mtaWords]uint32 // the multicast table
}

// group is a multicast address.
type group [6]byte

// mtaBit is where the multicast table has a group: 12 bits of the address (RCTL.MO 0), 13.5.1.
// Other groups share the bit.
func mtaBit(g group) (word int, bit uint32) {
	h := uint32(g[4])>>4 | uint32(g[5])<<4
	return int(h >> 5 & (mtaWords - 1)), 1 << (h & 31)
}

// RxMode says which frames are received; netdev.RxModer.
func (n *nic) RxMode() netdev.RxMode {
	n.confMu.Lock()
	defer n.confMu.Unlock()
	m := n.filters.mode
	m.Multicast = slices.Clone(m.Multicast)
	return m
}

// SetRxMode chooses which frames are received besides the station's and broadcasts; netdev.RxModer. The first
// 15 groups have receive addresses of their own; the others share the multicast table, which lets
// some groups pass that nobody asked for, and on QEMU's models other stations' frames. Reception of
// what was received before and still is goes on undisturbed, but for QEMU's 8254x, which are deaf for a
// second after a change of Promisc or AllMulti.
func (n *nic) SetRxMode(_ context.Context, m netdev.RxMode) error {
	groups := make([]group, 0, len(m.Multicast))
	for _, a := range m.Multicast {
		if len(a) != 6 || a[0]&1 == 0 {
			return n.errorf("address filters: %s is no multicast address: %w", a, unix.EINVAL)
		}
		if g := group(a); !slices.Contains(groups, g) {
			groups = append(groups, g)
		}
	}
	n.confMu.Lock()
	defer n.confMu.Unlock()
	if err := n.alive("address filters"); err != nil {
		return err
	}
	n.filters.mode = netdev.RxMode{Promisc: m.Promisc, AllMulti: m.AllMulti}
	for _, g := range groups {
		n.filters.mode.Multicast = append(n.filters.mode.Multicast, net.HardwareAddr(g[:]))
	}
	n.programFilters(groups)
	before := n.stops.Load()
	if n.regs.Read32(regSTATUS) == allOnes { // from here on it holds
		const step = "address filters: STATUS reads all-ones"
		n.missing(before, step)
		return n.lost(step)
	}
	return nil
}

// programFilters writes what differs: what lets more pass first, what lets less pass last. Called with
// confMu held.
func (n *nic) programFilters(groups []group) {
	f := &n.filters
	mta := f.assign(n.regs, groups)
	on, off := f.promiscuous(), rctlUPE|rctlMPE
	n.writeMTA(&mta, true)
	if old := rctl(n.regs.Read32(regRCTL)); uint32(old) != allOnes && old&(rctlUPE|rctlMPE) != on {
		n.regs.Write32(regRCTL, uint32(old&^off|on))
		if n.chip.quirk {
			n.regs.Read32(regSTATUS) // the time runs from when RCTL was written
			n.deafUntil.Store(time.Now().Add(deafTime).UnixNano())
		}
	}
	n.writeMTA(&mta, false)
}

// promiscuous is the bits of RCTL for the mode.
func (f *filters) promiscuous() (v rctl) {
	if f.mode.Promisc {
		v |= rctlUPE | rctlMPE
	}
	if f.mode.AllMulti {
		v |= rctlMPE
	}
	return v
}

// restoreFilters writes all groups anew, after a reset and initGeneral. Called with confMu held.
func (n *nic) restoreFilters() {
	f := &n.filters
	f.exact, f.mta = [raPairs]group{}, [mtaWords]uint32{}
	groups := make([]group, 0, len(f.mode.Multicast))
	for _, a := range f.mode.Multicast {
		groups = append(groups, group(a))
	}
	mta := f.assign(n.regs, groups)
	n.writeMTA(&mta, true)
}

// assign gives groups their receive addresses: those that have one keep it. What finds none is in the
// table that it returns.
func (f *filters) assign(r bus.Region, groups []group) (mta [mtaWords]uint32) {
	free := make([]int, 0, raPairs)
	for i := 1; i < raPairs; i++ {
		if g := f.exact[i]; g == (group{}) || !slices.Contains(groups, g) {
			free = append(free, i)
		}
	}
	for _, g := range groups {
		switch {
		case slices.Contains(f.exact[1:], g):
		case len(free) > 0:
			i := free[0]
			free = free[1:]
			r.Write32(regRAH(i), 0)
			r.Write32(regRAL(i), uint32(g[0])|uint32(g[1])<<8|uint32(g[2])<<16|uint32(g[3])<<24)
			r.Write32(regRAH(i), rahAV|uint32(g[4])|uint32(g[5])<<8)
			f.exact[i] = g
		default:
			word, bit := mtaBit(g)
			mta[word] |= bit
		}
	}
	for _, i := range free {
		if f.exact[i] != (group{}) {
			r.Write32(regRAH(i), 0)
			r.Write32(regRAL(i), 0)
			f.exact[i] = group{}
		}
	}
	return mta
}

// writeMTA writes the words of the multicast table that differ; more: only adds bits.
func (n *nic) writeMTA(mta *[mtaWords]uint32, more bool) {
	for i, v := range mta {
		if more {
			v |= n.filters.mta[i]
		}
		if v != n.filters.mta[i] {
			n.regs.Write32(regMTA(i), v)
			n.filters.mta[i] = v
		}
	}
}
