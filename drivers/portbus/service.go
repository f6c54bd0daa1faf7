package portbus

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/sysfs"
)

// Service is a bit for a service of a port.
type Service uint8

// Services, in the order in which they are offered.
const (
	PME Service = 1 << iota // power management events
	AER                     // Advanced Error Reporting
	HP                      // hot-plug
	DPC                     // Downstream Port Containment
	BW                      // link bandwidth notification
	VC                      // Virtual Channel
)

const services = 6

func (s Service) String() string {
	switch s {
	case PME:
		return "PME"
	case AER:
		return "AER"
	case HP:
		return "hot-plug"
	case DPC:
		return "DPC"
	case BW:
		return "bandwidth notification"
	case VC:
		return "virtual channels"
	}
	return fmt.Sprintf("service %#02x", uint8(s))
}

// AnyPort matches ports of every type.
const AnyPort pci.ExpType = 0xff

// ServiceDriver is a driver of a service.
type ServiceDriver struct {
	Name    string // "pciehp"
	Service Service
	Port    pci.ExpType // type of port, or AnyPort
	// Prefix begins the service's messages, after the port's: "pciehp: ".
	Prefix string
	// Probe takes a service into service. It may call Device.Handle, and must not call Hierarchy. On error it has released all it took, except
	// handlers, which the bus removes. An error that wraps pci.ErrSkip means: not mine after all, and is not reported.
	Probe func(ctx context.Context, d *Device) (Instance, error)
}

// Instance is a service in service. It may implement more: bus.PowerHandler, SlotResetter, Container, Restorer, pci.AttrUser and pci.DirUser (what stands in the
// service's directory).
type Instance interface {
	// Close disables the service's interrupt in hardware, joins all its goroutines and releases everything. It is idempotent.
	Close() error
}

// SlotResetter is implemented by a service that must not take what a reset does to the slot for news: hot-plug. It calls reset, once.
type SlotResetter interface {
	ResetSlot(ctx context.Context, reset func(context.Context) error) error
}

// Container is implemented by the service that contains failures (DPC): hot-plug asks it before it believes that a link is down.
type Container interface {
	// Recovered waits, within the specification's bounds, while the port is contained or recovering, and says whether the link is back
	// because of that. It says so once for each recovery.
	Recovered(ctx context.Context) bool
}

// Restorer is implemented by a service that must set its registers up again after the port itself was reset.
type Restorer interface {
	SlotReset(ctx context.Context) error
}

// Device is one service of one port.
type Device struct {
	port    *Port
	service Service
	name    string
	vector  *vector // nil: no interrupt
	config  *view
	dir     *sysfs.Dir

	live atomic.Pointer[Instance] // inst, for who must not wait for mu

	mu     sync.Mutex // held while a driver's Probe or Close runs; guards what follows
	gone   bool       // the port is
	driver *ServiceDriver
	inst   Instance
	action *action
	shown  []string // of dir, what the driver put there
}

// Name is "1000:00:04.0:pcie004".
func (d *Device) Name() string { return d.name }

// Service is which one it is.
func (d *Device) Service() Service { return d.service }

// Port is the port whose service it is.
func (d *Device) Port() *Port { return d.port }

// Config is the service's own view of the port's config space.
func (d *Device) Config() bus.Config { return d.config }

// Handle serves the service's interrupt: at each interrupt of its vector fn reads the cause, acknowledges, signals, and says whether it
// was meant. name is for /proc/interrupts. It is called in Probe, once, when the service is ready, and fails with bus.ErrNotSupported where the
// port has no interrupts: then the service polls. The number is the one in /proc/interrupts.
func (d *Device) Handle(name string, fn func() bool) (number int, err error) {
	if d.vector == nil {
		return 0, fmt.Errorf("%s: the port has no interrupts: %w", d.name, bus.ErrNotSupported)
	}
	if d.action != nil {
		return 0, fmt.Errorf("%s: its interrupt is served already: %w", d.name, bus.ErrBusy)
	}
	d.action = &action{name: name, order: d.service, fn: fn}
	d.vector.add(d.action)
	return d.vector.irq.Number(), nil
}

// IRQMode is how the service is interrupted; not ok where it is not.
func (d *Device) IRQMode() (mode bus.IRQMode, ok bool) {
	if d.vector == nil {
		return 0, false
	}
	return d.vector.irq.Mode(), true
}

// Log writes a message of the service's as the kernel would: "pcieport 1000:00:04.0: pciehp: ...".
func (d *Device) Log(level slog.Level, format string, args ...any) {
	prefix := ""
	if drv := d.driver; drv != nil {
		prefix = drv.Prefix
	}
	d.port.Log(level, prefix+format, args...)
}

// bind gives the service a driver, if it has none. mu is held.
func (d *Device) bind(ctx context.Context, drv *ServiceDriver) error {
	if d.gone || d.driver != nil {
		return bus.ErrBusy
	}
	if !d.port.bus.has(drv) { // it was unregistered just now, and nobody would take it away any more
		return fmt.Errorf("%s: driver %s: it is not registered: %w", d.name, drv.Name, unix.ENODEV)
	}
	d.driver = drv // its messages need it
	inst, err := drv.Probe(ctx, d)
	if err != nil {
		d.dropHandler()
		d.driver = nil
		return fmt.Errorf("%s: driver %s: %w", d.name, drv.Name, err)
	}
	d.inst = inst
	d.live.Store(&inst)
	d.show()
	d.port.uevent("bind", d, "DRIVER="+drv.Name)
	return nil
}

// unbind takes the driver away. mu is held.
func (d *Device) unbind() (err error) {
	if d.driver == nil {
		return nil
	}
	d.live.Store(nil)
	err = d.inst.Close()
	d.dropHandler()
	d.inst, d.driver = nil, nil
	d.show()
	d.port.uevent("unbind", d)
	return err
}

// dropHandler returns when the handler does not run any more. mu is held.
func (d *Device) dropHandler() {
	if d.action != nil {
		d.vector.remove(d.action)
		d.action = nil
	}
}

// matches says whether a driver is for this service.
func (s *ServiceDriver) matches(d *Device) bool {
	return s.Service == d.service && (s.Port == AnyPort || s.Port == d.port.exp.Type)
}
