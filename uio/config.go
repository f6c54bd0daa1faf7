package uio

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/fdio"
)

// config is a function's config space; bus.Config. While interrupts are enabled the bit
// INTx-Disable is the backend's and the kernel's: a driver's write to Command leaves it as it
// is, since the write is based on an older read, and would lose an interrupt for ever.
type config struct {
	*fdio.Config
	mu    sync.Mutex // held while Command is written
	owned bool       // INTx-Disable is not the driver's
}

// openConfig checks that all of config space can be read.
func openConfig(p *place, fd int) (*config, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("%s: config space: asking for its size: %w", p.name, err)
	}
	if st.Size != 256 && st.Size != 4096 {
		return nil, fmt.Errorf("%s: config space: %d bytes, want 256 or 4096: %w", p.name, st.Size, bus.ErrProtocol)
	}
	var b [4]byte
	n, err := unix.Pread(fd, b[:], st.Size-int64(len(b)))
	if err := p.configCut(st.Size, n, err); err != nil {
		return nil, err
	}
	return &config{Config: fdio.NewConfig(fd, 0, int(st.Size))}, nil
}

// configCut says what a read of the last 4 of config space's bytes tells, which gave n of them:
// the kernel shows the header to anyone, and the rest to whom had the right when he opened
// the file.
func (p *place) configCut(size int64, n int, err error) error {
	const header = 64
	switch {
	case err == unix.ENODEV:
		return fmt.Errorf("%s: config space: the function was removed: %w", p.name, bus.ErrGone)
	case err != nil:
		return fmt.Errorf("%s: config space: reading its end: %w", p.name, err)
	case n != 4:
		return fmt.Errorf("%s: config space: the kernel shows %d of its %d bytes to who opens it without CAP_SYS_ADMIN: %s opens it as root: %w", p.name, header, size, p.asRoot(), unix.EPERM)
	}
	return nil
}

// keep is a driver's value for Command, with INTx-Disable as the device has it where that is
// not the driver's. Called with mu held.
func (c *config) keep(v pci.Command) pci.Command {
	if !c.owned {
		return v
	}
	return v&^pci.CmdINTxDisable | pci.Command(c.Config.Read16(pci.CfgCommand))&pci.CmdINTxDisable
}

// Write8 is one access of 8 bits.
func (c *config) Write8(off bus.Off, v uint8) {
	if off == pci.CfgCommand+1 {
		c.mu.Lock()
		defer c.mu.Unlock()
		v = uint8(c.keep(pci.Command(v)<<8) >> 8)
	}
	c.Config.Write8(off, v)
}

// Write16 is one access of 16 bits.
func (c *config) Write16(off bus.Off, v uint16) {
	if off == pci.CfgCommand {
		c.mu.Lock()
		defer c.mu.Unlock()
		v = uint16(c.keep(pci.Command(v)))
	}
	c.Config.Write16(off, v)
}

// Write32 is one access of 32 bits.
func (c *config) Write32(off bus.Off, v uint32) {
	if off == pci.CfgCommand {
		c.mu.Lock()
		defer c.mu.Unlock()
		v = v&0xffff0000 | uint32(c.keep(pci.Command(v)))
	}
	c.Config.Write32(off, v)
}

// intx lets the function assert INTx, or holds it back, and says whose the bit is from now on.
func (c *config) intx(on, owned bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owned = owned
	set, clear := pci.CmdINTxDisable, pci.Command(0)
	if on {
		set, clear = clear, set
	}
	if c.Config.Read16(pci.CfgCommand) != 0xffff {
		pci.SetCommand(c.Config, set, clear)
	}
}

// none is the config space of a device that is on no PCI bus: nothing.
type none struct{}

func (none) Size() int               { return 0 }
func (none) Read8(bus.Off) uint8     { return ^uint8(0) }
func (none) Read16(bus.Off) uint16   { return ^uint16(0) }
func (none) Read32(bus.Off) uint32   { return ^uint32(0) }
func (none) Write8(bus.Off, uint8)   {}
func (none) Write16(bus.Off, uint16) {}
func (none) Write32(bus.Off, uint32) {}
