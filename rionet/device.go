package rionet

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
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// mailbox is where all frames go.
const mailbox = 0

// DefaultRing is how many messages each mailbox has room for, the kernel's CONFIG_RIONET_TX_SIZE and _RX_SIZE.
const DefaultRing = 128

// Version is the kernel driver's, which tools read back.
const Version = "0.3"

// Options say how a Device is to be.
type Options struct {
	Name string // of the interface: "rio0"
	// Driver finds the peers; it is registered on the port's bus.
	Driver *Driver
	// Classic makes it a peer as the kernel's driver is: what it receives has always 4096 bytes.
	Classic bool
	Ring    int          // messages each mailbox has room for, a power of two, 2 to 1024; 0: DefaultRing
	Log     *slog.Logger // nil discards
}

// Device is a network device on a master port; netdev.Device. Its queues belong to one goroutine each, all else is safe
// for concurrent use.
type Device struct {
	name    string
	port    *rapidio.Mport
	driver  *Driver
	classic bool
	ring    int
	log     *slog.Logger

	tx txQueue
	rx rxQueue

	link    linkState
	mtu     atomic.Int32
	napi    atomic.Pointer[netdev.NAPI]
	release func()        // gives the doorbells up
	unlink  func()        // is told of the link no more
	relook  atomic.Bool   // the link changed: the keeper is to look at the port
	wake    chan struct{} // the keeper's
	life    context.Context
	end     context.CancelFunc
	ended   sync.WaitGroup // the keeper

	peers         peerTable
	active        atomic.Pointer[[]*peer] // replaced, never changed; nil: none
	joins, leaves atomic.Uint64

	mu     sync.Mutex // guards the changing of peers and active, and what a peer says of it
	all    []*peer
	strays map[rapidio.DestID]stray

	stateMu sync.Mutex // guards err, and the closing of done
	err     error
	done    chan struct{}
	closing sync.Once
}

