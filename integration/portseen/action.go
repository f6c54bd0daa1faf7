package portseen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Player does to the hardware what files cannot. In the VM it is QEMU's monitor, on the host; for ring3 these are ring3 plug,
// ring3 unplug, and whatever makes the hardware report an error.
type Player interface {
	// Address is where a port of the root complex stands, "0000:00:04.0".
	Address(name string) (string, error)
	// Plug puts a device into a port's slot.
	Plug(name, model, port string) error
	// Unplug presses the button of the slot that a device is in, and returns at once.
	Unplug(name string) error
	// Unplugged tells whether the hardware let a device go.
	Unplugged(name string) (bool, error)
	// Inject has a device report an error by its name in QEMU's monitor (pcie_aer_inject_error), with these words of a header. With
	// ErrByRecord the recorder does it by a record instead.
	Inject(name, bit string, header []uint32) error
}

// Action is something that an event does.
type Action interface {
	// do does it. What it is and the result are written down; an error that is no errno ends the recording.
	do(r *Recorder) error
	String() string
}

// Plug puts a device of the topology into its slot.
type Plug struct{ Name, Port string }

func (a Plug) String() string { return "plug " + a.Name + " into " + a.Port }

func (a Plug) do(r *Recorder) error { return r.Player.Plug(a.Name, model(a.Name), a.Port) }

// Unplug presses the button.
type Unplug struct{ Name string }

func (a Unplug) String() string { return "unplug " + a.Name + " by its button" }

func (a Unplug) do(r *Recorder) error { return r.Player.Unplug(a.Name) }

// Pause lets time pass, so that two things come in one order.
type Pause struct{ For time.Duration }

func (a Pause) String() string { return fmt.Sprintf("wait %v", a.For) }

func (a Pause) do(*Recorder) error { <-time.After(a.For); return nil }

// Func is something that only whoever plays can do.
type Func struct {
	What string
	Do   func() error
}

func (a Func) String() string { return a.What }

func (a Func) do(*Recorder) error { return a.Do() }

// Inject has the hardware report an error.
type Inject struct {
	Device, Bit string
	Header      []uint32
}

func (a Inject) String() string {
	return strings.TrimSuffix(fmt.Sprintf("inject %s at %s %x", a.Bit, a.Device, a.Header), " []")
}

func (a Inject) do(r *Recorder) error {
	err := r.Player.Inject(a.Device, a.Bit, a.Header)
	if !errors.Is(err, ErrByRecord) {
		return err
	}
	rec, err := a.record()
	if err != nil {
		return err
	}
	r.unsaid = byRecord
	return rec.do(r)
}

// byRecord is in the line that is logged of a record.
const byRecord = "aer_inject: Injecting errors"

// Write writes to a file below /sys, with one write. {NAME} is a device's address.
type Write struct{ Path, Value string }

func (a Write) String() string { return fmt.Sprintf("write %s %q", a.Path, a.Value) }

func (a Write) do(r *Recorder) error {
	return write(filepath.Join(r.Roots.Sys, r.names.expand(a.Path)), []byte(r.names.expand(a.Value)))
}

// write is one write(2), whatever it returns.
func write(path string, p []byte) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	n, err := unix.Write(fd, p)
	if err == nil && n != len(p) {
		return fmt.Errorf("%s: wrote %d bytes of %d", path, n, len(p))
	}
	return err
}

// Record writes a record of the aer-inject tool's to /dev/aer_inject: bus, device, function, the status registers, a header,
// and the domain.
type Record struct {
	Device     string
	Uncor, Cor uint32
	Header     [4]uint32
}

func (a Record) String() string {
	return fmt.Sprintf("aer_inject %s uncor %08x cor %08x header %x", a.Device, a.Uncor, a.Cor, a.Header)
}

func (a Record) do(r *Recorder) error { return a.Write(r.Roots.Dev, r.names.address[a.Device]) }

