package qemu

import (
	"github.com/ring3dev/ring3/bus/pci"
)

// join makes room for a function that was found later, and gives its device a domain if that asked for one; nil: the function is
// none's. Below a port with hot-plug stands one device, so its requests are told apart.
func (u *iommu) join(f *pci.Function, d *device) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil
	}
	id := requester(f)
	buses := []uint8{f.Addr.Bus, uint8(id >> 8)}
	if f.IsBridge() {
		buses = append(buses, f.Secondary)
	}
	for _, b := range buses {
		if err := u.cover(b); err != nil {
			return err
		}
	}
	// Who stood here before may have been cut off.
	lo, hi := uint64(ctxPresent|ctxPassThrough), uint64(ctx39Bits|passThroughID<<8)
	if d != nil && d.spec.IOMMU {
		if err := u.newDomain(d, id); err != nil {
			return err
		}
		lo, hi = ctxPresent|d.domain.top.at, ctx39Bits|uint64(d.domain.id)<<8
	}
	u.setContext(id, lo, hi)
	u.write(vtdCCMD, 8, ccmdICC|ccmdGlobal)
	if err := u.await("the context cache", vtdCCMD, 8, ccmdICC, 0); err != nil {
		return err
	}
	return u.invalidate(iotlbGlobal)
}

// part is told that a device with a domain has been removed. What a driver has not freed stays its own until it does.
func (u *iommu) part(d *device) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed || d.domain.left {
		return
	}
	for source, o := range u.sources {
		if o == d {
			u.block(source, d.domain.id)
			delete(u.sources, source)
		}
	}
	d.domain.left = true
	u.retire(d)
}

// retire gives the tables of a device back that has left, once nothing of it is mapped. Called with mu held.
func (u *iommu) retire(d *device) {
	dom := d.domain
	if !dom.left || !u.ids[dom.id] {
		return
	}
	for _, m := range u.live {
		if m.dev == d {
			return
		}
	}
	emptied := dom.leave(u.m.bell.addr&^(pageSize-1), pageSize)
	_ = u.forget(dom)() // of a machine that died there is nothing to wait for
	for _, at := range emptied {
		u.tables.give(at)
	}
	u.tables.give(dom.top.at)
	delete(u.ids, dom.id)
}