// New takes a master port's mailbox 0 and the doorbells of rionet into service as a network device. The port may be without a device ID
// yet: the link is down until it has one.
func New(m *rapidio.Mport, o Options) (*Device, error) {
	d := &Device{
		name: o.Name, port: m, driver: o.Driver, classic: o.Classic, ring: o.Ring, log: o.Log,
		wake: make(chan struct{}, 1), strays: make(map[rapidio.DestID]stray), done: make(chan struct{}),
	}
	if d.ring == 0 {
		d.ring = DefaultRing
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.ring < 2 || d.ring > 1024 || d.ring&(d.ring-1) != 0 {
		return nil, d.errorf("ring of %d messages, want a power of two, 2 to 1024: %w", d.ring, rapidio.ErrRange)
	}
	d.life, d.end = context.WithCancel(context.Background())
	d.mtu.Store(maxMTU)
	d.napi.Store(&netdev.NAPI{})
	d.link.setID(0)
	if err := d.open(); err != nil {
		d.end()
		return nil, err
	}
	d.lookAtPort()
	d.log.Info("rionet Ethernet over RapidIO Version "+Version, "mac", d.MAC().String(), "port", m.Info().Name)
	d.ended.Go(d.keep)
	if err := d.driver.attach(d); err != nil {
		_ = d.Close()
		return nil, d.errorf("finding peers: %w", err)
	}
	return d, nil
}

// open claims what it needs of the port: the inbound mailbox before the doorbells, since who got our JOIN sends.
func (d *Device) open() error {
	if err := d.checkPort(); err != nil {
		return err
	}
	in, err := d.port.RequestInbMbox(d.name, mailbox, d.ring)
	if err != nil {
		return d.errorf("opening the inbound mailbox: %w", err)
	}
	out, err := d.port.RequestOutbMbox(d.name, mailbox, d.ring)
	if err != nil {
		return errors.Join(d.errorf("opening the outbound mailbox: %w", err), in.Close())
	}
	d.tx.init(d, out)
	if err := d.rx.init(d, in); err != nil {
		return errors.Join(err, in.Close(), out.Close())
	}
	last := uint16(doorbellLast)
	if d.classic {
		last = doorbellLeave
	}
	if d.release, err = d.port.RequestInbDoorbell(d.name, doorbellJoin, last, d.doorbell); err != nil {
		return errors.Join(d.errorf("claiming doorbells: %w", err), in.Close(), out.Close())
	}
	d.unlink = d.port.OnLink(func(bool) {
		d.relook.Store(true)
		d.wakeKeeper()
	})
	return nil
}

// checkPort sees whether the port has mailboxes and doorbells at all.
func (d *Device) checkPort() error {
	ctx, cancel := context.WithTimeout(d.life, ringTime)
	defer cancel()
	src, err := d.port.LocalRead32(ctx, rapidio.RegSrcOps)
	if err != nil {
		return d.errorf("reading the port's operations: %w", err)
	}
	dst, err := d.port.LocalRead32(ctx, rapidio.RegDstOps)
	if err != nil {
		return d.errorf("reading the port's operations: %w", err)
	}
	if !capable(src, dst) {
		return d.errorf("the port has source operations %#x and destination operations %#x, want messages and doorbells (%#x) in both: %w", src, dst, needed, bus.ErrNotSupported)
	}
	return nil
}

// errorf is an error of this device.
func (d *Device) errorf(format string, args ...any) error {
	return fmt.Errorf("%s rionet: %w", d.name, fmt.Errorf(format, args...))
}

// Info is what does not change; netdev.Device. There is no bus.Device under it.
func (d *Device) Info() netdev.Info {
	return netdev.Info{
		Name: d.name, Driver: "rionet", Model: "RapidIO " + d.port.Info().Model,
		TxQueues: 1, RxQueues: 1, TxRing: d.ring, RxRing: d.ring,
	}
}

// MAC is 00:01:00:01 and the port's device ID; netdev.Device. Nobody may change it.
func (d *Device) MAC() net.HardwareAddr {
	return *d.link.mac.Load()
}

// Tx is the transmit queue; netdev.Device.
func (d *Device) Tx(q int) netdev.TxQueue {
	if q != 0 {
		return nil
	}
	return &d.tx
}

// Rx is the receive queue; netdev.Device.
func (d *Device) Rx(q int) netdev.RxQueue {
	if q != 0 {
		return nil
	}
	return &d.rx
}

// Port is the master port that it is on.
func (d *Device) Port() *rapidio.Mport { return d.port }

// Done is closed when the port is gone or the device closed; netdev.Device.
func (d *Device) Done() <-chan struct{} { return d.done }

// Err says why; netdev.Device.
func (d *Device) Err() error {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	return d.err
}

// dead tells whether it is out of service.
func (d *Device) dead() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// stop says why the device is out of service. The first reason stands, but that Close is one in any case.
func (d *Device) stop(err error) {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	if d.err == nil {
		close(d.done)
	}
	if d.err == nil || errors.Is(err, bus.ErrClosed) {
		d.err = err
	}
}

// fail is for a port that is gone.
func (d *Device) fail() {
	err := d.port.Ops().Err()
	if err == nil {
		err = bus.ErrGone
	}
	d.stop(d.errorf("the port is gone: %w", err))
	d.link.up.Store(false)
	d.dropAll()
	d.end()
	_ = d.tx.close() // nothing comes back any more
}

// dropAll deactivates all peers.
func (d *Device) dropAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for _, p := range d.all {
		d.deactivate(p, now)
	}
}

// Close takes the device out of service: it tells its peers, and gives up mailboxes and doorbells. It is idempotent. Buffers in
// flight are freed by the next call of the transmit queue's owner.
func (d *Device) Close() error {
	var err error
	d.closing.Do(func() {
		gone := d.dead()
		d.stop(fmt.Errorf("%s rionet: %w", d.name, bus.ErrClosed))
		d.end()
		d.unlink()
		d.ended.Wait()
		err = d.tx.close()
		d.driver.detach(d)
		if !gone {
			d.leave()
		}
		d.release()
		d.link.up.Store(false)
		d.dropAll()
		err = errors.Join(err, d.rx.close())
		if gone || errors.Is(err, bus.ErrGone) || errors.Is(err, bus.ErrClosed) {
			err = nil // there was nothing left to close
		}
	})
	return err
}
