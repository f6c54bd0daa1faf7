package vfio

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/internal/physmem"
	"github.com/ring3dev/ring3/internal/physmem/physmemtest"
)

const remedy = "sudo ring3 bind 0000:03:00.0 --driver vfio-pci --owner $USER"

// What may be wrong is told with its remedy, on one line, by Open and, as far as it can be known
// without opening, by Look.
func TestOpenErrors(t *testing.T) {
	for _, c := range []struct {
		name   string
		make   func(f *fake, o *Options)
		addr   string
		want   error
		says   []string
		unseen bool // Look cannot know
	}{
		{name: "no address", addr: "3:0.0", says: []string{`"3:0.0"`, "dddd:bb:dd.f"}},
		{name: "no such function", addr: "0000:09:00.0", want: bus.ErrGone, says: []string{"lspci -D"}},
		{
			name: "at a kernel driver", want: bus.ErrBusy, says: []string{"the kernel's driver e1000e has it", remedy},
			make: func(f *fake, _ *Options) { f.link("bus/pci/devices/"+addr+"/driver", "drivers/e1000e") },
		},
		{
			name: "no driver, no module", want: bus.ErrNotSupported, says: []string{"no driver has it", "sudo modprobe vfio-pci", remedy},
			make: func(f *fake, _ *Options) {
				_ = os.Remove(f.root + "/bus/pci/devices/" + addr + "/driver")
				_ = os.RemoveAll(f.root + "/bus/pci/drivers/vfio-pci")
			},
		},
		{
			name: "no IOMMU", want: bus.ErrNoIOMMU, says: []string{"no IOMMU group", "intel_iommu=on"},
			make: func(f *fake, _ *Options) { _ = os.Remove(f.root + "/bus/pci/devices/" + addr + "/iommu_group") },
		},
		{
			name: "bridge", want: bus.ErrNotSupported, says: []string{"bridge", "uio_pci_generic"},
			make: func(f *fake, _ *Options) { f.write("bus/pci/devices/"+addr+"/class", "0x060400") },
		},
		{
			name: "no permission", want: fs.ErrPermission, says: []string{"no permission on /dev/vfio/7", remedy},
			make: func(f *fake, _ *Options) { f.denied["/dev/vfio/7"] = unix.EACCES },
		},
		{
			name: "no VFIO", want: fs.ErrNotExist, says: []string{"/dev/vfio/vfio is not there", "sudo modprobe vfio-pci"},
			make: func(f *fake, _ *Options) { f.denied["/dev/vfio/vfio"] = unix.ENOENT },
		},
		{
			name: "gone from the group's file", want: bus.ErrGone, says: []string{"/dev/vfio/7 is not there", remedy},
			make: func(f *fake, _ *Options) { f.denied["/dev/vfio/7"] = unix.ENOENT },
		},
		{
			name: "gone after the group was opened", want: bus.ErrGone, says: []string{"let go of the device"}, unseen: true,
			make: func(f *fake, _ *Options) { f.funcs[addr].dead = true },
		},
		{
			name: "group busy", want: bus.ErrBusy, says: []string{"IOMMU group 7 is in use, by another process"}, unseen: true,
			make: func(f *fake, o *Options) { o.kernel = busy{f} },
		},
		{
			name: "members elsewhere", want: bus.ErrBusy, says: []string{"group 7 has members", "0000:03:00.1 (driver snd), 0000:03:00.3 (driver ohci)"},
			make: func(f *fake, _ *Options) {
				f.add("0000:03:00.1", 7, "snd")
				f.add("0000:03:00.2", 7, "")
				f.add("0000:03:00.3", 7, "ohci")
				f.add("0000:03:00.4", 7, "pcieport")
				f.write("bus/pci/devices/0000:03:00.4/class", "0x060400")
				f.groups[7].viable = false
			},
		},
		{
			name: "not viable", want: bus.ErrBusy, says: []string{"group 7 has members"}, unseen: true,
			make: func(f *fake, _ *Options) { f.groups[7].viable = false },
		},
		{
			name: "no cdev", want: bus.ErrNotSupported, says: []string{"CONFIG_VFIO_DEVICE_CDEV", "/dev/vfio/7"},
			make: func(f *fake, o *Options) {
				f.write("bus/pci/devices/"+addr+"/vfio-dev/vfio0/uevent", "") // as Debian's 6.1 has
				o.API = Cdev
			},
		},
		{name: "unknown API", want: bus.ErrNotSupported, says: []string{`API "x"`}, make: func(_ *fake, o *Options) { o.API = "x" }},
		{
			name: "no permission on the cdev", want: fs.ErrPermission, says: []string{"no permission on /dev/vfio/devices/vfio7", remedy},
			make: func(f *fake, o *Options) {
				f.withCdev(addr, 7)
				o.API = Cdev
				f.denied["/dev/vfio/devices/vfio7"] = unix.EACCES
			},
		},
		{
			name: "no permission on iommufd", want: fs.ErrPermission, says: []string{"sudo chown $USER /dev/iommu"},
			make: func(f *fake, o *Options) {
				f.withCdev(addr, 7)
				o.API = Cdev
				f.denied["/dev/iommu"] = unix.EACCES
			},
		},
		{
			name: "cdev, no other way", want: fs.ErrPermission, says: []string{"no permission on /dev/vfio/devices/vfio7"},
			make: func(f *fake, _ *Options) {
				f.withCdev(addr, 7)
				f.denied["/dev/vfio/devices/vfio7"] = unix.EACCES
				f.denied["/dev/vfio/7"] = unix.ENOENT
			},
		},
		{
			name: "cdev, group in use", want: bus.ErrBusy, says: []string{"IOMMU group 7 is in use"}, unseen: true,
			make: func(f *fake, o *Options) {
				f.withCdev(addr, 7)
				f.groups[7].viable = false
			},
		},
		{
			name: "no-IOMMU mode unasked", want: bus.ErrNoIOMMU, says: []string{"noiommu=unsafe"},
			make: func(f *fake, _ *Options) { f.write("kernel/iommu_groups/7/name", "vfio-noiommu\n") },
		},
		{
			name: "no-IOMMU mode asked for beside an IOMMU", want: bus.ErrNotSupported, says: []string{"an IOMMU confines it"},
			make: func(_ *fake, o *Options) { o.NoIOMMU = true },
		},
		{
			name: "no-IOMMU mode, not root", want: fs.ErrPermission, says: []string{"/dev/vfio/noiommu-7", "CAP_SYS_RAWIO"},
			make: func(f *fake, o *Options) {
				f.write("kernel/iommu_groups/7/name", "vfio-noiommu\n")
				o.NoIOMMU = true
				f.denied["/dev/vfio/noiommu-7"] = unix.EPERM
			},
		},
		{
			name: "ended", want: context.Canceled, unseen: true,
			make: func(_ *fake, o *Options) {},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			bustest.NoLeaks(t)
			f := newFake(t)
			f.add(addr, 7, "vfio-pci")
			o := f.options()
			if c.make != nil {
				c.make(f, &o)
			}
			a := c.addr
			if a == "" {
				a = addr
			}
			ctx := t.Context()
			if c.name == "ended" {
				done, cancel := context.WithCancel(ctx)
				cancel()
				ctx = done
			}
			d, err := Open(ctx, a, o)
			if d != nil {
				_ = d.Close()
				t.Fatal("Open gave a device")
			}
			check := func(what string, err error) {
				if err == nil || c.want != nil && !errors.Is(err, c.want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s = %v, want one line that wraps %v", what, err, c.want)
					return
				}
				for _, s := range c.says {
					if !strings.Contains(err.Error(), s) {
						t.Errorf("%s = %v, want it to say %q", what, err, s)
					}
				}
			}
			check("Open", err)
			look, err := Look(a, o)
			if look != nil {
				err = look.Err
			}
			if !c.unseen {
				check("Look", err)
			} else if err != nil {
				t.Errorf("Look = %v, want nothing", err)
			}
		})
	}
}

