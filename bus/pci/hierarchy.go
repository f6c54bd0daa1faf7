package pci

import (
	"context"

	"github.com/ring3dev/ring3/bus"
)

// Hierarchy is who owns a bus, as the driver of a port sees it: what the kernel's PCI core is to pcieport. The host
// implements it. Its methods are safe for concurrent use; a driver calls none of them inside Probe, and none while it holds a lock that its Close
// or its handlers take (Suspend, Resume and the resets are called while others wait for their turn). Its goroutines may, also while Close waits for
// them to end, or Suspend calls them off: so Rescan and Remove that wait for their turn stop when ctx ends, and do not begin after that, and Find, Below and Uevent wait for no Rescan, Remove or Close.
type Hierarchy interface {
	// Find is what stands at an address; nil if nothing is known to.
	Find(a Addr) *Member
	// Below lists all that stands behind a port, parents before what is behind them.
	Below(port Addr) []*Member
	// Rescan looks for functions behind a port that are not known yet, and takes them into service: resources, names,
	// drivers. One without a driver is no error. n is how many there are behind the port now, those known before included. It fails with
	// bus.ErrNotSupported where somebody else (the kernel) must do it.
	Rescan(ctx context.Context, port Addr) (n int, err error)
	// Remove takes all that stands behind a port out of service, the leaves first, and forgets it. gone says that the hardware is gone
	// already: then devices die first (bus.ErrGone), so that their drivers touch nothing.
	Remove(ctx context.Context, port Addr, gone bool) error
	// Uevent tells whoever listens of an event: action "change", a path below /sys, a subsystem, and variables, "KEY=VALUE". It may be
	// called at any time.
	Uevent(action, path, subsystem string, env ...string)
}

// Waker is implemented by a Hierarchy that knows which devices it suspended. The service of power management events calls it where a device
// asked for power.
type Waker interface {
	// Wake brings a function that asked for it back to D0, and resumes its driver (bus.PowerHandler) if it is suspended; what stands above it is
	// resumed first. It returns once that is done, or ctx ends: a port that is being closed ends it. A function that is awake
	// is left alone, which is no error.
	Wake(ctx context.Context, a Addr) error
}

// Foreign is implemented by a Hierarchy in which a port may lead to a bus that is somebody else's: the kernel has what stands behind a
// port that is driven by UIO. Such functions are not among those of Below, as nobody here may touch them, reset them for good, or ask their drivers.
type Foreign interface {
	// Others are the functions behind a port that somebody else has, as messages call them ("e1000e 0000:01:00.0"), parents before what is
	// behind them. It may be called at any time.
	Others(port Addr) []string
}

// Member is a function that is in service, or could be.
type Member struct {
	Function *Function
	Device   bus.Device // its config space is reached through it
	Name     string     // the user's
	Driver   string     // that serves it; "" for none
	// Use calls f with the driver's instance, nil where there is none any more. The instance stays
	// in service until f returns.
	Use func(f func(Instance))
	// Restore brings back config space and interrupt messages as they were when the device came into service: for when they
	// could not be saved just before a reset.
	Restore func() error
}

// Label is how the kernel's messages about a function begin: "e1000 1000:01:00.0", or "pci 1000:01:00.0" without a driver.
func (m *Member) Label() string {
	if m.Driver == "" {
		return "pci " + m.Function.Addr.String()
	}
	return m.Driver + " " + m.Function.Addr.String()
}
