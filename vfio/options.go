package vfio

import (
	"log/slog"
	"os"

	"github.com/ring3dev/ring3/internal/physmem"
	"github.com/ring3dev/ring3/internal/syspci"
)

// API is a way to open a device.
type API string

// The ways. Auto is Cdev where the kernel has it and this process may use it, else Group.
const (
	Auto  API = ""
	Group API = "group" // /dev/vfio/N and the container /dev/vfio/vfio
	Cdev  API = "cdev"  // /dev/vfio/devices/vfioN and iommufd, /dev/iommu
)

// Pages says what pages DMA memory is made of.
type Pages uint8

// Kinds of pages.
const (
	// PagesAuto: huge pages of the pool that root reserved (nr_hugepages), where there are some
	// free and little is wasted; else memory that the kernel may make of huge pages by itself.
	// Small pieces share one.
	PagesAuto Pages = iota
	// PagesSmall: none but the smallest.
	PagesSmall
)

// Options are what Open may be told. The zero value serves.
type Options struct {
	API API
	// NoIOMMU opens a device that nothing confines: the kernel's no-IOMMU mode, which needs
	// CAP_SYS_RAWIO, and CAP_SYS_ADMIN for physical addresses. Its DMA can overwrite anything,
	// and does where the driver is mistaken.
	NoIOMMU bool
	// Space is what the device's addresses belong to; nil is one of its own. Devices of
	// one IOMMU group must share one.
	Space *Space
	Pages Pages
	// Files are device files that are open already, by path: a privileged process opens what
	// Access.Paths lists and passes it on. They stay the caller's.
	Files map[string]*os.File
	Log   *slog.Logger // nil discards
	// Root is where sysfs is; "" is /sys.
	Root syspci.Root

	kernel kernel // tests have their own
	// memory is what DMA is from where nothing translates; tests have a model.
	memory func() (physmem.Source, error)
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Root == "" {
		o.Root = syspci.Sys
	}
	if o.kernel == nil {
		o.kernel = linux{}
	}
	if o.memory == nil {
		o.memory = physmem.Open
	}
	return o
}
