package qemu

import (
	"fmt"
	"os"
	"slices"

	"github.com/ring3dev/ring3/bus"
)

// TPM is what stands behind a model tpm-tis or tpm-crb: an emulator such as swtpm.
type TPM struct {
	// Control is a connected socket to the emulator's control channel (swtpm's --ctrl). QEMU
	// inherits it; it stays the caller's, who may close it once Start returned.
	Control *os.File
	// HardwareID is what firmware would call the device: "MSFT0101" for TPM 2.0, "PNP0C31" for
	// TPM 1.2.
	HardwareID string
	// Number is what distinguishes it from others of that ID in other machines: of MSFT0101:01 it is 1.
	Number int
	// Trace, if not nil, gets a line of QEMU's for each access to a register of tpm-tis.
	Trace *os.File
}

// platformModel is a model on QEMU's ISA bus, at an address of its own.
type platformModel struct {
	base, size uint64
	line       int // IOAPIC input; 0: it does not interrupt
}

// The registers of a TPM (TIS 1.3, 5.1; QEMU's docs/specs/tpm), and the line that QEMU's tpm-tis has
// unless told otherwise.
var platformModels = map[string]platformModel{
	"tpm-tis": {base: 0xfed40000, size: 0x5000, line: 5},
	"tpm-crb": {base: 0xfed40000, size: 0x1000},
}

// IsTPM says whether a model is a TPM, which needs an emulator: DeviceSpec.TPM.
func IsTPM(model string) bool { _, ok := platformModels[model]; return ok }

// checkPlatform checks what only such models have.
func (c *Config) checkPlatform() error {
	var first *DeviceSpec
	for i := range c.Devices {
		d := &c.Devices[i]
		switch {
		case !IsTPM(d.Model) && d.TPM != nil:
			return fmt.Errorf("qemu: %s: model %s is no TPM", d.Name, d.Model)
		case !IsTPM(d.Model):
			continue
		case d.TPM == nil || d.TPM.Control == nil:
			return fmt.Errorf("qemu: %s: model %s needs an emulator behind it", d.Name, d.Model)
		case d.Bus != "" || d.IOMMU:
			return fmt.Errorf("qemu: %s: model %s is no PCI device: it stands under no port, and behind no IOMMU", d.Name, d.Model)
		case first != nil:
			return fmt.Errorf("qemu: %s and %s: a machine has one TPM at most", first.Name, d.Name)
		}
		first = d
	}
	return nil
}

// platformArgs are the arguments of such a device.
func (d *DeviceSpec) platformArgs(i int, inherit *files) []string {
	dev := fmt.Sprintf("%s,id=dev%d,tpmdev=tpm%d%s", d.Model, i, i, d.props())
	args := []string{
		"-chardev", fmt.Sprintf("socket,id=tpmctl%d,fd=%d", i, inherit.add(d.TPM.Control)),
		"-tpmdev", fmt.Sprintf("emulator,id=tpm%d,chardev=tpmctl%d", i, i),
		"-device", dev,
	}
	if t := d.TPM.Trace; t != nil {
		args = append(args, "-trace", "tpm_tis_mmio_read", "-trace", "tpm_tis_mmio_write", "-D", fmt.Sprintf("/dev/fd/%d", inherit.add(t)))
	}
	return args
}

// newPlatformDevice is the device of a model that is no PCI function. Its config space is empty.
func newPlatformDevice(m *Machine, spec DeviceSpec) *device {
	p := platformModels[spec.Model]
	d := &device{m: m, spec: spec, done: make(chan struct{}), line: p.line, ids: []string{spec.TPM.HardwareID}}
	d.address = fmt.Sprintf("%s:%02x", spec.TPM.HardwareID, spec.TPM.Number)
	d.regions = []bus.RegionInfo{{Kind: bus.RegionMem, Size: p.size, Addr: p.base}}
	d.cfg = &config{m: m, dev: d}
	d.follow()
	return d
}

// HardwareIDs are none for a PCI function; bus.Platform.
func (d *device) HardwareIDs() []string { return slices.Clone(d.ids) }

// platform says whether the device is no PCI function.
func (d *device) platform() bool { return d.fn == nil }
