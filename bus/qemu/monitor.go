package qemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// What a machine asks of its QEMU's owner, and what is answered.
type (
	plugArgs struct {
		Name  string   `json:"name"`
		Model string   `json:"model"`
		Bus   string   `json:"bus"`
		Props []string `json:"props"`
		IOMMU bool     `json:"iommu"`
	}
	plugReply struct {
		Key string `json:"key"`
	}
	ejectArgs struct {
		Name string `json:"name"`
	}
	injectArgs struct {
		Name   string    `json:"name"`
		Error  uint32    `json:"error"`
		Header [4]uint32 `json:"header"`
	}
	linkArgs struct {
		Name string `json:"name"` // QEMU's: net1
		Up   bool   `json:"up"`
	}
)

func (a plugArgs) spec() DeviceSpec {
	return DeviceSpec{Name: a.Name, Model: a.Model, Bus: a.Bus, Props: a.Props, IOMMU: a.IOMMU}
}

// pluggable are the models that somebody who is not trusted may plug in, besides network adapters and switches: none of them reaches a file, a
// socket or a device of the host's by any property but romfile.
var pluggable = []string{
	"x3130-upstream", "pcie-pci-bridge", "pci-bridge", "edu", "pci-testdev", "qemu-xhci", "nec-usb-xhci", "usb-ehci", "pci-ohci", "ich9-ahci", "pvscsi", "megasas", "mptsas1068",
	"sdhci-pci", "bochs-display", "intel-hda", "ich9-intel-hda", "virtio-rng-pci", "virtio-balloon-pci", "virtio-scsi-pci", "virtio-serial-pci", "virtio-keyboard-pci",
	"virtio-mouse-pci", "virtio-tablet-pci", "i6300esb", "ctucan_pci", "tpci200",
}

// hostProps are properties that name something outside of the machine.
var hostProps = []string{"romfile", "chardev", "netdev", "tpmdev", "drive", "memdev", "rng", "cryptodev", "fsdev", "iothread", "host", "hostmem", "sysfsdev", "evdev", "failover_pair_id", "x-config-file", "macaddr-file"}

// mayPlug says why somebody who is not trusted may not plug a device in.
func mayPlug(d *DeviceSpec) error {
	if !slices.Contains(pluggable, d.Model) && !IsNetwork(d.Model) {
		return fmt.Errorf("model %q is none that a driver's process may ask for: %w", d.Model, unix.EPERM)
	}
	if len(d.Props) > 64 {
		return fmt.Errorf("%d properties, want at most 64: %w", len(d.Props), unix.E2BIG)
	}
	for _, p := range d.Props {
		k, v, _ := strings.Cut(p, "=")
		// QEMU takes '_' for '-' in many names.
		k = strings.ToLower(k)
		bad := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/\,"'`, r) }
		if slices.Contains(hostProps, k) || slices.Contains(hostProps, strings.ReplaceAll(k, "_", "-")) || strings.HasPrefix(k, "vhost") || len(v) > 64 || strings.ContainsFunc(v, bad) {
			return fmt.Errorf("property %q is none that a driver's process may set: %w", p, unix.EPERM)
		}
	}
	return nil
}

// maxArgs is how long the arguments of a command may be.
const maxArgs = 16 << 10

// Execute does what somebody who is not trusted asks for, and nothing else: "plug" and "eject" a device, "inject" an error of PCI Express, and QMP's
// "set_link" and "query-status". What it refuses wraps EPERM; other errors are those of [Machine.Plug] and its like.
func (p *Process) Execute(cmd string, args json.RawMessage) (json.RawMessage, error) {
	r, err := p.execute(cmd, args)
	if err != nil {
		return nil, err
	}
	if r == nil {
		return json.RawMessage("{}"), nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("qemu: %s: %w", cmd, err)
	}
	return b, nil
}

