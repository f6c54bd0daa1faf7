package vm

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// Config says what VM is wanted. The zero value is one of this machine's architecture with an
// IOMMU and no devices.
type Config struct {
	QEMU        string        // the program; "": what the architecture's is called
	Arch        string        // "amd64" or "arm64"; "": that of this machine
	Kernel      string        // folder with vmlinuz and lib/modules; "": what hack/kernel prints
	CPUs        int           // 0: 2
	MemoryMB    int           // 0: 1024
	NoIOMMU     bool          // no virtual IOMMU
	Devices     []string      // QEMU's arguments: "-device", "e1000e,id=nic0,...", "-netdev", ...
	TPM         *TPM          // /dev/tpm0; nil: none
	Args        []string      // more of the kernel's arguments
	Modules     []string      // more that can be loaded; what they need comes along
	Load        []string      // more that init loads
	Shell       string        // a program for a terminal, which init runs; its end is the VM's (see Shell)
	Image       *Image        // what the VM has beside init and modules
	BootTimeout time.Duration // 0: BootTimeout
	Console     io.Writer     // gets what the console says; nil: nobody, or stderr where RING3_VM_CONSOLE is set
	Log         io.Writer     // gets what the runner says; nil: stderr

	// Host is what tests in the VM may ask of the host beside what every VM offers, by name
	// (guest.AskHost). The result is sent as JSON.
	Host map[string]func(args json.RawMessage) (any, error)
}

// Modules that every VM has: those that the channel to the host needs, those that are
// loaded after them, and those that can be loaded.
var (
	early    = []string{"virtio_pci", "virtio_console"}
	loaded   = []string{"fuse"}
	loadable = []string{"vfio-pci", "vfio_iommu_type1", "uio_pci_generic", "e1000", "e1000e", "pktgen", "tun"}
)

func (c Config) withDefaults() Config {
	c.Arch = orHost(c.Arch)
	if c.CPUs == 0 {
		c.CPUs = 2
	}
	if c.MemoryMB == 0 {
		c.MemoryMB = 1024
	}
	if c.Image == nil {
		c.Image = &Image{}
	}
	if c.Console == nil && os.Getenv("RING3_VM_CONSOLE") != "" {
		c.Console = os.Stderr
	}
	if c.Log == nil {
		c.Log = os.Stderr
	}
	return c
}

func (c *Config) logf(format string, args ...any) {
	fmt.Fprintf(c.Log, "vm: "+format+"\n", args...)
}

// load are the modules to load at boot, in order.
func (c *Config) load() []string { return slices.Concat(loaded, c.Load) }

// modules are all that the VM shall have.
func (c *Config) modules() []string { return slices.Concat(early, loaded, loadable, c.Load, c.Modules) }
