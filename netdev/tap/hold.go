package tap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/crash"
	"github.com/ring3dev/ring3/netdev"
)

// Request is what a bridge asks of who holds its interface. Its fields can be sent to another process, and are checked: whoever asks may be anybody.
type Request struct {
	Op      string `json:"op"`
	Queues  int    `json:"queues,omitempty"`  // opOpen: how many the device has
	MAC     []byte `json:"mac,omitempty"`     // opOpen, opMAC
	MTU     int    `json:"mtu,omitempty"`     // opOpen, opMTU
	Carrier bool   `json:"carrier,omitempty"` // opOpen, opCarrier
	Offload uint32 `json:"offload,omitempty"` // opOffload: netdev.Feature
	Seen    uint64 `json:"seen,omitempty"`    // opWait: Wish.Seq
}

// Operations.
const (
	opOpen    = "open"    // make the interface, or go on with it: its queues are the answer's files
	opMAC     = "mac"     // set the station address
	opMTU     = "mtu"     // set the MTU
	opCarrier = "carrier" // show a link, or none
	opOffload = "offload" // say what the kernel may leave to the device
	opWait    = "wait"    // answer when there is a wish that was not seen
	opAlive   = "alive"   // fail if the interface was deleted
	opRelease = "release" // the interface is not wanted any more
)

// Wish is how the interface is, which its device is to follow.
type Wish struct {
	Seq     uint64 `json:"seq"`               // grows when the rest changes
	MTU     int    `json:"mtu,omitempty"`     // 0: not known
	MAC     []byte `json:"mac,omitempty"`     // nil: not known
	Promisc bool   `json:"promisc,omitempty"` // somebody wants all frames
}

// Reply is the answer to a [Request].
type Reply struct {
	Name  string `json:"name,omitempty"`  // of the interface, when it was opened
	Again bool   `json:"again,omitempty"` // opOpen: it was there, and the device is to follow it
	Wish  Wish   `json:"wish"`
}

// Lender is who holds interfaces for a process that may not: a [Holder] in another process, for instance.
type Lender interface {
	// Call asks. The files are the caller's to close.
	Call(ctx context.Context, q Request) (Reply, []*os.File, error)
}

// Holder holds one interface, and does what takes rights: it makes it, follows it through renames and network namespaces, sets it up. Bridges come and
// go, one at a time: the interface stays, with its addresses and routes, and what is sent meanwhile waits in its queues, up to txqueuelen. Safe for concurrent use.
type Holder struct {
	cfg Config
	log *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	tap     *Tap // nil: not open
	gone    bool // it was deleted
	closed  bool
	wish    Wish
	changed chan struct{} // closed when wish changes, or the interface goes
	alone   *time.Timer   // runs while nobody carries frames

	// Where the interface is.
	h       *netlink.Handle // in its namespace; nil where that cannot be looked into
	updates chan netlink.LinkUpdate
	stop    chan struct{} // ends the subscription
	index   int           // of the interface, 0 while it is not known where it is
	mute    map[string]bool
	watched context.CancelFunc // ends watch
}

