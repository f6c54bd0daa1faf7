package uio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/physmem"
	"github.com/ring3dev/ring3/internal/syspci"
)

// Options say how a device is opened. The zero value is fit for root.
type Options struct {
	// Files are the device's files, opened by somebody with more rights. They stay the
	// caller's, and may be closed once Open returned. nil: Open opens them itself.
	Files *Files
	// DMAUnsafe gives out DMA memory although nothing confines the device: it can write to
	// all of memory, and a wrong address in a descriptor is the end of the machine.
	DMAUnsafe bool
	// HardwareIDs say what a device is that is no PCI function (bus.Platform): UIO's drivers do not.
	HardwareIDs []string
	Log         *slog.Logger // nil discards
	// Sys and Dev are where sysfs and the device files are; "" means /sys and /dev.
	Sys, Dev string

	kernel *kernel // nil: the kernel itself
}

func (o *Options) tree() tree {
	t := tree{sys: syspci.Sys, dev: "/dev"}
	if o.Sys != "" {
		t.sys = syspci.Root(o.Sys)
	}
	if o.Dev != "" {
		t.dev = o.Dev
	}
	return t
}

// Device is a device that one of the kernel's UIO drivers has; bus.Device. Safe for
// concurrent use.
type Device struct {
	place  *place
	tree   tree
	log    *slog.Logger
	kernel *kernel
	fn     *pci.Function // nil where there is no PCI
	cfg    *config       // the same
	files  *held
	lacks  map[string]error // files that could not be opened, and why
	ids    []string         // of a device that is no PCI function
	hasIRQ bool
	line   int             // the kernel's number of the interrupt
	pumped chan struct{}   // closed when the pump has ended; nil without interrupt
	mem    *physmem.Memory // nil where DMA is refused

	irqMu sync.Mutex // before mu
	irq   *bus.IRQ   // guarded by irqMu; nil: disabled
	ctl   bool       // guarded by irqMu: the driver has no irqcontrol

	mu      sync.Mutex
	regions map[int]region // guarded by mu: those that were asked for
	closing bool           // guarded by mu
	err     error          // guarded by mu

	resetMu sync.Mutex // held while the file reset is used, and while it is closed

	done      chan struct{}
	closeOnce sync.Once
	closeErr  error
}

var (
	_ bus.Device   = (*Device)(nil)
	_ bus.Platform = (*Device)(nil)
)

// HardwareIDs are Options.HardwareIDs of a device that is no PCI function, none of one that is.
func (d *Device) HardwareIDs() []string { return slices.Clone(d.ids) }

// Open opens a device that a UIO driver of the kernel's has: a PCI function by its address
// ("0000:00:05.0"), or any UIO device as "uio0" or "/dev/uio0". ctx bounds nothing but Open.
func Open(ctx context.Context, device string, o Options) (*Device, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("uio: opening %s: %w", device, err)
	}
	t := o.tree()
	p, err := t.locate(device)
	if err != nil {
		return nil, err
	}
	d := &Device{place: p, tree: t, log: o.Log, kernel: o.kernel, regions: map[int]region{}, done: make(chan struct{})}
	if p.fn == nil {
		d.ids = slices.Clone(o.HardwareIDs)
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.kernel == nil {
		d.kernel = &realKernel
	}
	files := o.Files
	if files == nil {
		if files, d.lacks, err = t.open(p); err != nil {
			return nil, err
		}
		defer func() { _ = files.Close() }()
	}
	if err := d.take(files); err != nil {
		return nil, err
	}
	if err := d.start(o.DMAUnsafe); err != nil {
		return nil, errors.Join(err, d.files.close())
	}
	return d, nil
}

// take makes the device's own copies of its files.
func (d *Device) take(f *Files) error {
	switch {
	case f.Device != d.place.name && strings.TrimPrefix(f.Device, "/dev/") != d.place.node:
		return fmt.Errorf("%s: the files passed are those of %s", d.place.name, f.Device)
	case f.UIO == nil:
		return fmt.Errorf("%s: the files passed lack /dev/%s", d.place.name, d.place.node)
	case f.Config == nil && d.place.fn != nil:
		return fmt.Errorf("%s: the files passed lack config space", d.place.name)
	}
	var err error
	d.files, err = hold(f)
	return err
}

// start reads what the device is, and begins to wait for interrupts.
func (d *Device) start(unsafeDMA bool) error {
	p := d.place
	if p.fn != nil {
		c, err := openConfig(p, d.files.config)
		if err != nil {
			return err
		}
		c.OnError(d.configError)
		d.cfg = c
		d.fn = &pci.Function{Addr: p.fn.Addr, ID: p.fn.ID, Header: c.Read8(pci.CfgHeader) & headerType, Config: c, BARs: p.fn.BARs}
		if d.fn.Header == pci.HeaderBridge {
			d.fn.Secondary, d.fn.Subordinate = c.Read8(cfgSecondary), c.Read8(cfgSubordinate)
		}
		if n, err := number(d.tree.sys.Path(p.fn.Addr, "irq")); err == nil {
			d.line = int(n)
		}
	}
	if unsafeDMA {
		m, err := d.openMemory()
		if err != nil {
			return err
		}
		d.mem = m
	}
	if err := d.startPump(); err != nil {
		if d.mem != nil {
			d.mem.Close()
		}
		return err
	}
	return nil
}

