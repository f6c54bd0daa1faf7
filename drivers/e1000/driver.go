package e1000

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/netdev"
)

// Intel's vendor ID, and the devices that are driven.
const (
	vendorIntel  = 0x8086
	device82540  = 0x100e
	device82545  = 0x100f
	device82574  = 0x10d3
	subQEMU      = 0x1af4 // subsystem vendor of QEMU's models
	subQEMUModel = 0x1100
)

// Driver serves the 82574L, the 82540EM and the 82545EM. The instance implements
// netdev.Device, pci.IRQUser, pci.ParamUser, bus.ErrorHandler and bus.PowerHandler, and netdev's optional interfaces.
var Driver = &pci.Driver{
	Name:      "e1000",
	IDs:       []pci.ID{{Vendor: vendorIntel, Device: device82574}, {Vendor: vendorIntel, Device: device82540}, {Vendor: vendorIntel, Device: device82545}},
	Options:   options,
	Registers: registers,
	Probe:     probe,
}

// chip is what differs between the chips.
type chip struct {
	model string
	eerd  eerdLayout
	pcie  bool // 82574L: PCI Express, MSI-X, and the registers that come with them
	quirk bool // QEMU's 82540EM and 82545EM: see doc.go
	// fragments: a board without a name, as QEMU's 82574L is, which may send IP fragments
	// where it is to segment TCP.
	fragments bool
}

// queues is how many queues of each kind the chip has.
func (c chip) queues() int {
	if c.pcie {
		return maxQueues
	}
	return 1
}

func chipOf(id pci.FunctionID) (chip, error) {
	qemu := id.SubVendor == subQEMU && id.SubDevice == subQEMUModel
	switch id.Device {
	case device82574:
		return chip{model: "82574L", eerd: eerd82574, pcie: true, fragments: id.SubVendor == vendorIntel && id.SubDevice == 0}, nil
	case device82540:
		return chip{model: "82540EM", eerd: eerd8254x, quirk: qemu}, nil
	case device82545:
		return chip{model: "82545EM", eerd: eerd8254x, quirk: qemu}, nil
	}
	return chip{}, fmt.Errorf("device %s is no 82574L, 82540EM or 82545EM: %w", id, pci.ErrSkip)
}

// nic is a controller in service; netdev.Device, pci.Instance, pci.IRQUser.
type nic struct {
	name string
	dev  bus.Device
	regs bus.Region
	log  *slog.Logger
	chip chip
	opt  settings
	mac  [6]byte
	ring int

	queues int // of each kind
	tx     [maxQueues]txQueue
	rx     [maxQueues]rxQueue

	// confMu is held while the configuration changes: MTU, features, filters, flow control and
	// whatever else writes CTRL, RCTL or MDIC. It comes before the queues' locks. A handler takes
	// it too, so nobody who holds it waits for one.
	confMu    sync.Mutex
	filters   filters
	pause     netdev.Pause
	mtu       atomic.Int32
	features  atomic.Uint32 // netdev.Feature
	delays    [numDelays]atomic.Uint32
	deafUntil atomic.Int64 // chip.quirk: when the receiver listens, Unix nanoseconds

	irq      causes
	ivar     uint32 // of MSI-X: which vector a cause fires, guarded by confMu
	mod      moderation
	napi     atomic.Pointer[netdev.NAPI]
	handlers []*bus.Handler
	link     atomic.Uint32 // the last STATUS
	flow     atomic.Uint32 // CTRL.RFCE and TFCE as they should be

	nvmMu sync.Mutex // guards EERD

	statsMu sync.Mutex
	stats   hwStats

	// stops is how often the device was stopped and started, see stop: odd while it is stopped.
	stops atomic.Uint32
	// looking: the device was started again, and nobody looked at its link yet.
	looking  atomic.Bool
	recMu    sync.Mutex // held by recovery and suspend, before all other locks; guards what follows
	ready    bool       // it was reset and set up since it was stopped
	suspends bool       // it was stopped by Suspend
	irqMu    sync.Mutex // held by a handler that touches registers; before confMu

	dead    atomic.Bool // done is closed
	done    chan struct{}
	errMu   sync.Mutex
	err     error
	watched chan struct{} // closed when watch has returned

	closeOnce sync.Once
	closeErr  error
}

// errorf makes an error that begins with the device.
func (n *nic) errorf(format string, args ...any) error {
	return fmt.Errorf(n.dev.Address()+" e1000: "+format, args...)
}

func probe(ctx context.Context, dev bus.Device, env pci.Env) (pci.Instance, error) {
	n := &nic{
		name: env.Name, dev: dev, log: env.Log, ring: defaultRing, queues: 1,
		done: make(chan struct{}), watched: make(chan struct{}),
	}
	n.napi.Store(&netdev.NAPI{})
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if n.chip, err = chipOf(pci.ReadID(dev.Config())); err != nil {
		return nil, n.errorf("%w", err)
	}
	n.mtu.Store(defaultMTU)
	if err := n.options(env.Options); err != nil {
		return nil, err
	}
	if n.regs, err = dev.Region(0); err != nil {
		return nil, n.errorf("registers: %w", err)
	}
	if have := n.regs.Info(); have.Kind != bus.RegionMem || have.Size < regSpace {
		return nil, n.errorf("registers: region 0 is %s, %#x bytes, want mem, %#x: %w", have.Kind, have.Size, regSpace, bus.ErrProtocol)
	}
	pci.SetCommand(dev.Config(), pci.CmdMem|pci.CmdMaster, 0)
	if err := n.bringUp(ctx); err != nil {
		return nil, errors.Join(err, n.teardown())
	}
	go n.watch()
	n.log.Info("Intel(R) PRO/1000 Network Connection", "model", n.chip.model, "mac", n.MAC().String(), "ring", n.ring)
	return n, nil
}

