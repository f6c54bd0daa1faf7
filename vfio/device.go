package vfio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/physmem"
	"github.com/ring3dev/ring3/internal/syspci"
)

// Device is a function that is open; bus.Device. Safe for concurrent use.
type Device struct {
	k      kernel
	log    *slog.Logger
	access *Access
	fn     pci.Function
	space  *Space
	pages  Pages
	phys   *physmem.Memory // where there is no IOMMU: DMA by physical addresses

	fd       int    // the device's; -1 once it is closed
	group    *group // nil where it was opened by its own file
	canReset bool   // the function has a reset of its own
	cfg      *config
	bars     [bars]regionInfo // size 0 where there is none
	vectors  [3]atomic.Int32  // by bus.IRQMode
	line     int              // the kernel's number of the interrupt line; 0 if it has none
	watches  []*watch
	loan     atomic.Pointer[Loan] // nil: it is not lent
	lent     *lent                // nil: it is not borrowed

	// mu is held while fd is used for anything but registers.
	mu   sync.Mutex
	irq  irqState
	open map[int]window // regions in use, by index

	end     atomic.Pointer[error] // why it ended
	endOnce sync.Once
	endErr  error
	done    chan struct{}

	closeOnce sync.Once
	closeErr  error
}

var _ bus.Device = (*Device)(nil)

// Open opens the function at addr ("0000:03:00.0"), which vfio-pci has. Errors are one line,
// with cause and remedy; on an error everything is as before.
func Open(ctx context.Context, addr string, o Options) (*Device, error) {
	o = o.withDefaults()
	a, err := pci.ParseAddr(addr)
	if err != nil {
		return nil, err
	}
	fn, err := o.Root.Function(a)
	if err != nil {
		return nil, err
	}
	d, err := open(ctx, fn, o)
	if err != nil {
		return nil, fmt.Errorf("%s: opening by VFIO: %w", a, err)
	}
	return d, nil
}

