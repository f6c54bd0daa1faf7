package qemu

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/ring3dev/ring3/bus/pci"
)

// Binary is the QEMU that Start runs unless Config says otherwise.
const Binary = "qemu-system-x86_64"

// Config says what machine to start.
type Config struct {
	Binary  string       // a program or path; "" means Binary
	Devices []DeviceSpec // at least one
	Wires   [][2]string  // pairs of network device names that are connected
	Domain  uint32       // PCI domain of the machine's functions; 0 means DefaultDomain
	Log     *slog.Logger // nil discards
	// Started is told QEMU's process id as soon as there is one, so that somebody else can
	// see to its end too.
	Started func(pid int)
	// Reserve is what ports with hot-plug keep for what is plugged in later.
	Reserve pci.Reserve
	// Ejected is called when QEMU has removed a device: its name is free again, and its bus.Device has ended (bus.ErrGone). It is
	// called from one goroutine, which nothing else waits for but Close.
	Ejected func(name string)
}

// maxVectors is what one function can have: Table Size has 11 bits (PCI Express Base 5.0, 7.7.2.2).
const maxVectors = 2048

// vectors is how many interrupt messages the machine has eventfds for: 8 a device, and as many for what each port may get. Of very many
// devices not all can have so many.
func (c *Config) vectors() int {
	n := 16 + 8*len(c.Devices)
	for i := range c.Devices {
		if slices.Contains(hotPlugModels, c.Devices[i].Model) {
			n += 8
		}
	}
	return min(n, maxVectors)
}

// DefaultDomain is the PCI domain of a machine that is given none. Real machines rarely
// use any but 0, so its functions do not meet the machine's own.
const DefaultDomain = 0x1000

// DeviceSpec is one device of the machine.
type DeviceSpec struct {
	Name  string   // what the user calls it: letters, digits, '-', '_', '.'
	Model string   // QEMU's name of the model: "e1000e"
	Bus   string   // name of the port or bridge it stands under; "" is the root bus
	Props []string // further properties, "key=value", given to QEMU as they are
	// IOMMU gives the device an address space of its own: it reaches the memory that was
	// allocated for it, in the direction that was asked for, and nothing else.
	IOMMU bool
	// Capture receives the frames on the device's side of its wire, as pcap, or is
	// nil. It is the caller's to close, after the machine was closed.
	Capture *os.File
	// TPM is the emulator behind a model that is a TPM (IsTPM), nil for all others.
	TPM *TPM
	// Server is a connection to an ivshmem server, for the model ivshmem-doorbell; nil for all others. It is the caller's to
	// close, once the machine has started.
	Server *os.File
}

// ivshmemModel is the model that takes a Server, and ivshmemVectors how many interrupts it has.
const (
	ivshmemModel   = "ivshmem-doorbell"
	ivshmemVectors = 8
)

// networkModels are the models that take a netdev. QEMU does not say so without being
// run, and running it once more would cost as much as the start.
var networkModels = []string{
	"e1000", "e1000-82540em", "e1000-82544gc", "e1000-82545em", "e1000e", "igb",
	"i82550", "i82551", "i82557a", "i82557b", "i82557c", "i82558a", "i82558b", "i82559a",
	"i82559b", "i82559c", "i82559er", "i82562", "i82801",
	"ne2k_pci", "pcnet", "rocker", "rtl8139", "tulip", "vmxnet3",
	"virtio-net-pci", "virtio-net-pci-transitional", "virtio-net-pci-non-transitional",
}

// IsNetwork says whether a model is a network adapter that can be wired.
func IsNetwork(model string) bool { return slices.Contains(networkModels, model) }

// Bridges and ports, under which other devices may stand.
var bridgeModels = []string{
	"pcie-root-port", "ioh3420", "x3130-upstream", "xio3130-downstream", "pcie-pci-bridge", "pci-bridge", "i82801b11-bridge",
}

// Slots of the root bus. 0 is the host bridge, firstSlot-1 is ivshmem, and from 24 on the
// chipset routes INTx in other ways and has functions of its own.
const (
	ivshmemSlot = 2
	firstSlot   = 3
	lastSlot    = 23
)

const maxDevices = 256

func validName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for _, c := range s {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.", c)) {
			return false
		}
	}
	return true
}

