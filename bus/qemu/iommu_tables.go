package qemu

import (
	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/iova"
)

// Second-level page table entries (VT-d, 9.8).
const (
	pteRead  = 1 << 0
	pteWrite = 1 << 1
	pteLarge = 1 << 7 // on level 2: a page of 2 MiB

	largePage = 2 << 20
	levels    = 3
	entries   = 512
)

// permission is what a device may do with memory of a direction.
func permission(d bus.Direction) uint64 {
	switch d {
	case bus.ToDevice:
		return pteRead
	case bus.FromDevice:
		return pteWrite
	}
	return pteRead | pteWrite
}

// tables hands out zeroed pages of RAM for what the IOMMU reads. They come in chunks, so
// that they lie together, and go back to RAM only in the end.
type tables struct {
	ram    *ram
	chunks []iova.Span
	free   []uint64
}

// chunkPages is how many pages are taken at a time.
const chunkPages = 64

func (t *tables) take() (uint64, error) {
	if len(t.free) == 0 {
		s, err := t.ram.take("tables of the IOMMU", bus.DMARequest{Size: chunkPages * pageSize})
		if err != nil {
			return 0, err
		}
		t.chunks = append(t.chunks, s)
		for at := s.End; at > s.Base; at -= pageSize {
			t.free = append(t.free, at-pageSize)
		}
	}
	at := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	return at, nil
}

func (t *tables) give(at uint64) {
	clear(t.ram.bytes[at : at+pageSize])
	t.free = append(t.free, at)
}

// set writes an entry. QEMU sees it at the latest with the next qtest command.
func (t *tables) set(at, v uint64) { put64(t.ram.bytes[at:at+8], v) }

func (t *tables) close() {
	for _, s := range t.chunks {
		t.ram.release(s)
	}
	t.chunks, t.free = nil, nil
}

// table is a page of entries. What is in it stands here too, since RAM is the devices'.
type table struct {
	at    uint64
	used  int             // entries that are not 0
	below [entries]*table // the tables that they lead to, above the last level
}

// domain is what one device can reach. Guarded by iommu.mu.
type domain struct {
	id     uint16
	tables *tables
	large  bool
	top    *table
	left   bool // its device was removed
}

// index is the place of an address in a table of a level, 1 being the last.
func index(addr uint64, level int) int { return int(addr>>(12+9*(level-1))) & (entries - 1) }

// page is the size of the largest page that can stand at both addresses.
func (d *domain) page(iova, phys, size uint64) uint64 {
	if d.large && (iova|phys)&(largePage-1) == 0 && size >= largePage {
		return largePage
	}
	return pageSize
}

// enter maps whole pages. Nothing is mapped there yet. On error nothing is.
// Before the tables that it has made are used for something else, invalidate is called: the device may
// have used what was mapped already.
func (d *domain) enter(iova, phys, size, perm uint64, invalidate func() error) error {
	for done := uint64(0); done < size; {
		n := d.page(iova+done, phys+done, size-done)
		last, v := 1, phys+done|perm
		if n == largePage {
			last, v = 2, v|pteLarge
		}
		t, err := d.walk(iova+done, last)
		if err != nil {
			emptied := d.leave(iova, done)
			_ = invalidate() // of a machine that died there is nothing to wait for
			for _, at := range emptied {
				d.tables.give(at)
			}
			return err
		}
		t.used++
		d.tables.set(t.at+8*uint64(index(iova+done, last)), v)
		done += n
	}
	return nil
}

// walk finds the table of a level for an address, and makes what is missing on the way.
func (d *domain) walk(iova uint64, last int) (*table, error) {
	t := d.top
	for level := levels; level > last; level-- {
		i := index(iova, level)
		if t.below[i] == nil {
			at, err := d.tables.take()
			if err != nil {
				return nil, err
			}
			t.below[i] = &table{at: at}
			t.used++
			d.tables.set(t.at+8*uint64(i), at|pteRead|pteWrite)
		}
		t = t.below[i]
	}
	return t, nil
}

// leave unmaps what enter mapped. It returns the tables that are empty now: they may be
// used for something else once the IOTLB was invalidated.
func (d *domain) leave(iova, size uint64) (emptied []uint64) {
	for done := uint64(0); done < size; {
		addr := iova + done
		var path [levels + 1]*table
		path[levels] = d.top
		level := levels
		for level > 1 && path[level].below[index(addr, level)] != nil {
			path[level-1] = path[level].below[index(addr, level)]
			level--
		}
		done += uint64(pageSize) << (9 * (level - 1))
		// The entry, then the tables above it as far as they became empty.
		for ; ; level++ {
			t, i := path[level], index(addr, level)
			d.tables.set(t.at+8*uint64(i), 0)
			t.below[i] = nil
			if t.used--; t.used > 0 || level == levels {
				break
			}
			emptied = append(emptied, t.at)
		}
	}
	return emptied
}

// newIOVAs is the addresses of devices, one set for all of the machine's: no two devices are
// given the same address, so where one uses what is another's the IOMMU stops it. It leaves out
// all below 1 MiB, the machine's devices (the doorbell among them) and the range of interrupt
// messages.
func newIOVAs() *iova.Pool {
	return iova.NewPool(pageSize, iova.Spans{{Base: lowRAM, End: ecamBase}, {Base: 1 << 32, End: 1 << 39}})
}

// takeIOVA finds addresses for memory at phys, which they differ from.
func takeIOVA(p *iova.Pool, q bus.DMARequest, phys uint64) (iova.Span, bool) {
	better := uint64(0)
	if q.Size >= largePage && phys&(largePage-1) == 0 {
		better = largePage
	}
	return p.Take(q, better, phys)
}
