package vm

import (
	"encoding/json"
	"io"
	"maps"
	"slices"
)

// Config says what VM is wanted. The zero value is one of amd64 with an IOMMU and no devices.
type Config struct {
	Arch     string   // "amd64" or "arm64"; "": that of this machine
	Kernel   string   // folder with vmlinuz and lib/modules; "": what hack/kernel prints
	CPUs     int      // 0: 2
	MemoryMB int      // 0: 1024
	NoIOMMU  bool     // no virtual IOMMU
	Devices  []string // QEMU's arguments: "-device", "e1000e,id=nic0,...", "-netdev", ...
	Args     []string // more of the kernel's arguments
	Modules  []string // that can be loaded; what they need comes along
	Load     []string // that init loads
	Image    *Image   // what the VM has beside init and modules
	Console  io.Writer

	// Host is what tests in the VM may ask of the host beside what every VM offers, by name
	// (guest.AskHost). The result is sent as JSON.
	Host map[string]func(args json.RawMessage) (any, error)
}

// builtIn are modules that every VM has, and loads.
var (
	early    = []string{"virtio_pci", "virtio_console"}
	loaded   = []string{"fuse"}
	loadable = []string{"vfio-pci", "vfio_iommu_type1", "uio_pci_generic", "e1000", "e1000e", "pktgen", "tun"}
)

func (c Config) withDefaults() Config {
	if c.Arch == "" {
		c.Arch = hostArch
	}
	if c.CPUs == 0 {
		c.CPUs = 2
	}
	if c.MemoryMB == 0 {
		c.MemoryMB = 1024
	}
	if c.Image == nil {
		c.Image = &Image{}
	}
	return c
}

// load are the modules to load at boot, in order.
func (c *Config) load() []string { return slices.Concat(loaded, c.Load) }

// modules are all that the VM shall have.
func (c *Config) modules() []string { return slices.Concat(early, loaded, loadable, c.Load, c.Modules) }

// Image is the contents of a VM's root file system, beside what every VM has.
type Image struct {
	files map[string]entry // by path in the VM
}

// entry is a file, or a symbolic link.
type entry struct {
	from string // file of this machine
	data []byte // or contents
	link string // or where it leads
	mode uint64
}

func (i *Image) put(path string, e entry) {
	if i.files == nil {
		i.files = map[string]entry{}
	}
	i.files[inUsr(path)] = e
}

// clone is a copy that can be changed.
func (i *Image) clone() *Image { return &Image{files: maps.Clone(i.files)} }

// AddFile puts a file of this machine at path.
func (i *Image) AddFile(path, from string, mode uint64) { i.put(path, entry{from: from, mode: mode}) }

// AddData puts a file with these contents at path.
func (i *Image) AddData(path string, data []byte, mode uint64) {
	i.put(path, entry{data: data, mode: mode})
}

// AddLink puts a symbolic link at path.
func (i *Image) AddLink(path, to string) { i.put(path, entry{link: to}) }