// check checks what can be told of a device alone.
func (d *DeviceSpec) check() error {
	switch {
	case !validName(d.Name):
		return fmt.Errorf("qemu: device name %q: want letters, digits, '-', '_' or '.'", d.Name)
	case !validName(d.Model):
		return fmt.Errorf("qemu: %s: model %q: want the name of a QEMU device model", d.Name, d.Model)
	case d.IOMMU && slices.Contains(bridgeModels, d.Model):
		return fmt.Errorf("qemu: %s: model %s is a port or bridge: the IOMMU is for what stands below it", d.Name, d.Model)
	case d.Capture != nil && !IsNetwork(d.Model):
		return fmt.Errorf("qemu: %s: model %s is no network adapter, so there is nothing to capture", d.Name, d.Model)
	case (d.Server != nil) != (d.Model == ivshmemModel):
		return fmt.Errorf("qemu: %s: model %s: want an ivshmem server for %s, and for nothing else", d.Name, d.Model, ivshmemModel)
	}
	for _, p := range d.Props {
		k, _, ok := strings.Cut(p, "=")
		if !ok || !validName(k) {
			return fmt.Errorf("qemu: %s: property %q: want key=value", d.Name, p)
		}
		if slices.Contains([]string{"id", "addr", "bus", "netdev", "tpmdev"}, k) || d.Server != nil && slices.Contains([]string{"chardev", "vectors"}, k) {
			return fmt.Errorf("qemu: %s: property %q: this bus chooses %s itself", d.Name, p, k)
		}
	}
	return nil
}

func (c *Config) check() error {
	if len(c.Devices) == 0 || len(c.Devices) > maxDevices {
		return fmt.Errorf("qemu: %d devices: want 1 to %d", len(c.Devices), maxDevices)
	}
	seen, below := map[string]*DeviceSpec{}, map[string]string{}
	slots := 0
	for i := range c.Devices {
		d := &c.Devices[i]
		if err := d.check(); err != nil {
			return err
		}
		if seen[d.Name] != nil {
			return fmt.Errorf("qemu: two devices are named %s", d.Name)
		}
		if d.Bus == "" {
			if !IsTPM(d.Model) {
				slots++
			}
		} else if up := seen[d.Bus]; up == nil || !slices.Contains(bridgeModels, up.Model) {
			return fmt.Errorf("qemu: %s stands under %s, which is not a port or bridge named before it", d.Name, d.Bus)
		} else if first := below[d.Bus]; first != "" && HasSlot(up.Model) {
			return fmt.Errorf("qemu: %s stands under %s, where there is room for 1, which %s has", d.Name, d.Bus, first)
		}
		below[d.Bus] = d.Name
		seen[d.Name] = d
	}
	if slots > lastSlot-firstSlot+1 {
		return fmt.Errorf("qemu: %d devices on the root bus, which has %d free slots: put some under a pcie-root-port", slots, lastSlot-firstSlot+1)
	}
	if err := c.checkPlatform(); err != nil {
		return err
	}
	wired := map[string]string{}
	for _, w := range c.Wires {
		for i, name := range w {
			d := seen[name]
			switch {
			case d == nil:
				return fmt.Errorf("qemu: wire %s-%s: no device is named %s", w[0], w[1], name)
			case !IsNetwork(d.Model):
				return fmt.Errorf("qemu: wire %s-%s: %s (%s) is no network adapter", w[0], w[1], name, d.Model)
			case wired[name] != "":
				return fmt.Errorf("qemu: wire %s-%s: %s is wired to %s already", w[0], w[1], name, wired[name])
			}
			wired[name] = w[1-i]
		}
		if w[0] == w[1] {
			return fmt.Errorf("qemu: wire %s-%s: both ends are the same device", w[0], w[1])
		}
	}
	return nil
}

// files are the descriptors that QEMU inherits, in order; the first is number 3.
type files []*os.File

func (f *files) add(x *os.File) int {
	*f = append(*f, x)
	return 2 + len(*f)
}

// escape protects a value in one of QEMU's comma-separated options.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// placing is the arguments for all devices, and where each of them goes.
type placing struct {
	args  []string
	where []place // by device
}

// place is a slot on the root bus (parent -1) or under a device.
type place struct{ parent, slot int }

// deviceArgs renders the devices, their wires and captures as arguments.
func (c *Config) deviceArgs(inherit *files) placing {
	var p placing
	hub := map[string]int{}
	for i, w := range c.Wires {
		hub[w[0]], hub[w[1]] = i, i
	}
	next := firstSlot
	if c.iommu() {
		p.args = append(p.args, "-device", iommuModel+",intremap=off")
	}
	for i := range c.Devices {
		d := &c.Devices[i]
		if IsTPM(d.Model) {
			p.args = append(p.args, d.platformArgs(i, inherit)...)
			p.where = append(p.where, place{})
			continue
		}
		at := place{parent: -1, slot: next}
		where := fmt.Sprintf(",addr=%#x", next)
		if d.Bus != "" {
			at.parent = slices.IndexFunc(c.Devices, func(o DeviceSpec) bool { return o.Name == d.Bus })
			at.slot = c.under(d.Bus, i)
			where = fmt.Sprintf(",bus=dev%d,addr=%#x", at.parent, at.slot)
		} else {
			next++
		}
		p.where = append(p.where, at)
		if IsNetwork(d.Model) {
			h, ok := hub[d.Name]
			if !ok {
				h = len(c.Wires) + i
			}
			p.args = append(p.args, "-netdev", fmt.Sprintf("hubport,id=net%d,hubid=%d", i, h))
			if d.Capture != nil {
				p.args = append(p.args, "-object", fmt.Sprintf("filter-dump,id=cap%d,netdev=net%d,file=/dev/fd/%d,maxlen=65535", i, i, inherit.add(d.Capture)))
			}
		}
		if d.Server != nil {
			p.args = append(p.args, "-chardev", fmt.Sprintf("socket,id=server%d,fd=%d", i, inherit.add(d.Server)))
			where += fmt.Sprintf(",chardev=server%d,vectors=%d", i, ivshmemVectors)
		}
		p.args = append(p.args, "-device", d.option(strconv.Itoa(i), i, where))
	}
	return p
}

