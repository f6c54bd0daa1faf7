package vc

import (
	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// arbitration is a way to choose: its number is the bit in a capability register, and the value of a select field (7.9.1.3, 7.9.1.6).
type arbitration struct {
	name   string
	phases int // of its table; 0: it has none
}

// portArbitrations are those of a resource; the VC arbiter has the first four.
var portArbitrations = []arbitration{{"hardware", 0}, {"wrr32", 32}, {"wrr64", 64}, {"wrr128", 128}, {"twrr128", 128}, {"wrr256", 256}}

var vcArbitrations = portArbitrations[:4]

// layout is what the capability registers say, once checked.
type layout struct {
	resources int // VC 0 included
	low       int // of them in the low-priority group
	vc        table
	port      []table // of each resource
	slots     []int   // Maximum Time Slots of each resource
}

// table is where an arbitration table is, and what chooses it.
type table struct {
	kinds []arbitration
	caps  uint32  // a bit for each kind that there is
	at    bus.Off // in config space; 0: there is none
	bits  int     // of an entry
}

// has says whether there is an arbitration of that number, with the table that it needs.
func (t table) has(n int) bool {
	return n < len(t.kinds) && t.caps&(1<<n) != 0 && (t.kinds[n].phases == 0 || t.at != 0)
}

// phases is how many a table has with an arbitration chosen; 0: there is no table.
func (t table) phases(selected int) int {
	if t.has(selected) && t.kinds[selected].phases > 0 {
		return t.kinds[selected].phases
	}
	most := 0
	for n, k := range t.kinds {
		if t.has(n) {
			most = max(most, k.phases)
		}
	}
	return most
}

// size is the bytes of that many entries.
func (t table) size(phases int) int { return phases * t.bits / 8 }

// readLayout reads the capability registers. Resources and tables that do not fit between the capability's beginning and its end are left
// out, whatever the registers say.
func readLayout(c bus.Config, at, end bus.Off) layout {
	cap1, cap2 := c.Read32(at+pci.VCCap1), c.Read32(at+pci.VCCap2)
	l := layout{resources: int(cap1&pci.VCCap1Count) + 1, low: int(cap1&pci.VCCap1Low>>4) + 1}
	for l.resources > 0 && at+resource(l.resources) > end {
		l.resources--
	}
	l.low = min(l.low, l.resources)
	head := resource(l.resources)
	place := func(t table, cap uint32) table {
		off := bus.Off(cap&pci.VCCapTable>>24) * 16
		t.caps, t.at = cap&pci.VCCapArb, at+off
		if off < head || t.at+bus.Off(t.size(t.phases(0))) > end {
			t.at = 0
		}
		return t
	}
	l.vc = place(table{kinds: vcArbitrations, bits: 4}, cap2)
	for n := range l.resources {
		cap := c.Read32(at + resource(n))
		l.port = append(l.port, place(table{kinds: portArbitrations, bits: 1 << (cap1 & pci.VCCap1Entry >> 10)}, cap))
		l.slots = append(l.slots, int(cap&pci.VCResSlots>>16)+1)
	}
	return l
}

// resource is where the registers of a resource begin.
func resource(n int) bus.Off { return pci.VCResCap + bus.Off(n)*pci.VCStride }

// Offsets of registers of resource n.
func resCtl(n int) bus.Off { return pci.VCResCtl + bus.Off(n)*pci.VCStride }
func resSta(n int) bus.Off { return pci.VCResSta + bus.Off(n)*pci.VCStride }

// Fields of VC Resource Control.
func mapOf(ctl uint32) uint32   { return ctl & pci.VCResMap }
func idOf(ctl uint32) uint32    { return ctl & pci.VCResID >> 24 }
func selectOf(ctl uint32) int   { return int(ctl & pci.VCResSelect >> 17) }
func enabledOf(ctl uint32) bool { return ctl&pci.VCResOn != 0 }

// unpack takes entries of that many bits out of words, the lowest bits first.
func unpack(words []uint32, width int) []uint32 {
	var entries []uint32
	for _, w := range words {
		for sh := 0; sh < 32; sh += width {
			entries = append(entries, w>>sh&(1<<width-1))
		}
	}
	return entries
}

// pack is the other way round. The entries fill whole words.
func pack(entries []uint32, width int) []uint32 {
	words := make([]uint32, len(entries)*width/32)
	for i, e := range entries {
		words[i*width/32] |= e << (i * width % 32)
	}
	return words
}