func (p *Process) execute(cmd string, args json.RawMessage) (any, error) {
	if len(args) > maxArgs {
		return nil, fmt.Errorf("qemu: %.20q: %d bytes of arguments: %w", cmd, len(args), unix.E2BIG)
	}
	// What is read in full is checked; what has more in it is refused.
	read := func(to any) error {
		d := json.NewDecoder(bytes.NewReader(args))
		d.DisallowUnknownFields()
		if err := d.Decode(to); err != nil {
			return fmt.Errorf("qemu: %s: its arguments: %w (%w)", cmd, err, bus.ErrProtocol)
		}
		if _, err := d.Token(); err != io.EOF {
			return fmt.Errorf("qemu: %s: more than its arguments: %w", cmd, bus.ErrProtocol)
		}
		return nil
	}
	switch cmd {
	case "plug":
		var a plugArgs
		if err := read(&a); err != nil {
			return nil, err
		}
		spec := a.spec()
		if err := mayPlug(&spec); err != nil {
			return nil, fmt.Errorf("qemu: plugging %.64q: %w", a.Name, err)
		}
		key, err := p.plug(spec)
		return plugReply{key}, err
	case "eject":
		var a ejectArgs
		if err := read(&a); err != nil {
			return nil, err
		}
		return nil, p.eject(a.Name)
	case "inject":
		var a injectArgs
		if err := read(&a); err != nil {
			return nil, err
		}
		return nil, p.inject(a)
	case "set_link":
		var a linkArgs
		if err := read(&a); err != nil {
			return nil, err
		}
		if !p.hasNetdev(a.Name) {
			return nil, fmt.Errorf("qemu: set_link: no device has %.64q: %w", a.Name, unix.ENODEV)
		}
		return p.qmp.execute(cmd, a)
	case "query-status":
		return p.qmp.execute(cmd, nil)
	}
	return nil, fmt.Errorf("qemu: %.64q is none of the commands of a driver's process: %w", cmd, unix.EPERM)
}

// askPlug has the owner of QEMU plug a device in.
func (m *Machine) askPlug(a plugArgs) (key string, err error) {
	r, err := m.ask("plug", a)
	if err != nil {
		return "", err
	}
	var got plugReply
	if err := json.Unmarshal(r, &got); err != nil || got.Key == "" {
		return "", fmt.Errorf("qemu: plugging %s: the answer is %.100q: %w", a.Name, r, bus.ErrProtocol)
	}
	return got.Key, nil
}

// named finds a device that QEMU has.
func (p *Process) named(name string) *seat {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.seats {
		if s.spec.Name == name && s.ready {
			return s
		}
	}
	return nil
}

func (p *Process) hasNetdev(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.seats, func(s *seat) bool { return s.ready && IsNetwork(s.spec.Model) && s.netdev() == id })
}

// plug gives QEMU a device, in a slot that is empty.
func (p *Process) plug(spec DeviceSpec) (key string, err error) {
	p.mu.Lock()
	if p.shut {
		p.mu.Unlock()
		return "", fmt.Errorf("qemu: plugging %s: %w", spec.Name, bus.ErrClosed)
	}
	if err := checkPlug(&spec, p.seats, p.c.iommu()); err != nil {
		p.mu.Unlock()
		return "", err
	}
	p.plugs++
	s := &seat{spec: spec, serial: p.freeSerial(), key: fmt.Sprintf("p%d", p.plugs)}
	p.seats = append(p.seats, s)
	port := p.seats[slices.IndexFunc(p.seats, func(o *seat) bool { return o.spec.Name == spec.Bus })]
	p.mu.Unlock()

	err = p.add(s, port)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.seats = slices.DeleteFunc(p.seats, func(o *seat) bool { return o == s })
		return "", fmt.Errorf("qemu: plugging %s (%s) under %s: %w", spec.Name, spec.Model, spec.Bus, err)
	}
	return s.key, nil
}

// freeSerial is the lowest that no device has. Called with mu held.
func (p *Process) freeSerial() int {
	for n := 0; ; n++ {
		if !slices.ContainsFunc(p.seats, func(s *seat) bool { return s.serial == n }) {
			return n
		}
	}
}

// add gives QEMU a device. The human monitor takes the same words as the command line, whatever the type of a property.
func (p *Process) add(s, port *seat) error {
	if IsNetwork(s.spec.Model) {
		// Below the number of wires the numbers of hubs are theirs.
		if _, err := p.qmp.execute("netdev_add", map[string]any{"type": "hubport", "id": s.netdev(), "hubid": len(p.c.Wires) + s.serial}); err != nil {
			return err
		}
	}
	option := s.spec.option(s.key, s.serial, fmt.Sprintf(",bus=%s,addr=0", port.id()))
	said, err := p.qmp.monitor(`device_add "` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(option) + `"`)
	// It warns of a netdev without peer only, and else says nothing.
	if _, why, bad := strings.Cut(said, "Error: "); err == nil && bad {
		err = plugError(s.spec.Model, strings.TrimSpace(why))
	}
	p.mu.Lock()
	s.ready = err == nil
	p.mu.Unlock()
	if err != nil {
		p.dropNetdev(s)
	}
	return err
}

// plugError is what QEMU said, with the sentinel for it.
func plugError(model, why string) error {
	is := bus.ErrNotSupported
	if strings.Contains(why, "already occupied") || strings.Contains(why, "uplicate ID") || strings.Contains(why, "in use") || strings.Contains(why, "guest is busy") {
		is = bus.ErrBusy
	}
	return fmt.Errorf("%s%s: %w", why, remedy(model, why), is)
}