// option is a device as QEMU's -device has it: its identifiers end in key, it stands where that says, and a port is slot n+1.
func (d *DeviceSpec) option(key string, n int, where string) string {
	dev := fmt.Sprintf("%s,id=dev%s%s", d.Model, key, where)
	switch {
	case slices.Contains(hotPlugModels, d.Model):
		dev += fmt.Sprintf(",chassis=%d,slot=%d", n+1, n+1)
	case !slices.Contains(bridgeModels, d.Model):
		dev += ",romfile="
	}
	if IsNetwork(d.Model) {
		dev += ",netdev=net" + key
	}
	if d.IOMMU && strings.HasPrefix(d.Model, "virtio-") {
		// Else it goes past the IOMMU, and its driver need not know of one.
		dev += ",iommu_platform=on"
		if !strings.HasSuffix(d.Model, "transitional") {
			dev += ",disable-legacy=on"
		}
	}
	return dev + d.props()
}

// props are the further properties, as QEMU takes them.
func (d *DeviceSpec) props() (s string) {
	for _, kv := range d.Props {
		k, v, _ := strings.Cut(kv, "=")
		s += "," + k + "=" + escape(v)
	}
	return s
}

// iommu says whether any device is to stand behind the IOMMU.
func (c *Config) iommu() bool {
	return slices.ContainsFunc(c.Devices, func(d DeviceSpec) bool { return d.IOMMU })
}

// under is the device number of device i under the named port: how many stand there before it, and 1 more below a conventional
// bridge, whose hot-plug controller knows no slot 0.
func (c *Config) under(name string, i int) int {
	n := 0
	for _, d := range c.Devices[:i] {
		switch {
		case d.Name == name && strings.HasSuffix(d.Model, "pci-bridge"):
			n++
		case d.Bus == name:
			n++
		}
	}
	return n
}

// find looks the program up, with the remedy where it is missing.
func (c *Config) find() (string, error) {
	name := c.Binary
	if name == "" {
		name = Binary
	}
	path, err := exec.LookPath(name)
	if err != nil {
		var e *exec.Error
		if errors.As(err, &e) {
			err = e.Err
		}
		return "", fmt.Errorf("qemu: starting %s: %w: install QEMU (Debian, Ubuntu: apt-get install qemu-system-x86)", name, err)
	}
	return path, nil
}

// captured names the devices whose frames are captured.
func (c *Config) captured() []string {
	var names []string
	for _, d := range c.Devices {
		if d.Capture != nil {
			names = append(names, d.Name)
		}
	}
	return names
}

// deviceError is how QEMU complains of an argument of ours.
var deviceError = regexp.MustCompile(`^-device .*?\bid=dev([0-9]+)\b.*?: (.*)$`)

// inUsersWords says what QEMU complains of with the name that the user gave the device, and
// what to do about it; "" where it is about no device.
func (c *Config) inUsersWords(words string) string {
	if strings.Contains(words, "-device "+iommuModel) {
		return fmt.Sprintf("this QEMU has no usable IOMMU (%s): install Debian's qemu-system-x86, or leave the option iommu out", words)
	}
	m := deviceError.FindStringSubmatch(words)
	if m == nil {
		return ""
	}
	i, err := strconv.Atoi(m[1])
	if err != nil || i >= len(c.Devices) {
		return ""
	}
	d := c.Devices[i]
	return fmt.Sprintf("%s: model %s: %s%s", d.Name, d.Model, m[2], remedy(d.Model, m[2]))
}

// remedy says what to do about what QEMU complains of.
func remedy(model, words string) string {
	switch {
	case strings.Contains(words, "not a valid device model name"):
		return fmt.Sprintf(": '%s -device help' lists those that there are", Binary)
	case strings.Contains(words, "roperty"):
		return fmt.Sprintf(": '%s -device %s,help' lists its properties", Binary, model)
	}
	return ""
}