// busy is a kernel where another process has all groups.
type busy struct{ *fake }

func (b busy) open(path string) (int, error) {
	if strings.HasPrefix(path, "/dev/vfio/7") {
		return -1, unix.EBUSY
	}
	return b.fake.open(path)
}

func TestHolder(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "group")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if got := holderOf([]string{"/dev/x", file.Name()}); !strings.HasPrefix(got, ", by this process") {
		t.Errorf("holder of a file that is open here = %q", got)
	}
	if got := holderOf([]string{"/dev/vfio/nobody"}); got != ", by another process" {
		t.Errorf("holder of nobody's file = %q", got)
	}
}

// Which way in is taken, and which files.
func TestChoose(t *testing.T) {
	for _, c := range []struct {
		name   string
		cdev   bool
		denied []string
		api    API
		want   API
		path   string
	}{
		{"no cdev", false, nil, Auto, Group, "/dev/vfio/7"},
		{"cdev", true, nil, Auto, Cdev, "/dev/vfio/devices/vfio7"},
		{"cdev, told", true, nil, Group, Group, "/dev/vfio/7"},
		{"no iommufd for this user", true, []string{"/dev/iommu"}, Auto, Group, "/dev/vfio/7"},
		{"no cdev for this user", true, []string{"/dev/vfio/devices/vfio7"}, Auto, Group, "/dev/vfio/7"},
		{"nothing for this user", true, []string{"/dev/vfio/devices/vfio7", "/dev/vfio/7"}, Auto, Group, "/dev/vfio/7"},
	} {
		f := newFake(t)
		f.add(addr, 7, "mlx5_vfio_pci")
		if c.cdev {
			f.withCdev(addr, 7)
		}
		for _, p := range c.denied {
			f.denied[p] = unix.EACCES
		}
		o := f.options()
		o.API = c.api
		a, err := Look(addr, o)
		if err != nil || a.API != c.want || len(a.Paths) != 2 || a.Paths[1] != c.path || a.Group != 7 || a.Driver != "mlx5_vfio_pci" || len(a.Members) != 1 || (a.Err != nil) != (len(c.denied) == 2) {
			t.Errorf("%s: Look = %+v, %v, want %s by %s", c.name, a, err, c.path, c.want)
		}
	}
}