// dropNetdev takes the network side of a device away that is gone.
func (p *Process) dropNetdev(s *seat) {
	if !IsNetwork(s.spec.Model) {
		return
	}
	if _, err := p.qmp.execute("netdev_del", map[string]any{"id": s.netdev()}); err != nil && p.Err() == nil {
		p.log.Warn(fmt.Sprintf("qemu: %s: taking its network side away: %v", s.spec.Name, err))
	}
}

// eject presses a device's button: see Machine.Eject.
func (p *Process) eject(name string) error {
	s := p.named(name)
	if s == nil {
		return fmt.Errorf("qemu: ejecting %.64s: no device is named that: %w", name, unix.ENODEV)
	}
	if s.spec.Bus == "" {
		return fmt.Errorf("qemu: ejecting %s: it stands under no port: %w", name, bus.ErrNotSupported)
	}
	_, err := p.qmp.execute("device_del", map[string]any{"id": s.id()})
	var said *qmpError
	switch {
	case err == nil:
		p.mu.Lock()
		s.leaving = true
		p.mu.Unlock()
		select {
		case p.pressed <- struct{}{}:
		default:
		}
		return nil
	case !errors.As(err, &said):
	case strings.Contains(said.desc, "process of unplug") || strings.Contains(said.desc, "busy"):
		err = fmt.Errorf("%s: %w", said.desc, bus.ErrBusy)
	case strings.Contains(said.desc, "not found"):
		err = fmt.Errorf("%s: %w", said.desc, bus.ErrGone)
	default:
		err = fmt.Errorf("%s: %w", said.desc, bus.ErrNotSupported)
	}
	return fmt.Errorf("qemu: ejecting %s: %w", name, err)
}

// event is told what QEMU tells by itself, by the QMP client's reader. There are never more devices on their way out than
// fit.
func (p *Process) event(e qmpEvent) {
	switch {
	case e.Event == "DEVICE_DELETED" && strings.HasPrefix(e.Data.Device, "dev"):
		select {
		case p.deleted <- e.Data.Device:
			return
		default:
		}
	case e.Event == "RESET" && (e.Data.Reason == "" || e.Data.Reason == resetReason):
		select {
		case p.resets <- struct{}{}:
		default:
		}
	}
	p.log.Debug("qemu: event " + e.Event + " " + e.Data.Device)
}

// resetReason is of a reset that was asked for here. A device can ask for one as well.
const resetReason = "host-qmp-system-reset"

// watchEjects cleans up after devices that QEMU has removed.
func (p *Process) watchEjects() {
	var look <-chan time.Time
	for {
		select {
		case id := <-p.deleted:
			p.removed(id)
		case <-p.pressed:
			look = time.After(ejectLook)
		case <-look:
			if look = nil; p.lookForEjected() {
				look = time.After(ejectLook)
			}
		case <-p.closing:
			return
		case <-p.child.Done():
			return
		}
	}
}

// ejectLook is how often QEMU is asked for what is being ejected: of some models (qemu-xhci, bochs-display) it keeps something back, and
// never says that they are gone.
const ejectLook = 250 * time.Millisecond

// lookForEjected finds devices that are gone without a word. It says whether any is still on its way.
func (p *Process) lookForEjected() (more bool) {
	p.mu.Lock()
	var ids []string
	for _, s := range p.seats {
		if s.ready && s.leaving {
			ids = append(ids, s.id())
		}
	}
	p.mu.Unlock()
	if len(ids) == 0 {
		return false
	}
	r, err := p.qmp.execute("qom-list", map[string]any{"path": "/machine/peripheral"})
	var there []struct{ Name string }
	if err != nil || json.Unmarshal(r, &there) != nil {
		return p.Err() == nil
	}
	for _, id := range ids {
		if !slices.ContainsFunc(there, func(x struct{ Name string }) bool { return x.Name == id }) {
			p.removed(id)
		}
	}
	return true
}

// removed cleans up after one that QEMU has removed.
func (p *Process) removed(id string) {
	p.mu.Lock()
	i := slices.IndexFunc(p.seats, func(s *seat) bool { return s.ready && s.id() == id })
	if i < 0 {
		p.mu.Unlock()
		return
	}
	s := p.seats[i]
	s.ready = false
	p.mu.Unlock()
	p.dropNetdev(s)
	p.mu.Lock()
	p.seats = slices.DeleteFunc(p.seats, func(o *seat) bool { return o == s })
	p.mu.Unlock()
	p.tell(Event{Removed: s.spec.Name, Key: s.key})
}
