package pci

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/sysfs"
)

// Any matches every value of a field of an ID.
const Any = 0xffff

// ID says which functions a driver serves. SubVendor and SubDevice 0 mean any, Class and
// ClassMask select by class code where ClassMask is not 0.
type ID struct {
	Vendor, Device       uint16 // Any for all
	SubVendor, SubDevice uint16 // 0 for all
	Class, ClassMask     uint32 // 24 bits: base class, subclass, programming interface
}

// Driver is a driver as it is handed to a host: a name, the functions it serves, and a
// Probe. There is no registry: a program lists the drivers it has.
type Driver struct {
	Name string
	IDs  []ID
	// Platform lists devices that are no PCI functions, by what firmware calls them (bus.Platform): "MSFT0101".
	Platform []string
	// Prefixed says that its messages begin with what they are about, as the kernel's do. Bind adds nothing then.
	Prefixed bool
	// API is the version of this contract that the driver was written for, as a literal: 1.
	// 0 means the present one. A program refuses a driver that was written for another, in
	// words instead of with a crash.
	API int
	// Options lists the options that Probe understands ("mac", "ring"), with a one-line
	// description each.
	Options map[string]string
	// Registers describes the registers of a function that the driver serves, for traces,
	// dumps and fault reports; nil: none. A platform device has the zero FunctionID.
	Registers func(FunctionID) []bus.Register
	// Probe takes a device into service. On error it has released all it took, except
	// the device itself, which the caller closes. An error that wraps ErrSkip means: not
	// mine after all.
	Probe func(ctx context.Context, dev bus.Device, env Env) (Instance, error)
}

// API is the version of the contract between drivers and programs: of Driver, Env and
// Instance, and of package bus.
const API = 1

// ErrOption is wrapped by what Probe returns where an option's value is wrong: wrong usage, not
// a failing device.
var ErrOption = errors.New("wrong option")

// Env is what a host gives a driver's Probe.
type Env struct {
	Name    string            // the name the user gave the device: "eth0"
	Log     *slog.Logger      // inside Probe never nil, and it names driver, address and device
	Options map[string]string // only options that the driver lists
	Profile string            // the kernel whose texts are followed: "6.12"; empty: the newest
	Bus     Hierarchy         // who owns the bus: what stands below a port, and where events go; nil where nobody does
	// Function is what enumeration found out about the device; nil of one that is no PCI function, and where nobody told.
	Function *Function
}

// Instance is a device in service. It may implement more: netdev.Device,
// bus.ErrorHandler, bus.MMIOHandler, bus.PowerHandler, IRQUser, AttrUser, DirUser, ParamUser.
type Instance interface {
	// Close takes the device out of service: stops it, joins all goroutines, frees all
	// memory. It does not close the bus.Device. It is idempotent.
	Close() error
}

// IRQUser is implemented by an instance that serves interrupts, for /proc/interrupts.
type IRQUser interface {
	IRQHandlers() []*bus.Handler
}

// ParamUser is implemented by an instance whose options can be read, and some of them
// changed, while it is in service. They are shown as a kernel driver's module parameters are:
// /sys/module/DRIVER/parameters/NAME.
type ParamUser interface {
	Params() []Param
}

// Param is one parameter of an instance.
type Param struct {
	Name string // "InterruptThrottleRate"
	Get  func() string
	// Set changes it; nil: it cannot be changed in service. It fails with EINVAL where
	// the value is no such thing, ERANGE where it is out of range, and then nothing changed.
	Set func(ctx context.Context, v string) error
}

// AttrUser is implemented by an instance that has files of its own in its device's sysfs
// directory, as a kernel driver's dev_groups are. Names of the files every PCI
// function has are not for it.
type AttrUser interface {
	Attrs() map[string]*sysfs.File
}

// DirUser is implemented by an instance that has directories there: the services of a port.
type DirUser interface {
	Dirs() map[string]*sysfs.Dir
}

// Outcome is what became of matching one device.
type Outcome uint8

// Outcomes of Bind.
const (
	Skipped Outcome = iota // no driver wanted it
	Bound
	Failed
)

func (o Outcome) String() string { return [...]string{"skipped", "bound", "failed"}[o] }

// Result reports what became of one device, and why.
type Result struct {
	Outcome  Outcome
	Driver   *Driver // that was bound or failed
	Instance Instance
	Err      error // the reason, for Skipped and Failed
}

// Match asks a device what it is: which drivers serve it, and what to call it in messages.
func Match(dev bus.Device) (serves func(*Driver) bool, what string) {
	if ids := bus.HardwareIDs(dev); len(ids) > 0 {
		return func(d *Driver) bool {
			return slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(d.Platform, id) })
		}, strings.Join(ids, ", ")
	}
	id := ReadID(dev.Config())
	return func(d *Driver) bool { return d.Serves(id) }, id.String()
}

// Bind matches dev against the drivers in order and probes the first that serves it. A
// driver that skips passes the device on to the next.
func Bind(ctx context.Context, dev bus.Device, env Env, drivers []*Driver) Result {
	if env.Log == nil {
		env.Log = slog.New(slog.DiscardHandler)
	}
	serves, what := Match(dev)
	if err := dev.Err(); err != nil {
		return Result{Outcome: Failed, Err: err} // whatever was read is not its ID
	}
	r := Result{Outcome: Skipped, Err: fmt.Errorf("%s: no driver for %s: %w", dev.Address(), what, bus.ErrNotSupported)}
	for _, d := range drivers {
		if !serves(d) {
			continue
		}
		if d.API != 0 && d.API != API {
			return Result{Outcome: Failed, Driver: d, Err: fmt.Errorf("%s: driver %s was built for version %d of ring3's driver interface, and this is version %d: build it against this ring3: %w", dev.Address(), d.Name, d.API, API, bus.ErrNotSupported)}
		}
		for o := range env.Options {
			if _, ok := d.Options[o]; !ok {
				return Result{Outcome: Failed, Driver: d, Err: fmt.Errorf("%s: driver %s has no option %q: %w", dev.Address(), d.Name, o, ErrOption)}
			}
		}
		env := env
		if !d.Prefixed {
			env.Log = env.Log.With("driver", d.Name, "address", dev.Address(), "device", env.Name)
		}
		inst, err := d.Probe(ctx, dev, env)
		switch {
		case err == nil:
			return Result{Outcome: Bound, Driver: d, Instance: inst}
		case isSkip(err):
			r = Result{Outcome: Skipped, Driver: d, Err: err}
		default:
			return Result{Outcome: Failed, Driver: d, Err: err}
		}
	}
	return r
}
