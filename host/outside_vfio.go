package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/dmafault"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/syspci"
	"github.com/ring3dev/ring3/vfio"
)

// FunctionFacts are what the kernel alone knows of a function of this machine.
type FunctionFacts struct {
	Parents []string          `json:"parents,omitempty"` // addresses of the bridges before it, from the root bus on
	Attrs   map[string]string `json:"attrs,omitempty"`   // files of sysfs, by name, as they were
}

// factsOf reads them.
func factsOf(root syspci.Root, a pci.Addr) FunctionFacts {
	f := FunctionFacts{Attrs: map[string]string{}}
	for p := parentOf(root, a); p != nil; p = p.Parent {
		f.Parents = append([]string{p.Addr.String()}, f.Parents...)
	}
	for _, name := range kernelsAttrs {
		if b, err := os.ReadFile(root.Path(a, name)); err == nil {
			f.Attrs[name] = strings.TrimSuffix(string(b), "\n")
		}
	}
	return f
}

// parent is the chain of bridges before the function.
func (f FunctionFacts) parent() (p *pci.Function, err error) {
	for _, s := range f.Parents {
		a, err := pci.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("a bridge before it: %w", err)
		}
		p = &pci.Function{Addr: a, Header: pci.HeaderBridge, Parent: p}
	}
	return p, nil
}

// outsideVFIO is about a function of this machine.
const outsideVFIO link.Method = 0x0320

// vfioCall is its body: a request of package vfio's, whose answer is the reply, or, where that is empty, the question for FunctionFacts.
type vfioCall struct {
	Device  string          `json:"device"`
	Request json.RawMessage `json:"request,omitempty"`
}

// VFIO implements Outside.
func (o *farOutside) VFIO(ctx context.Context, device string) (vfio.Lender, FunctionFacts, error) {
	var f FunctionFacts
	files, err := o.call(ctx, outsideVFIO, vfioCall{Device: device}, &f)
	closeOpen(files)
	return &farLender{o, device}, f, err
}

// farLender carries the requests of a borrowed device to the supervisor; vfio.Lender.
type farLender struct {
	o      *farOutside
	device string
}

// Call implements vfio.Lender.
func (l *farLender) Call(ctx context.Context, request []byte) ([]byte, []*os.File, error) {
	var reply json.RawMessage
	files, err := l.o.call(ctx, outsideVFIO, vfioCall{l.device, request}, &reply)
	return reply, files, err
}

// heldVFIO is what a supervisor holds of a group's functions: containers, device files, DMA memory. They are opened when a worker first asks, and
// stay open until Close; outsideBackend. Safe for concurrent use.
type heldVFIO struct {
	plan  Plan
	files map[string]map[string]*os.File
	log   *slog.Logger
	fatal atomic.Pointer[func(error)]

	mu     sync.Mutex
	space  map[int]*vfio.Space      // by IOMMU group
	open   map[string]*heldFunction // by its address
	kernel *dmafault.File           // its log; nil: it may not be read
	closed bool

	wg sync.WaitGroup // who reads that
}

type heldFunction struct {
	dev   *vfio.Device
	loan  *vfio.Loan
	facts FunctionFacts
}

// holdVFIO is for the functions of a group; one of outsideBackends.
func holdVFIO(c Config, g groupPlan) (outsideBackend, error) {
	if !slices.ContainsFunc(g.Plan.Devices, func(d DeviceSpec) bool { return d.Backend == "vfio" }) {
		return nil, nil
	}
	h := &heldVFIO{plan: g.Plan, files: c.Files, log: c.Log, space: map[int]*vfio.Space{}, open: map[string]*heldFunction{}}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	return h, nil
}

// condemnBy has f told why the worker is to be killed: the kernel wants a function back and it does not let go of it, or a function did DMA outside of what
// is mapped for it. f must not block.
func (h *heldVFIO) condemnBy(f func(why error)) { h.fatal.Store(&f) }

func (h *heldVFIO) condemn(why error) {
	if f := h.fatal.Load(); f != nil {
		(*f)(why)
	}
}

// overdue is told where the kernel wants a function back, and the worker does not let go of it.
func (h *heldVFIO) overdue(why error) {
	h.condemn(fmt.Errorf("it does not let go of a function: %v: %w", why, bus.ErrTimeout))
}

// watchDMA reads in the kernel's log what the IOMMU stopped, where this process may read that. mu is held.
func (h *heldVFIO) watchDMA() {
	if h.kernel != nil {
		return
	}
	f, err := dmafault.Open("")
	if err != nil {
		h.log.Debug(fmt.Sprintf("DMA outside of what is mapped is stopped, but not noticed: %v", err))
		return
	}
	h.kernel = f
	h.wg.Go(func() {
		if err := f.Follow(h.strayed); err != nil {
			h.log.Warn(fmt.Sprintf("DMA outside of what is mapped is not noticed any more: %v", err))
		}
	})
}

// strayed is told of DMA that was stopped.
func (h *heldVFIO) strayed(x dmafault.Fault) {
	h.mu.Lock()
	f := h.open[x.Addr.String()]
	h.mu.Unlock()
	if f == nil {
		return
	}
	what := "read"
	if x.Write {
		what = "write"
	}
	// Not wrapped: the device is not gone, and its driver is what ends.
	h.condemn(fmt.Errorf("%s: DMA outside of what is mapped for it, a %s at %#x: %v (the kernel's log: %s)", x.Addr, what, x.IOVA, bus.ErrDMAFault, x.Text))
}