// What nothing confines is opened when it is asked for, and says so.
func TestNoIOMMU(t *testing.T) {
	f := newFake(t)
	f.add(addr, 7, "vfio-pci")
	f.write("kernel/iommu_groups/7/name", "vfio-noiommu\n")
	o := f.options()
	o.NoIOMMU = true
	o.Log = bustest.Log(t)
	r := &physmemtest.RAM{T: t, Huge: physmemtest.HugeAt(100, 8)}
	o.memory = func() (physmem.Source, error) { return r, nil }
	d := f.mustOpen(t, addr, o)
	if d.Backend() != "vfio:unsafe" || !d.Access().Unsafe || d.Access().Paths[1] != "/dev/vfio/noiommu-7" {
		t.Errorf("Backend = %q, Access = %+v, want it unsafe", d.Backend(), d.Access())
	}
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 8192, Mask: 1<<28 - 1})
	if err != nil || m.IOVA < 100*physmem.HugeSize || m.IOVA >= 108*physmem.HugeSize {
		t.Errorf("Alloc = %v, %v, want an address in physical memory", m, err)
	}
	if _, err := d.DMA().Map(make([]byte, 4096), bus.DMARequest{}); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Map = %v, want ErrNotSupported", err)
	}
	if got := fmt.Sprint(f.trace); !strings.Contains(got, "setIOMMU 8") || strings.Contains(got, "iommuInfo") {
		t.Errorf("the kernel was asked %s, want no IOMMU", got)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	m.Bytes[0] = 1 // the driver's until it frees it
	m.Free()
	r.Check(t, 8)
	if _, err := d.DMA().Alloc(bus.DMARequest{Size: 1}); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Alloc after Close = %v, want ErrClosed", err)
	}
	o.memory = func() (physmem.Source, error) { return nil, unix.EPERM }
	if _, err := Open(t.Context(), addr, o); !errors.Is(err, unix.EPERM) {
		t.Errorf("Open by one who is told no physical addresses = %v, want EPERM", err)
	}
}