func open(ctx context.Context, fn *syspci.Function, o Options) (*Device, error) {
	if o.API == Auto && o.Space != nil {
		o.API = o.Space.Info().API // as the others
	}
	access := o.look(fn)
	if access.Err != nil {
		return nil, access.Err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d := &Device{
		k: o.kernel, log: o.Log, access: access, space: o.Space, pages: o.Pages,
		fd: -1, open: map[int]window{}, done: make(chan struct{}),
		fn: pci.Function{Addr: fn.Addr, ID: fn.ID},
	}
	if access.Unsafe {
		src, err := o.memory()
		if err != nil {
			return nil, fmt.Errorf("the no-IOMMU mode: %w", err)
		}
		d.phys = physmem.New(d.Address(), src)
	}
	own := d.space == nil
	if own {
		d.space = NewSpace()
	}
	if err := d.space.join(d, access, o); err != nil {
		if d.phys != nil {
			d.phys.Close()
		}
		return nil, err
	}
	if own {
		_ = d.space.Close() // it ends with its device
	}
	if err := d.setUp(fn, o); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	if access.Unsafe {
		d.log.Warn(d.errorf("no IOMMU confines it: DMA can overwrite anything").Error())
	}
	d.log.Debug(d.errorf("opened: IOMMU group %d, API %s", access.Group, access.API).Error())
	return d, nil
}

// setUp asks what the device has, and watches over it.
func (d *Device) setUp(fn *syspci.Function, o Options) error {
	if err := d.describeAll(fn.BARs); err != nil {
		return err
	}
	if b, err := os.ReadFile(o.Root.Path(d.fn.Addr, "irq")); err == nil {
		d.line, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	return d.watchEnd()
}

// describeAll asks the kernel what the device has, and leaves it as a driver wants it. known are its BARs as sysfs has them.
func (d *Device) describeAll(known []bus.RegionInfo) error {
	flags, _, _, err := d.k.deviceInfo(d.fd)
	switch {
	case err != nil:
		return fmt.Errorf("asking what the device has: %w", err)
	case flags&devicePCI == 0:
		return fmt.Errorf("the kernel says it is no PCI device (flags %#x): %w", flags, bus.ErrProtocol)
	}
	d.canReset = flags&deviceReset != 0
	if err := d.openConfig(); err != nil {
		return err
	}
	for i := range d.bars {
		if d.bars[i], err = d.regionInfo(i); err != nil {
			return err
		}
	}
	d.fn.BARs = d.describe(known)
	d.fn.Config, d.fn.Header = d.cfg, d.cfg.Read8(pci.CfgHeader)&^(1<<7)
	// A driver finds its registers decoded, and no DMA under way.
	var decode pci.Command
	for _, r := range d.fn.BARs {
		if r.Kind == bus.RegionIO {
			decode |= pci.CmdIO
		} else {
			decode |= pci.CmdMem
		}
	}
	pci.SetCommand(d.cfg, decode, pci.CmdMaster)
	return d.countVectors()
}

// regionInfo asks for a region; size 0 where there is none.
func (d *Device) regionInfo(index int) (regionInfo, error) {
	b, err := d.k.regionInfo(d.fd, uint32(index))
	if errors.Is(err, unix.EINVAL) {
		return regionInfo{}, nil
	}
	if err == nil {
		var r regionInfo
		if r, err = parseRegion(b, pageSize); err == nil {
			return r, nil
		}
	}
	return regionInfo{}, fmt.Errorf("asking for region %d: %w", index, err)
}

// describe lists the BARs: sizes as VFIO has them, the rest as sysfs or, where it has none,
// the BAR itself says.
func (d *Device) describe(known []bus.RegionInfo) []bus.RegionInfo {
	var out []bus.RegionInfo
	for i, r := range d.bars {
		if r.size == 0 {
			continue
		}
		info := bus.RegionInfo{Index: i}
		if k := slices.IndexFunc(known, func(k bus.RegionInfo) bool { return k.Index == i }); k >= 0 {
			info = known[k]
		} else if v := d.cfg.Read32(pci.CfgBAR0 + bus.Off(4*i)); v&1 != 0 {
			info.Kind = bus.RegionIO
		} else {
			info.Is64, info.Prefetch = v&0b110 == 0b100, v&(1<<3) != 0
		}
		info.Size = r.size
		out = append(out, info)
	}
	return out
}

// Address is "0000:03:00.0".
func (d *Device) Address() string { return d.fn.Addr.String() }

// Backend is "vfio", or "vfio:unsafe" where no IOMMU confines the device.
func (d *Device) Backend() string {
	if d.phys != nil {
		return "vfio:unsafe"
	}
	return "vfio"
}

// Function is the function as the machine has it: its address, ID, BARs with their addresses,
// config space. It is the caller's.
func (d *Device) Function() *pci.Function {
	f := d.fn
	f.BARs = slices.Clone(f.BARs)
	return &f
}

// Access is how the device was opened: its IOMMU group and the group's members, the device
// files.
func (d *Device) Access() Access { return *d.access }

// Space is what the device's addresses belong to; nil where it is borrowed.
func (d *Device) Space() *Space { return d.space }

// Config is the config space as vfio-pci shows it: BARs, interrupt line, MSI and MSI-X are the
// kernel's, and what is written to them changes nothing in the device.
func (d *Device) Config() bus.Config { return d.cfg }

// Regions lists the BARs that there are.
func (d *Device) Regions() []bus.RegionInfo { return slices.Clone(d.fn.BARs) }

// DMA is memory that the device reaches, and the other devices of its Space.
func (d *Device) DMA() bus.DMA {
	if d.phys != nil {
		return physical{d}
	}
	if d.lent != nil {
		return d.lent
	}
	return dmaOf{space: d.space, owner: d, pages: d.pages}
}

// Done is closed when the device is closed, failed, or was asked back.
func (d *Device) Done() <-chan struct{} { return d.done }

// Err says why it ended: bus.ErrClosed, or bus.ErrGone where the kernel asked it back or the
// bus reported an error.
func (d *Device) Err() error {
	if e := d.end.Load(); e != nil {
		return *e
	}
	return nil
}

func (d *Device) errorf(format string, args ...any) error {
	return fmt.Errorf(d.Address()+": "+format, args...)
}