func (h *heldVFIO) calls() map[link.Method]outsideCall {
	return map[link.Method]outsideCall{outsideVFIO: h.answer}
}

// maxVFIOCall bounds a request, in bytes.
const maxVFIOCall = 4096

// answer answers outsideVFIO.
func (h *heldVFIO) answer(ctx context.Context, body []byte, _ []*os.File) (any, []*os.File, error) {
	var q vfioCall
	if len(body) > maxVFIOCall {
		return nil, nil, fmt.Errorf("vfio: a request of %d bytes, want at most %d: %w", len(body), maxVFIOCall, bus.ErrProtocol)
	}
	if err := asked(body, &q); err != nil {
		return nil, nil, fmt.Errorf("vfio: %w", err)
	}
	if len(q.Request) == 0 {
		_, facts, err := h.VFIO(ctx, q.Device)
		return facts, nil, err
	}
	l := h.lender(q.Device)
	if l == nil {
		return nil, nil, fmt.Errorf("vfio: %.32q was not asked for: %w", q.Device, os.ErrPermission)
	}
	reply, files, err := l.Call(ctx, q.Request)
	return json.RawMessage(reply), files, err
}

// lender is what lends a function that is open; nil if none is.
func (h *heldVFIO) lender(device string) vfio.Lender {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := h.open[device]; f != nil {
		return f.loan
	}
	return nil
}

// VFIO opens a function that the plan names, or has it open.
func (h *heldVFIO) VFIO(ctx context.Context, device string) (vfio.Lender, FunctionFacts, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := h.open[device]; f != nil && f.dev.Err() == nil {
		return f.loan, f.facts, nil
	} else if f != nil {
		// The kernel took it back. It may be there again, or another one in its place.
		if err := f.dev.Close(); err != nil {
			h.log.Warn(err.Error())
		}
		delete(h.open, device)
	}
	if h.closed {
		return nil, FunctionFacts{}, fmt.Errorf("vfio: %w", bus.ErrClosed)
	}
	var spec *DeviceSpec
	for i := range h.plan.Devices {
		if d := &h.plan.Devices[i]; d.Backend == "vfio" && d.Device == device {
			spec = d
		}
	}
	if spec == nil {
		return nil, FunctionFacts{}, fmt.Errorf("vfio: %.32q is not in the plan: %w", device, os.ErrPermission)
	}
	f, err := h.take(ctx, *spec)
	if err != nil {
		return nil, FunctionFacts{}, err
	}
	h.open[device] = f
	return f.loan, f.facts, nil
}

// take opens a function. mu is held.
func (h *heldVFIO) take(ctx context.Context, d DeviceSpec) (*heldFunction, error) {
	o := vfioOptions(d)
	o.Log, o.Files = h.log, h.files[d.Name]
	if g := iommuGroupOf(d.Device); g >= 0 {
		if h.space[g] == nil {
			h.space[g] = vfio.NewSpace()
		}
		o.Space = h.space[g]
	}
	dev, err := vfio.Open(ctx, d.Device, o)
	if err != nil {
		return nil, err
	}
	loan, err := dev.Lend(vfio.LoanOptions{Overdue: h.overdue})
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	h.watchDMA()
	return &heldFunction{dev: dev, loan: loan, facts: factsOf(syspci.Sys, dev.Function().Addr)}, nil
}

// skipTime is how long what reads the kernel's log may take to have read what is there.
const skipTime = 2 * time.Second

// Quiesce stops what a dead worker had: of each function interrupts, a reset, bus mastering off, and then the memory. What ended by itself is
// not in the way: the next worker hears of it.
func (h *heldVFIO) Quiesce(ctx context.Context) error {
	h.mu.Lock()
	var errs []error
	for _, f := range h.open {
		errs = append(errs, f.loan.Recall(ctx))
	}
	kernel := h.kernel
	h.mu.Unlock()
	if kernel != nil { // what strayed until now is not the next worker's doing. Without mu: strayed wants it
		ctx, cancel := context.WithTimeout(ctx, skipTime) // others are to be quiesced in ctx's time, too
		defer cancel()
		if err := kernel.Skip(ctx); err != nil {
			h.log.Warn(fmt.Sprintf("DMA of the worker before may be taken for the next one's: %v", err))
		}
	}
	return errors.Join(errs...)
}

// Close gives the functions back to the kernel. It is idempotent.
func (h *heldVFIO) Close() error {
	defer h.wg.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	var errs []error
	if h.kernel != nil {
		errs = append(errs, h.kernel.Close())
		h.kernel = nil
	}
	for name, f := range h.open {
		errs = append(errs, f.loan.Recall(context.Background()), f.dev.Close())
		delete(h.open, name)
	}
	for g, s := range h.space {
		errs = append(errs, s.Close())
		delete(h.space, g)
	}
	return errors.Join(errs...)
}

// unconfined says why a driver of a function cannot be contained; nil: an IOMMU confines what it does.
func unconfined(d DeviceSpec) error {
	switch {
	case d.Backend == "vfio" && d.Bus["noiommu"] != "":
		return fmt.Errorf("%s has no IOMMU that would confine it", d.Name)
	case d.Backend == "uio":
		return fmt.Errorf("%s is a device of the kernel's UIO", d.Name)
	}
	return nil
}

// condemnBy has f told why a group's worker is to be killed. f must not block.
func (o *nearOutside) condemnBy(f func(why error)) {
	for _, b := range o.backends {
		if h, ok := b.(*heldVFIO); ok {
			h.condemnBy(f)
		}
	}
}