// Hold prepares to hold an interface, which is made when a bridge asks. Of c, Name, Up and Log count.
func Hold(c Config) *Holder {
	h := &Holder{cfg: c, log: c.Log, changed: make(chan struct{}), mute: map[string]bool{}}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// Bounds of what is asked.
const (
	minMTU, maxMTU = 68, 65535
	offloads       = netdev.TxCsum | netdev.TxTSO4 | netdev.TxTSO6
)

// check says what is wrong with a request.
func (q *Request) check() error {
	switch {
	case q.Op == opOpen && (q.Queues < 1 || q.Queues > maxQueues):
		return fmt.Errorf("%d queues, want 1 to %d", q.Queues, maxQueues)
	case (q.Op == opOpen || q.Op == opMTU) && (q.MTU < minMTU || q.MTU > maxMTU):
		return fmt.Errorf("an MTU of %d, want %d to %d", q.MTU, minMTU, maxMTU)
	case (q.Op == opOpen || q.Op == opMAC) && (len(q.MAC) != 6 || q.MAC[0]&1 != 0 || bytes.Equal(q.MAC, make([]byte, 6))):
		return fmt.Errorf("the address %s, want a station's", net.HardwareAddr(q.MAC[:min(len(q.MAC), 32)]))
	case q.Op == opOffload && netdev.Feature(q.Offload)&^offloads != 0:
		return fmt.Errorf("offloads %#x, want of %#x", q.Offload, uint32(offloads))
	}
	return nil
}

// Call implements [Lender].
func (h *Holder) Call(ctx context.Context, q Request) (Reply, []*os.File, error) {
	if err := q.check(); err != nil {
		return Reply{}, nil, fmt.Errorf("tap %s: %s: %w: %w", h.cfg.Name, q.Op, err, unix.EINVAL)
	}
	if q.Op == opWait {
		r, err := h.wait(ctx, q.Seen)
		return r, nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return Reply{}, nil, fmt.Errorf("tap %s: %w", h.cfg.Name, bus.ErrClosed)
	}
	if q.Op == opOpen {
		return h.open(q)
	}
	if q.Op == opRelease {
		h.drop()
		return Reply{}, nil, nil
	}
	if h.tap == nil {
		return Reply{}, nil, fmt.Errorf("tap %s: %s: it was not opened: %w", h.cfg.Name, q.Op, unix.EBADF)
	}
	var err error
	switch q.Op {
	case opAlive:
		h.isGone()
	case opMAC:
		err = h.tap.SetMAC(q.MAC)
	case opMTU:
		err = h.setMTU(q.MTU)
	case opCarrier:
		err = h.setCarrier(q.Carrier)
	case opOffload:
		err = h.tap.SetOffload(netdev.Feature(q.Offload))
	default:
		err = fmt.Errorf("tap %s: %.32q: %w", h.cfg.Name, q.Op, unix.ENOSYS)
	}
	if h.gone {
		err = h.tap.errGone()
	}
	return h.reply(), nil, err
}

// What is below is called with mu held.

func (h *Holder) reply() Reply { return Reply{Name: h.tap.Name(), Wish: h.wish} }

// open makes the interface, or hands it on.
func (h *Holder) open(q Request) (r Reply, files []*os.File, err error) {
	if h.tap != nil && h.isGone() {
		h.drop()
	}
	if again := h.tap != nil; again {
		r, err = h.goOn(q)
	} else {
		r, err = h.begin(q)
	}
	if err != nil {
		return Reply{}, nil, err
	}
	for _, f := range h.tap.queues {
		var d *os.File
		if d, err = f.duplicate(); err != nil {
			for _, f := range files {
				f.Close()
			}
			return Reply{}, nil, fmt.Errorf("tap %s: duplicating a descriptor: %w", h.tap.name, err)
		}
		files = append(files, d)
	}
	return r, files, nil
}

// begin makes the interface, or takes one over that an administrator made, and gives it what the device has.
func (h *Holder) begin(q Request) (r Reply, err error) {
	c := h.cfg
	c.Queues = q.Queues
	if h.tap, err = Open(c); err != nil {
		return r, err
	}
	defer func() {
		if err != nil {
			h.drop()
		}
	}()
	if err = h.tap.SetMAC(q.MAC); err != nil {
		return r, err
	}
	if err = h.setCarrier(q.Carrier); err != nil {
		return r, err
	}
	h.gone, h.wish = false, Wish{Seq: h.wish.Seq + 1}
	if err = h.join(); err != nil {
		if h.cfg.Up {
			return r, fmt.Errorf("tap %s: bringing the interface up: %w", h.tap.name, err)
		}
		h.warn("cannot follow the interface", err)
	} else {
		if h.wish.MTU != q.MTU {
			if err = h.setMTU(q.MTU); err != nil {
				return r, err
			}
		}
		if h.cfg.Up {
			if err = h.h.LinkSetUp(h.link()); err != nil {
				return r, fmt.Errorf("tap %s: bringing the interface up: %w", h.tap.name, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(h.ctx)
	h.watched = cancel
	h.wg.Go(func() { h.watch(ctx) })
	return h.reply(), nil
}

// goOn hands an interface to the next bridge, with as many queues as it has.
func (h *Holder) goOn(q Request) (Reply, error) {
	if h.alone != nil {
		h.alone.Stop()
		h.alone = nil
	}
	// What nobody reads would swallow its share of the frames.
	for len(h.tap.queues) > q.Queues {
		last := h.tap.queues[len(h.tap.queues)-1]
		h.tap.queues = h.tap.queues[:len(h.tap.queues)-1]
		last.f.Close()
	}
	for len(h.tap.queues) < q.Queues {
		name, err := h.tap.now()
		if err != nil {
			return Reply{}, fmt.Errorf("tap %s: %w", h.tap.name, err)
		}
		t := &Tap{name: name}
		f, err := t.openQueue(true)
		if err != nil {
			return Reply{}, err
		}
		h.tap.queues = append(h.tap.queues, f)
	}
	for _, f := range h.tap.queues { // the last one may have changed that
		if err := f.do(func(fd int) error { return unix.SetNonblock(fd, true) }); err != nil {
			return Reply{}, fmt.Errorf("tap %s: %w", h.tap.name, err)
		}
	}
	if err := h.tap.SetOffload(0); err != nil { // until it says what it can do
		return Reply{}, err
	}
	if err := h.setCarrier(q.Carrier); err != nil {
		return Reply{}, err
	}
	r := h.reply()
	r.Again = true
	return r, nil
}

// setCarrier shows a link. Old kernels always do.
func (h *Holder) setCarrier(up bool) error {
	if err := h.tap.SetCarrier(up); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

func (h *Holder) setMTU(mtu int) error {
	if h.h == nil {
		return fmt.Errorf("tap %s: setting the interface's MTU: it is where it cannot be followed: %w", h.tap.name, unix.ENODEV)
	}
	if err := h.h.LinkSetMTU(h.link(), mtu); err != nil {
		return fmt.Errorf("tap %s: setting the interface's MTU to the device's (sudo ip link set %s mtu %d): %w", h.tap.name, h.tap.name, mtu, err)
	}
	w := h.wish
	w.MTU = mtu
	h.set(w)
	return nil
}

// set tells who waits of a wish that is new.
func (h *Holder) set(w Wish) {
	if w.MTU == h.wish.MTU && w.Promisc == h.wish.Promisc && bytes.Equal(w.MAC, h.wish.MAC) {
		return
	}
	w.Seq = h.wish.Seq + 1
	h.wish = w
	h.wake()
}

func (h *Holder) wake() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// link names the interface to netlink.
func (h *Holder) link() netlink.Link {
	return &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Index: h.index}}
}

// seen takes over how the interface is.
func (h *Holder) seen(a *netlink.LinkAttrs) {
	w := h.wish
	if a.MTU != 0 {
		w.MTU = a.MTU
	}
	w.MAC = slices.Clone(a.HardwareAddr)
	w.Promisc = a.Promisc > 0 || a.RawFlags&unix.IFF_PROMISC != 0
	h.set(w)
}

// isGone tells whether the interface was deleted.
func (h *Holder) isGone() bool {
	if _, err := h.tap.now(); err != nil && !h.gone {
		h.gone = true
		h.wake()
	}
	return h.gone
}

// drop closes the interface, which is gone then if it was made here.
func (h *Holder) drop() {
	if h.watched != nil {
		h.watched()
		h.watched = nil
	}
	if h.alone != nil {
		h.alone.Stop()
		h.alone = nil
	}
	h.leave()
	if h.tap != nil {
		if err := h.tap.Close(); err != nil {
			h.warn("cannot close the interface", err)
		}
		h.tap = nil
	}
	h.wake()
}

// warn logs what goes wrong, once for each reason.
func (h *Holder) warn(what string, err error) {
	name := h.cfg.Name
	if h.tap != nil {
		name = h.tap.name
	}
	if s := what + ": " + err.Error(); !h.mute[s] {
		h.mute[s] = true
		h.log.Warn(fmt.Sprintf("tap %s: %s", name, s))
	}
}

// lost is what an interface that is not where it was means: deleted, or moved to where it
// cannot be followed, or not arrived there yet.
func (h *Holder) lost(err error) {
	var missing netlink.LinkNotFoundError
	if !h.isGone() && !errors.As(err, &missing) {
		h.warn("cannot follow the interface", err)
	}
}

// join finds the interface in its namespace and subscribes to its changes.
func (h *Holder) join() (err error) {
	h.leave()
	name, err := h.tap.now()
	if err != nil {
		return err
	}
	ns := netns.None()
	if fd, err := h.tap.netns(); err == nil {
		ns = netns.NsHandle(fd)
		defer ns.Close()
		if here, err := netns.Get(); err == nil {
			if ns.Equal(here) {
				_ = unix.Close(int(ns)) // nothing to enter, which takes rights
				ns = netns.None()
			}
			here.Close()
		}
	}
	defer func() {
		if err != nil {
			h.leave()
		}
	}()
	if h.h, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("entering its network namespace: %w", err)
	}
	h.updates, h.stop = make(chan netlink.LinkUpdate), make(chan struct{})
	o := netlink.LinkSubscribeOptions{Namespace: &ns}
	if err = netlink.LinkSubscribeWithOptions(h.updates, h.stop, o); err != nil {
		h.updates = nil
		return fmt.Errorf("subscribing to its changes: %w", err)
	}
	link, err := h.h.LinkByName(name)
	if err != nil {
		return err
	}
	if _, ok := link.(*netlink.Tuntap); !ok {
		return netlink.LinkNotFoundError{} // another of that name; ours is under way
	}
	h.index = link.Attrs().Index
	h.seen(link.Attrs())
	return nil
}

// leave ends the subscription, and waits for its end.
func (h *Holder) leave() {
	h.index = 0
	if h.stop != nil {
		close(h.stop)
		h.stop = nil
	}
	if h.updates != nil {
		for range h.updates {
		}
		h.updates = nil
	}
	if h.h != nil {
		h.h.Close()
		h.h = nil
	}
}

// What is below takes mu.

// watch follows the interface until it is dropped.
func (h *Holder) watch(ctx context.Context) {
	defer crash.Report()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		h.mu.Lock()
		updates := h.updates
		h.mu.Unlock()
		var u netlink.LinkUpdate
		ok, news := false, true
		select {
		case <-ctx.Done():
			return
		case u, ok = <-updates:
		case <-tick.C:
			news = false
		}
		h.mu.Lock()
		switch {
		case ctx.Err() != nil || h.tap == nil || updates != h.updates:
		case !news:
			if h.h == nil {
				if err := h.join(); err != nil {
					h.lost(err)
				}
			}
		case !ok: // too many at once, for instance
			h.leave()
		case int(u.Index) != h.index || u.IfInfomsg.Family != unix.AF_UNSPEC:
		case u.Header.Type == unix.RTM_DELLINK:
			h.leave()
			if err := h.join(); err != nil {
				h.lost(err)
			}
		default:
			h.seen(u.Attrs())
		}
		h.mu.Unlock()
	}
}

// wait answers when there is another wish than seen, or the interface is gone.
func (h *Holder) wait(ctx context.Context, seen uint64) (Reply, error) {
	for {
		h.mu.Lock()
		t, gone, w, changed := h.tap, h.gone, h.wish, h.changed
		h.mu.Unlock()
		switch {
		case t == nil:
			return Reply{}, fmt.Errorf("tap %s: %w", h.cfg.Name, bus.ErrClosed)
		case gone:
			return Reply{}, t.errGone()
		case w.Seq != seen:
			return Reply{Name: t.Name(), Wish: w}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Reply{}, context.Cause(ctx)
		}
	}
}

// aloneTime is how long an interface whose bridge died keeps its link: what is sent meanwhile waits for the next one.
const aloneTime = 5 * time.Second

// Left says that whoever carried its frames died. The interface keeps its link for a few seconds, in which another bridge may go on, and then shows that it has none.
func (h *Holder) Left() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tap == nil || h.closed || h.alone != nil {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(aloneTime, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.alone == t && h.tap != nil {
			_ = h.setCarrier(false)
		}
	})
	h.alone = t
}

// Close gives the interface back; one that was made here is gone then. It is idempotent.
func (h *Holder) Close() error {
	h.mu.Lock()
	if !h.closed {
		h.closed = true
		h.cancel()
		h.drop()
	}
	h.mu.Unlock()
	h.wg.Wait()
	return nil
}