// Of config space (PCI Local Bus 3.0, 6.2.1; PCI-to-PCI Bridge 1.2, 3.2.5).
const (
	headerType             = 0x7f // of Header Type: without the bit for more functions
	cfgSecondary   bus.Off = 0x19 // Secondary Bus Number, RW
	cfgSubordinate bus.Off = 0x1a // Subordinate Bus Number, RW
)

// configError is told of each access to config space that the kernel refused.
func (d *Device) configError(err error) {
	if errors.Is(err, unix.ENODEV) {
		d.end(fmt.Errorf("%s: config space: the function was removed: %w", d.place.name, bus.ErrGone))
	}
}

// Function is the PCI function: its address, identification, BARs and config space, and of a
// bridge the bus numbers behind it. It is nil for a device that is on no PCI bus.
func (d *Device) Function() *pci.Function { return d.fn }

// Address is the PCI address, or "uio0" where there is no PCI.
func (d *Device) Address() string { return d.place.name }

// Backend is "uio".
func (d *Device) Backend() string { return "uio" }

// Config is the function's config space, or nothing, of size 0, where there is no PCI.
func (d *Device) Config() bus.Config {
	if d.cfg == nil {
		return none{}
	}
	return d.cfg
}

// Done is closed when the device was removed, unbound or closed.
func (d *Device) Done() <-chan struct{} { return d.done }

// Err says why the device is dead, nil while it is not.
func (d *Device) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// refuse is why there is no new work, nil as long as there may be.
func (d *Device) refuse() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.refuseLocked()
}

func (d *Device) refuseLocked() error {
	if d.err == nil && d.closing {
		return d.closedErr()
	}
	return d.err
}

func (d *Device) closedErr() error { return fmt.Errorf("%s: %w", d.place.name, bus.ErrClosed) }

// end makes the link dead, for the first reason it is given: accesses that are under way
// finish, those that come read all-ones.
func (d *Device) end(why error) {
	d.mu.Lock()
	if d.err != nil {
		d.mu.Unlock()
		return
	}
	d.err = why
	open := d.regions
	d.regions = nil
	d.mu.Unlock()
	if errors.Is(why, bus.ErrGone) {
		d.log.Warn("device lost", "address", d.place.name, "reason", why)
	}
	if d.cfg != nil {
		d.cfg.Close()
	}
	for i, r := range open {
		if err := r.Close(); err != nil {
			d.log.Warn("region not unmapped", "address", d.place.name, "region", i, "error", err)
		}
	}
	close(d.done) // who saw this reads all-ones
}

// Reset is the kernel's reset of the function, which restores config space itself. ctx is looked
// at before: a reset that has begun is not given up, and takes some seconds at most.
func (d *Device) Reset(ctx context.Context) error {
	if err := d.refuse(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: resetting: %w", d.place.name, err)
	}
	return d.reset()
}

func (d *Device) reset() error {
	d.resetMu.Lock()
	defer d.resetMu.Unlock()
	if err := d.Err(); err != nil {
		return err // Close came before
	}
	if d.files.reset < 0 {
		if why := d.lacks[fileReset]; why != nil {
			return fmt.Errorf("%w: %w", why, bus.ErrNotSupported)
		}
		return fmt.Errorf("%s: resetting: the kernel knows no reset for it: %w", d.place.name, bus.ErrNotSupported)
	}
	switch _, err := unix.Pwrite(d.files.reset, []byte("1"), 0); {
	case err == nil:
		return d.Err()
	case err == unix.ENODEV:
		d.configError(err)
		return d.Err()
	case err == unix.ENOTTY:
		return fmt.Errorf("%s: resetting: the kernel's reset does not fit: %w: %w", d.place.name, err, bus.ErrNotSupported)
	default:
		return fmt.Errorf("%s: resetting: %w", d.place.name, err)
	}
}

// Close masks the interrupt, stops the device's DMA, unmaps and closes everything. It is
// idempotent.
func (d *Device) Close() error {
	d.closeOnce.Do(func() {
		d.mu.Lock()
		d.closing = true
		d.mu.Unlock()
		d.closeErr = d.DisableIRQs()
		d.quiesce()
		d.end(d.closedErr())
		<-d.done // it may be somebody else who ends it
		// Nothing uses the files any more but the pump, and this ends it.
		d.resetMu.Lock()
		d.closeErr = errors.Join(d.closeErr, d.files.close())
		d.resetMu.Unlock()
		if d.pumped != nil {
			<-d.pumped
		}
		if d.mem != nil {
			d.mem.Close()
		}
	})
	return d.closeErr
}

// quiesce sees to it that the device touches memory no more: where it was given any, by a
// reset. A bridge's bus mastering is for those behind it.
func (d *Device) quiesce() {
	if d.cfg == nil || d.Err() != nil {
		return
	}
	if d.mem != nil && d.mem.Used() {
		if err := d.reset(); err != nil && !errors.Is(err, bus.ErrNotSupported) {
			d.log.Warn("no reset at the end", "address", d.place.name, "error", err)
		}
	}
	if d.fn.Header != pci.HeaderBridge {
		pci.SetCommand(d.cfg, 0, pci.CmdMaster)
	}
}

// Regions lists the BARs, or the driver's maps where there is no PCI.
func (d *Device) Regions() []bus.RegionInfo {
	if d.fn != nil {
		return slices.Clone(d.fn.BARs)
	}
	out := make([]bus.RegionInfo, len(d.place.maps))
	for i, w := range d.place.maps {
		out[i] = w.info()
	}
	return out
}
