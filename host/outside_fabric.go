package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/rionet/fabricd"
)

// A node of a fabric is a connection to the fabric's socket, and what comes over it: memory and eventfds. A worker may connect to nothing, so its supervisor joins as the node
// that the plan names and gives the connection away. It keeps a descriptor of it, so that it can end it, and watches which memory windows the other nodes have.

// Methods of outside about nodes of fabrics. A node is called by its device's name in the plan.
const (
	outsideJoin    link.Method = 0x0350 // fabricJoin; the connection
	outsideWindows link.Method = 0x0351 // fabricWindows: fabricHas, once it is another list than the one that was seen
)

type fabricJoin struct {
	Device string `json:"device"`
}

type fabricWindows struct {
	Device string `json:"device"`
	Seen   uint64 `json:"seen,omitempty"` // number of the list that was told last; 0: none was
}

type fabricHas struct {
	Number  uint64           `json:"number"`
	Windows []fabricd.Window `json:"windows,omitempty"`
}

// The worker's end.

// Fabric implements Outside.
func (o *farOutside) Fabric(ctx context.Context, device string) (*net.UnixConn, error) {
	f, err := one(o.call(ctx, outsideJoin, fabricJoin{device}, nil))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return link.Open(f)
}

// Windows implements Outside.
func (o *farOutside) Windows(ctx context.Context, device string, seen uint64) ([]fabricd.Window, uint64, error) {
	var has fabricHas
	files, err := o.call(ctx, outsideWindows, fabricWindows{device, seen}, &has)
	closeOpen(files)
	return has.Windows, has.Number, err
}

// askWindows tells set of the windows of others, as the supervisor does, until ctx ends.
func askWindows(ctx context.Context, o Outside, device string, set func([]fabricd.Window)) {
	for seen := uint64(0); ctx.Err() == nil; {
		list, now, err := o.Windows(ctx, device, seen)
		if err == nil {
			seen = now
			set(list)
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(rejoinFirst):
		}
	}
}

// The supervisor's end.

// heldFabrics are the nodes of a group; outsideBackend. Safe for concurrent use.
type heldFabrics struct {
	nodes  map[string]*heldNode // by device
	log    *slog.Logger
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // who watches windows
}

// heldNode is one.
type heldNode struct {
	spec DeviceSpec

	joining sync.Mutex // held while it joins
	mu      sync.Mutex // guards what follows
	conn    *net.UnixConn
	closed  bool

	watched bool // somebody watches windows
	number  uint64
	windows []fabricd.Window
	more    chan struct{} // closed when number changes
}

// holdFabrics is one of outsideBackends. Nodes by way of QEMU's device are QEMU's.
func holdFabrics(c Config, g groupPlan) (outsideBackend, error) {
	h := &heldFabrics{nodes: map[string]*heldNode{}, log: c.Log}
	for _, d := range g.Plan.Devices {
		if d.Backend == onFabric {
			h.nodes[d.Name] = &heldNode{spec: d, more: make(chan struct{})}
		}
	}
	if len(h.nodes) == 0 {
		return nil, nil
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h, nil
}

func (h *heldFabrics) calls() map[link.Method]outsideCall {
	return map[link.Method]outsideCall{outsideJoin: h.join, outsideWindows: h.wait}
}

// node is the one that a device is.
func (h *heldFabrics) node(device string) (*heldNode, error) {
	if n := h.nodes[device]; n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("fabric: device %.64q: the plan makes it no node: %w", device, syscall.EACCES)
}

// join answers outsideJoin. Who joins again has lost the fabric, or leaves it.
func (h *heldFabrics) join(ctx context.Context, body []byte, _ []*os.File) (any, []*os.File, error) {
	var q fabricJoin
	if err := asked(body, &q); err != nil {
		return nil, nil, err
	}
	n, err := h.node(q.Device)
	if err != nil {
		return nil, nil, err
	}
	n.joining.Lock()
	defer n.joining.Unlock()
	n.leave()
	conn, err := connect(ctx, n.spec)
	if err != nil {
		return nil, nil, err
	}
	f, err := conn.File()
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		f.Close()
		conn.Close()
		return nil, nil, bus.ErrClosed
	}
	n.conn = conn
	return nil, []*os.File{f}, nil
}

// leave ends the node's connection, whoever else has a descriptor of it: to the fabric it is gone.
func (n *heldNode) leave() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn != nil {
		_ = n.conn.CloseRead()
		_ = n.conn.CloseWrite()
		n.conn.Close()
		n.conn = nil
	}
}

// maxWindowsTold is how many windows a worker is told of.
const maxWindowsTold = 8192

// wait answers outsideWindows.
func (h *heldFabrics) wait(ctx context.Context, body []byte, _ []*os.File) (any, []*os.File, error) {
	var q fabricWindows
	if err := asked(body, &q); err != nil {
		return nil, nil, err
	}
	n, err := h.node(q.Device)
	if err != nil {
		return nil, nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.watched && !n.closed {
		n.watched = true
		h.wg.Go(func() { windowWatch{n.spec.Device, ownersOf(n.spec), n.set}.run(h.ctx) })
	}
	for !n.closed {
		if n.number > 0 && n.number != q.Seen {
			return fabricHas{n.number, n.windows[:min(len(n.windows), maxWindowsTold)]}, nil, nil
		}
		more := n.more
		n.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-h.ctx.Done():
			err = bus.ErrClosed
		}
		n.mu.Lock()
		if err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, bus.ErrClosed
}

// set takes the windows of all nodes.
func (n *heldNode) set(list []fabricd.Window) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.number > 0 && slices.Equal(n.windows, list) {
		return
	}
	n.number++
	n.windows = list
	close(n.more)
	n.more = make(chan struct{})
}

// await waits until the fabrics of all nodes are there, since there is no use in a worker without: it would die of it, again and again. gone is told why it waits, once for
// each node.
func (h *heldFabrics) await(ctx context.Context, gone func(why error)) {
	for _, n := range h.nodes {
		told := false
		for wait := rejoinFirst; ; wait = min(2*wait, rejoinMost) {
			_, err := fabricd.Dial(ctx, n.spec.Device, ownersOf(n.spec)...)
			if !errors.Is(err, bus.ErrGone) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, bus.ErrTimeout) {
				break // it is there, or what is there has to be told by who joins
			}
			if !told {
				gone(fmt.Errorf("%s: %w", n.spec.Name, err))
				told = true
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	}
}

// Quiesce implements outsideBackend: the nodes leave. Their memory is the fabric's.
func (h *heldFabrics) Quiesce(context.Context) error {
	for _, n := range h.nodes {
		n.leave()
	}
	return nil
}

// Close implements outsideBackend.
func (h *heldFabrics) Close() error {
	h.cancel()
	for _, n := range h.nodes {
		n.mu.Lock()
		n.closed = true
		n.mu.Unlock()
		n.leave()
	}
	h.wg.Wait()
	return nil
}

// awaitWorld waits until what a group's devices are part of is there; gone is told why it waits.
func (o *nearOutside) awaitWorld(ctx context.Context, gone func(why error)) {
	for _, b := range o.backends {
		if h, ok := b.(*heldFabrics); ok {
			h.await(ctx, gone)
		}
	}
}