// Info is what does not change; netdev.Device.
func (n *nic) Info() netdev.Info {
	return netdev.Info{
		Name: n.name, Driver: Driver.Name, Model: n.chip.model, Bus: n.dev,
		TxQueues: n.queues, RxQueues: n.queues, TxRing: n.ring, RxRing: n.ring,
	}
}

// MAC is the station address in use.
func (n *nic) MAC() net.HardwareAddr { return net.HardwareAddr(n.mac[:]) }

// Link is the state of the link after its last change, and down while the device is stopped.
func (n *nic) Link() netdev.Link {
	for {
		stops := n.stops.Load()
		if (stops&1 != 0 || n.looking.Load()) && !n.dead.Load() {
			return netdev.Link{Stopped: true}
		}
		// What was read while the device was being stopped is of neither time.
		if s := status(n.link.Load()); n.stops.Load() == stops || n.dead.Load() {
			return netdev.Link{Up: s&statusLU != 0, Speed: s.speed(), FullDuplex: s&statusFD != 0}
		}
	}
}

// Tx returns a transmit queue.
func (n *nic) Tx(q int) netdev.TxQueue {
	if q < 0 || q >= n.queues {
		return nil
	}
	return &n.tx[q]
}

// Rx returns a receive queue.
func (n *nic) Rx(q int) netdev.RxQueue {
	if q < 0 || q >= n.queues {
		return nil
	}
	return &n.rx[q]
}

// IRQHandlers are the handlers of all vectors; pci.IRQUser.
func (n *nic) IRQHandlers() []*bus.Handler { return n.handlers }

// Done is closed when the device went away or was closed.
func (n *nic) Done() <-chan struct{} { return n.done }

// Err says why Done is closed.
func (n *nic) Err() error {
	n.errMu.Lock()
	defer n.errMu.Unlock()
	return n.err
}

// fail takes the queues out of service, once, and wakes whoever waits. It takes no
// queue's lock.
func (n *nic) fail(err error) {
	n.errMu.Lock()
	defer n.errMu.Unlock()
	if n.err == nil {
		n.err = err
		n.dead.Store(true)
		close(n.done)
		for q := range n.queues {
			n.rx[q].wake.Wake()
		}
	}
}

// lost is the error of a device whose register reads all-ones: with the bus's reason, if it
// has one. An IOMMU that stopped the device, say, is known to the bus before its end is.
func (n *nic) lost(format string, args ...any) error {
	err := n.dev.Err()
	if err == nil {
		err = bus.ErrGone
	}
	return n.errorf("%s: %w", fmt.Sprintf(format, args...), err)
}

// alive is nil while the device is there. After a step that only writes it says whether there was
// anybody to read it: writes are posted, and go nowhere without a word.
func (n *nic) alive(step string) error {
	err := n.dev.Err()
	if n.dead.Load() {
		err = n.Err()
	} else if err == nil && n.stopped() {
		err = errStopped
	}
	if err != nil {
		return n.errorf("%s: %w", step, err)
	}
	return nil
}

// watch turns the bus's end into the device's, and looks at it now and then.
func (n *nic) watch() {
	defer close(n.watched)
	look := time.NewTicker(verifyEvery)
	defer look.Stop()
	for {
		select {
		case <-n.dev.Done():
			err := n.dev.Err()
			if err == nil {
				err = bus.ErrGone
			}
			n.fail(n.errorf("the bus ended: %w", err))
			return
		case <-n.done:
			return
		case <-look.C:
			n.check()
		}
	}
}

// Close takes the controller out of service; pci.Instance. Frames in flight may be lost:
// Drain first. A goroutine that uses a queue meanwhile gets 0 from then on.
func (n *nic) Close() error {
	n.closeOnce.Do(func() {
		n.fail(n.errorf("%w", bus.ErrClosed))
		<-n.watched
		n.closeErr = n.teardown()
	})
	return n.closeErr
}

// teardown undoes bringUp, however far it came: stop, mask, reset, bus mastering off, join,
// free.
func (n *nic) teardown() error {
	// Whoever changes something now ends first, and the next one finds the device dead.
	n.confMu.Lock()
	err := n.quiesce()
	n.confMu.Unlock()
	n.endIntervals()
	pci.SetCommand(n.dev.Config(), 0, pci.CmdMaster)
	n.dev.Config().Read16(pci.CfgCommand) // after this the device writes no memory
	if e := n.dev.DisableIRQs(); e != nil && !errors.Is(e, bus.ErrGone) && !errors.Is(e, bus.ErrClosed) {
		err = errors.Join(err, n.errorf("disabling interrupts: %w", e))
	}
	for _, h := range n.handlers {
		_ = h.Close() // its eventfd is closed already
	}
	for q := range n.queues {
		if n.tx[q].mem != nil {
			n.tx[q].close()
		}
		if n.rx[q].mem != nil {
			n.rx[q].close()
		}
	}
	return err
}
