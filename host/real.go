package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
	"github.com/ring3dev/ring3/sysfs"
	"github.com/ring3dev/ring3/uio"
	"github.com/ring3dev/ring3/vfio"
)

// busOptions are the options that a backend keeps for itself, with their values, none for any; all others
// are the driver's.
var busOptions = map[string]map[string][]string{
	// tpm and state are of TPMs, fabric, node and owner of ivshmem-doorbell.
	"qemu": {"under": {}, "hotplug_mem": {}, "tpm": {"2.0", "1.2"}, "state": {}, "fabric": {}, "node": {}, "owner": {}},
	"sim":  {"under": {}, "hotplug_mem": {}},
	"vfio": {"api": {"group", "cdev"}, "noiommu": {"unsafe"}},
	"uio":  {"dma": {"unsafe"}, "tpm": {"2.0", "1.2"}},

	onFabric: {"node": {}, "ids": {"8", "16"}, "window": {}, "owner": {}},
}

// isHardware says whether a backend carries what is in this machine.
func isHardware(backend string) bool { return backend == "vfio" || backend == "uio" }

// checkHardware says what is wrong with the name of a device of such a backend.
func checkHardware(backend, device string) error {
	if !isHardware(backend) {
		return nil
	}
	if _, err := pci.ParseAddr(device); err == nil {
		return nil
	}
	want := "a PCI address, as in 0000:03:00.0"
	if backend == "uio" {
		if n, ok := strings.CutPrefix(device, "uio"); ok && n != "" && strings.Trim(n, "0123456789") == "" {
			return nil
		}
		want += ", or uio0"
	}
	return fmt.Errorf("%q: want %s ('ring3 ls --hw' lists what there is)", backend+":"+device, want)
}

// hardwareOf is the first of the devices named that is real hardware; "" if none is.
func (p *Plan) hardwareOf(names ...string) string {
	for _, n := range names {
		if d := p.find(n); d != nil && isHardware(d.Backend) {
			return n
		}
	}
	return ""
}

// real is one device of this machine, as a machine of its own.
type real struct {
	dev   bus.Device
	fn    *pci.Function
	facts *FunctionFacts // nil: this process may look
}

func (r *real) Device(string) (bus.Device, error)      { return r.dev, nil }
func (r *real) Function(string) (*pci.Function, error) { return r.fn, nil }
func (r *real) Done() <-chan struct{}                  { return r.dev.Done() }
func (r *real) Err() error                             { return r.dev.Err() }
func (r *real) Close() error                           { return r.dev.Close() }

// newReal takes a device that was opened. facts are what is known of its function; nil: it looks.
func newReal(dev bus.Device, fn *pci.Function, facts *FunctionFacts) (machine, error) {
	if fn == nil && len(bus.HardwareIDs(dev)) == 0 {
		err := fmt.Errorf("%s (%s): it is no PCI function, by which drivers are found: say tpm=2.0 or tpm=1.2 if it is a TPM; package uio serves all others", dev.Address(), dev.Backend())
		return nil, errors.Join(err, dev.Close())
	}
	var err error
	if facts == nil {
		fn.Parent = parentOf(syspci.Sys, fn.Addr)
	} else if fn.Parent, err = facts.parent(); err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	if _, ok := pci.FindExtCap(dev.Config(), pci.ExtCapAER); ok && fn.AER == nil {
		fn.AER = &pci.AERStats{}
	}
	return &real{dev: dev, fn: fn, facts: facts}, nil
}

// parentOf is the chain of bridges before a function, of which only the addresses are known,
// so that the function stands in our tree where it stands in the kernel's.
func parentOf(root syspci.Root, a pci.Addr) *pci.Function {
	at, err := filepath.EvalSymlinks(root.Path(a))
	if err != nil {
		return nil
	}
	var parent *pci.Function
	for _, name := range strings.Split(filepath.Dir(at), "/") {
		if strings.HasPrefix(name, "pci") {
			parent = nil // a root bus begins
		}
		if bridge, err := pci.ParseAddr(name); err == nil {
			parent = &pci.Function{Addr: bridge, Header: pci.HeaderBridge, Parent: parent}
		}
	}
	return parent
}

