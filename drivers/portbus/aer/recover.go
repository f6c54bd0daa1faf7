package aer

import (
	"context"
	"errors"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
)

// recover recovers what an uncorrectable error of a function concerns. The recovery ends when the port goes, not when the service is taken
// away from it: devices that were told to stop wait for it.
func (i *instance) recover(m *pci.Member, fatal bool) {
	p := i.above(m)
	p.Recover(i.port.Context(), m, fatal, func(ctx context.Context) bus.Verdict { return i.reset(ctx, p, m) })
}

// above is the port whose link an error concerns: the one that detected it if it stands above a link, and else the one above it. Where no
// driver serves that one, it is the next one above it that is served.
func (i *instance) above(m *pci.Member) *portbus.Port {
	for f := m.Function; f != nil; f = f.Parent {
		p := i.port.Bus().PortAt(f.Addr)
		if p != nil && (p.Express().HasLink() || p.Express().Type == pci.ExpCollector) {
			return p
		}
	}
	return i.port
}

// reset is the reset of a recovery: of all behind a port, or of a function that an event collector is for. What the devices send meanwhile is no
// news, so the root port neither interrupts nor remembers it.
func (i *instance) reset(ctx context.Context, p *portbus.Port, m *pci.Member) bus.Verdict {
	i.interrupts(false)
	var err error
	if p.Express().Type == pci.ExpCollector {
		if err = portbus.ResetFunction(ctx, m); err == nil {
			p.LogOf(m, slog.LevelInfo, "AER: has been reset")
		} else {
			p.LogOf(m, slog.LevelInfo, "AER: not reset (no FLR support: %d)", errno(err))
		}
	} else {
		err = p.ResetBelow(ctx)
		kind := "Downstream"
		if p.Express().Type == pci.ExpRootPort {
			kind = "Root"
		}
		p.Log(slog.LevelInfo, "AER: %s Port link has been reset (%d)", kind, errno(err))
	}
	i.clear(pci.AERRootSta)
	i.interrupts(true)
	if err != nil {
		return bus.Disconnect
	}
	return bus.Recovered
}

// interrupts masks and unmasks them for a while, unless they are off.
func (i *instance) interrupts(on bool) {
	i.cmd.Lock()
	defer i.cmd.Unlock()
	if i.masked = !on; i.on {
		i.command(on)
	}
}

// errno is the number that the kernel would print for an error.
func errno(err error) int {
	var no unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &no):
		return -int(no)
	case errors.Is(err, bus.ErrTimeout), errors.Is(err, bus.ErrGone), errors.Is(err, bus.ErrNotSupported):
		return -int(unix.ENOTTY) // what it says of a function that does not come back, and of one without such a reset
	}
	return -int(unix.EIO)
}