// Write writes the record for a device at an address to the file in a folder that stands for /dev.
func (a Record) Write(folder, address string) error {
	var domain uint32
	var bus, dev, fn uint8
	if _, err := fmt.Sscanf(address, "%04x:%02x:%02x.%x", &domain, &bus, &dev, &fn); err != nil {
		return fmt.Errorf("address of %s: %w", a.Device, err)
	}
	p := binary.NativeEndian.AppendUint32([]byte{bus, dev, fn, 0}, a.Uncor)
	p = binary.NativeEndian.AppendUint32(p, a.Cor)
	for _, h := range a.Header {
		p = binary.NativeEndian.AppendUint32(p, h)
	}
	return write(filepath.Join(folder, "aer_inject"), binary.NativeEndian.AppendUint32(p, domain))
}

// Register is a register in a capability.
type Register struct {
	Name     string
	extended bool
	id       uint16
	offset   int
	width    int
}

// Registers that events change (PCI Express Base Specification, 7.5.3 and 7.8.4).
var (
	AERSeverity = Register{"uncorrectable error severity", true, 1, 0x0c, 4}
	AERCorMask  = Register{"correctable error mask", true, 1, 0x14, 4}
	SlotControl = Register{"slot control", false, 0x10, 0x18, 2}
	slotStatus  = Register{"slot status", false, 0x10, 0x1a, 2}
)

// Config changes bits of a register through a device's file config.
type Config struct {
	Device      string
	Register    Register
	Mask, Value uint32
}

func (a Config) String() string {
	return fmt.Sprintf("set %s of %s: %#x of %#x", a.Register.Name, a.Device, a.Value, a.Mask)
}

func (a Config) do(r *Recorder) error {
	return r.register(a.Device, a.Register, func(v uint32) uint32 { return v&^a.Mask | a.Value })
}

// slotHPIE is Hot-Plug Interrupt Enable in Slot Control; slotEvents are the events in Slot Status, but for Command Completed, which whoever writes
// commands waits for.
const (
	slotHPIE   = 1 << 5
	slotEvents = 0x10f
)

// ClearSlot clears the events of a slot that are pending, and no others: QEMU sets all again where one is cleared that was not set.
type ClearSlot struct{ Port string }

func (a ClearSlot) String() string { return "clear events of the slot of " + a.Port }

func (a ClearSlot) do(r *Recorder) error {
	return r.register(a.Port, slotStatus, func(v uint32) uint32 { return v & slotEvents })
}

// register reads a register, and writes what change makes of it.
func (r *Recorder) register(device string, reg Register, change func(uint32) uint32) error {
	f, err := os.OpenFile(filepath.Join(r.Roots.Sys, "bus/pci/devices", r.names.address[device], "config"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	at, err := capability(f, reg)
	if err != nil {
		return fmt.Errorf("%s of %s: %w", reg.Name, device, err)
	}
	var p [4]byte
	if _, err := f.ReadAt(p[:reg.width], at+int64(reg.offset)); err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(p[:], change(binary.LittleEndian.Uint32(p[:])))
	_, err = f.WriteAt(p[:reg.width], at+int64(reg.offset))
	return err
}

// capability is where the capability of a register begins.
func capability(f *os.File, reg Register) (int64, error) {
	var p [4]byte
	if reg.extended {
		at := int64(0x100)
		for range 64 {
			if _, err := f.ReadAt(p[:], at); err != nil {
				return 0, err
			}
			if binary.LittleEndian.Uint16(p[:]) == reg.id {
				return at, nil
			}
			if at = int64(binary.LittleEndian.Uint16(p[2:]) >> 4); at < 0x100 {
				break
			}
		}
		return 0, errors.New("there is no such extended capability")
	}
	at := int64(0x34)
	for range 48 {
		if _, err := f.ReadAt(p[:1], at); err != nil {
			return 0, err
		}
		if at = int64(p[0] &^ 3); at < 0x40 {
			break
		}
		if _, err := f.ReadAt(p[:2], at); err != nil {
			return 0, err
		}
		if uint16(p[0]) == reg.id {
			return at, nil
		}
		at++
	}
	return 0, errors.New("there is no such capability")
}

func model(name string) string {
	for _, d := range Topology {
		if d.Name == name {
			return d.Model
		}
	}
	return ""
}