// kernelsAttrs are the files of a function that show what the kernel alone knows.
var kernelsAttrs = []string{"numa_node", "local_cpus", "local_cpulist", "msi_bus", "broken_parity_status", "ari_enabled", "driver_override"}

// asTheKernel shows what the kernel alone knows of a function of this machine as it does: where it
// stands among the CPUs, above all.
func (r *real) asTheKernel(dir *sysfs.Dir) {
	for _, name := range kernelsAttrs {
		if r.facts != nil {
			if v, ok := r.facts.Attrs[name]; ok {
				dir.Put(name, sysfs.Show(func() string { return v }))
			}
			continue
		}
		path := syspci.Sys.Path(r.fn.Addr, name)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		dir.Put(name, sysfs.Show(func() string {
			b, err := os.ReadFile(path)
			if err != nil {
				return "" // it was unplugged
			}
			return strings.TrimSuffix(string(b), "\n")
		}))
	}
}

func (s *System) planUIO(c Config, group []DeviceSpec, _ uint32) (starter, error) {
	d := group[0]
	return func(ctx context.Context) (machine, error) {
		o := uio.Options{DMAUnsafe: d.Bus["dma"] == "unsafe", Log: s.log}
		if v := d.Bus["tpm"]; v != "" {
			o.HardwareIDs = []string{tpmIDs[v]}
		}
		if named := c.Files[d.Name]; named != nil {
			var err error
			if o.Files, err = uio.FilesOf(d.Device, named); err != nil {
				return nil, fmt.Errorf("%s: %w", d.Name, err)
			}
			defer o.Files.Close()
		}
		dev, err := uio.Open(ctx, d.Device, o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.Name, err)
		}
		if err := s.took(ctx, d); err != nil {
			return nil, errors.Join(err, dev.Close())
		}
		return newReal(dev, dev.Function(), nil)
	}, nil
}

// vfioOptions are what a specification says about opening.
func vfioOptions(d DeviceSpec) vfio.Options {
	return vfio.Options{API: vfio.API(d.Bus["api"]), NoIOMMU: d.Bus["noiommu"] == "unsafe"}
}

func (s *System) planVFIO(c Config, group []DeviceSpec, _ uint32) (starter, error) {
	d := group[0]
	if c.Outside != nil && unconfined(d) == nil {
		return func(ctx context.Context) (machine, error) { return s.borrowVFIO(ctx, c.Outside, d) }, nil
	}
	o := vfioOptions(d)
	o.Log, o.Files, o.Space = s.log, c.Files[d.Name], s.spaceOf(d.Device)
	return func(ctx context.Context) (machine, error) {
		dev, err := vfio.Open(ctx, d.Device, o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.Name, err)
		}
		if unconfined(d) != nil {
			if err := s.took(ctx, d); err != nil {
				return nil, errors.Join(err, dev.Close())
			}
		}
		return newReal(dev, dev.Function(), nil)
	}, nil
}

// borrowVFIO takes a function that the supervisor holds.
func (s *System) borrowVFIO(ctx context.Context, out Outside, d DeviceSpec) (machine, error) {
	l, facts, err := out.VFIO(ctx, d.Device)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Name, err)
	}
	dev, err := vfio.Borrow(ctx, l, vfio.Options{Log: s.log})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Name, err)
	}
	return newReal(dev, dev.Function(), &facts)
}

// spaceOf is the address space for a function, which those of one IOMMU group share; nil where
// there is no group.
func (s *System) spaceOf(device string) *vfio.Space {
	a, err := pci.ParseAddr(device)
	if err != nil {
		return nil
	}
	f, err := syspci.Sys.Function(a)
	if err != nil || f.Group == syspci.NoGroup {
		return nil // opening it says why
	}
	if s.spaces[f.Group] == nil {
		if s.spaces == nil {
			s.spaces = map[int]*vfio.Space{}
		}
		s.spaces[f.Group] = vfio.NewSpace()
	}
	return s.spaces[f.Group]
}
