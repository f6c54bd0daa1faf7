package sim

import (
	"github.com/ring3dev/ring3/bus"
)

// msi is slot's.
func (d *device) msi(vector int) {
	s := d.space
	if d.gone || s.mode() != bus.MSI {
		return
	}
	ctl := s.get16(s.msi + msiCtl)
	n := 1 << min(ctl>>4&7, ctl>>1&7)
	low := uint32(n - 1)
	// A function that was given fewer vectors than it has uses the last for the rest.
	v := uint32(min(max(vector, 0), n-1))
	addr, data := uint64(s.get32(s.msi+msiAddr)), s.msi+msiAddrHi
	if ctl&msi64 != 0 {
		addr, data = addr|uint64(s.get32(data))<<32, s.msi+msiData
	}
	if mask := data + 4; ctl&msiCanMask != 0 {
		if bits := s.get32(mask + 4); s.get32(mask)&(1<<v) != 0 {
			s.put32(mask+4, bits|1<<v)
			return
		} else if bits&(1<<v) != 0 {
			s.put32(mask+4, bits&^(1<<v))
		}
	}
	d.message(addr, uint32(s.get16(data))&^low|v)
}

// flushMSI sends what was masked and is no more.
func (d *device) flushMSI() {
	s := d.space
	if s.msi == 0 || s.mode() != bus.MSI {
		return
	}
	ctl := s.get16(s.msi + msiCtl)
	if ctl&msiCanMask == 0 {
		return
	}
	mask := s.msi + msiAddrHi + 4
	if ctl&msi64 != 0 {
		mask = s.msi + msiData + 4
	}
	for v := s.get32(mask+4) &^ s.get32(mask); v != 0; v &= v - 1 {
		d.msi(lowest(v))
	}
}
