package aerinject

import (
	"sync"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// config is a config space with an overlay.
type config struct {
	bus.Config // within
	d          *Device
}

func (c *config) Read8(o bus.Off) uint8   { return uint8(c.read(o, 1, uint32(c.Config.Read8(o)))) }
func (c *config) Read16(o bus.Off) uint16 { return uint16(c.read(o, 2, uint32(c.Config.Read16(o)))) }
func (c *config) Read32(o bus.Off) uint32 { return c.read(o, 4, c.Config.Read32(o)) }

func (c *config) Write8(o bus.Off, v uint8) {
	c.write(o, 1, uint32(v))
	c.Config.Write8(o, v)
}

func (c *config) Write16(o bus.Off, v uint16) {
	c.write(o, 2, uint32(v))
	c.Config.Write16(o, v)
}

func (c *config) Write32(o bus.Off, v uint32) {
	c.write(o, 4, v)
	c.Config.Write32(o, v)
}

// read is what is seen where the hardware says v. Of a dead function that stays all-ones.
func (c *config) read(o bus.Off, width uint, v uint32) uint32 {
	x := c.d.over.Load()
	if x == nil || !x.covers(o, width) || c.d.Err() != nil {
		return v
	}
	word, shift := (o-x.at)&^3, 8*uint(o&3)
	x.mu.Lock()
	defer x.mu.Unlock()
	// Of a narrower access the rest of the hardware's word is not known, and no part of what is read depends on it.
	return x.seen(word, v<<shift) >> shift & (1<<(8*width) - 1)
}

// write clears what was injected and is written to.
func (c *config) write(o bus.Off, width uint, v uint32) {
	x := c.d.over.Load()
	if x == nil || !x.covers(o, width) {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.clear((o-x.at)&^3, v<<(8*uint(o&3)))
}

// overlay is what was injected into one function.
type overlay struct {
	in bus.Config // of the hardware
	at bus.Off    // its capability

	mu     sync.Mutex
	unc    uint32 // of Uncorrectable Error Status
	cor    uint32 // of Correctable Error Status
	header [4]uint32
	root   uint32    // of Root Error Status
	src    [2]uint16 // who sent the correctable and the uncorrectable message
	srcSet [2]bool   // something was injected at some time
}

// kinds are the messages of a root port as Error Source Identification orders them, with their bits in Root Error
// Status.
var kinds = [2]struct{ got, multi uint32 }{
	{pci.RootStaCor, pci.RootStaMultiCor},
	{pci.RootStaUnc, pci.RootStaMultiUnc},
}

const (
	correctable   = 0
	uncorrectable = 1
)

// covers says whether an access reaches a register of the overlay. One that is not aligned reaches nothing.
func (x *overlay) covers(o bus.Off, width uint) bool {
	return o >= x.at+pci.AERUncSta && o < x.at+pci.AERErrSrc+4 && o%bus.Off(width) == 0
}

// seen is what a register reads as where the hardware has hw. mu is held.
func (x *overlay) seen(word bus.Off, hw uint32) uint32 {
	switch word {
	case pci.AERUncSta:
		return hw | x.unc
	case pci.AERCorSta:
		return hw | x.cor
	case pci.AERHeader, pci.AERHeader + 4, pci.AERHeader + 8, pci.AERHeader + 12:
		if x.unc != 0 {
			return x.header[(word-pci.AERHeader)/4]
		}
	case pci.AERRootSta:
		return x.rootSeen(hw)
	case pci.AERErrSrc:
		for i, k := range kinds {
			// Cleared already: it is the hardware's again as soon as that has something to say.
			if x.srcSet[i] && (x.root&k.got != 0 || x.in.Read32(x.at+pci.AERRootSta)&k.got == 0) {
				at := 16 * uint(i)
				hw = hw&^(0xffff<<at) | uint32(x.src[i])<<at
			}
		}
	}
	return hw
}

// rootSeen is Root Error Status where the hardware has hw. mu is held.
func (x *overlay) rootSeen(hw uint32) uint32 {
	v := hw | x.root
	for _, k := range kinds {
		if hw&x.root&k.got != 0 {
			v |= k.multi
		}
	}
	return v
}

// clear is a write of v to a register. mu is held.
func (x *overlay) clear(word bus.Off, v uint32) {
	switch word {
	case pci.AERUncSta:
		x.unc &^= v
	case pci.AERCorSta:
		x.cor &^= v
	case pci.AERRootSta:
		x.root &^= v
	}
}

func (x *overlay) pending() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.unc|x.cor|x.root != 0
}

// report makes a function have an error.
func (x *overlay) report(e pci.AERError) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.unc |= e.Uncorrectable
	x.cor |= e.Correctable
	if e.Uncorrectable != 0 {
		x.header = e.Header
	}
}

// receive makes a root port have received the messages of an error, from a requester. fatal is of its uncorrectable
// bits. It returns the port's Root Error Status as it is seen then.
func (x *overlay) receive(e pci.AERError, from uint16, fatal bool) uint32 {
	x.mu.Lock()
	defer x.mu.Unlock()
	hw := x.in.Read32(x.at + pci.AERRootSta)
	if hw == 0xffffffff {
		return hw
	}
	was := x.rootSeen(hw)
	for i, status := range [...]uint32{correctable: e.Correctable, uncorrectable: e.Uncorrectable} {
		if status == 0 {
			continue
		}
		if was&kinds[i].got != 0 {
			x.root |= kinds[i].multi
		} else {
			x.src[i], x.srcSet[i] = from, true
		}
		x.root |= kinds[i].got
	}
	if e.Uncorrectable != 0 {
		switch {
		case !fatal:
			x.root |= pci.RootStaNonFatal
		case was&pci.RootStaUnc == 0:
			x.root |= pci.RootStaFatal | pci.RootStaFirstFat
		default:
			x.root |= pci.RootStaFatal
		}
	}
	return x.rootSeen(hw)
}
