package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/syspci"
	"github.com/ring3dev/ring3/vfio"
)

// OutsideVFIO is an Outside that has functions of this machine.
type OutsideVFIO interface {
	// VFIO lends a function of this machine that the plan names, and tells what the kernel alone knows of it.
	VFIO(ctx context.Context, device string) (vfio.Lender, FunctionFacts, error)
}

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

// outsideCallVFIO is the one method of linkOutside that is about VFIO.
const outsideCallVFIO link.Method = 0x0310

// vfioCall is its body: a request of package vfio's, or, where that is empty, the question for FunctionFacts.
type vfioCall struct {
	Device  string          `json:"device"`
	Request json.RawMessage `json:"request,omitempty"`
}

// linkVFIO is OutsideVFIO over a link, for who is at the worker's end of it.
func linkVFIO(ctx context.Context, c *link.Conn, device string) (vfio.Lender, FunctionFacts, error) {
	l := vfioLink{c, device}
	var f FunctionFacts
	b, files, err := l.Call(ctx, nil)
	if err == nil && len(files) != 0 {
		closeFiles(files)
		err = bus.ErrProtocol
	}
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		return nil, f, fmt.Errorf("asking for %s: %w", device, err)
	}
	return l, f, nil
}

// vfioLink carries the requests of a borrowed device over a link; vfio.Lender.
type vfioLink struct {
	c      *link.Conn
	device string
}

// Call implements vfio.Lender.
func (l vfioLink) Call(ctx context.Context, request []byte) ([]byte, []*os.File, error) {
	b, err := json.Marshal(vfioCall{l.device, request})
	if err != nil {
		return nil, nil, err
	}
	return l.c.Call(ctx, outsideCallVFIO, b)
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// heldVFIO is what a supervisor holds of a group's functions: containers, device files, DMA memory. They are opened when a worker first asks, and
// stay open until Close. Safe for concurrent use.
type heldVFIO struct {
	plan    *Plan
	files   map[string]map[string]*os.File
	log     *slog.Logger
	overdue func(error)

	mu     sync.Mutex
	space  map[int]*vfio.Space // by IOMMU group
	open   map[string]*heldFunction
	closed bool
}

type heldFunction struct {
	dev   *vfio.Device
	loan  *vfio.Loan
	facts FunctionFacts
}

// holdVFIO is for the functions of a part of a plan. files are Config's. overdue is told where the kernel wants a function back and the worker does
// not let go of it: it is to be killed. It must not block; nil: nobody is told.
func holdVFIO(plan *Plan, files map[string]map[string]*os.File, log *slog.Logger, overdue func(why error)) *heldVFIO {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &heldVFIO{plan: plan, files: files, log: log, overdue: overdue, space: map[int]*vfio.Space{}, open: map[string]*heldFunction{}}
}

// maxVFIOCall bounds a request.
const maxVFIOCall = 4096

// Call answers outsideCallVFIO. Functions that the plan does not name are refused.
func (h *heldVFIO) Call(ctx context.Context, body []byte) ([]byte, []*os.File, error) {
	var q vfioCall
	if len(body) > maxVFIOCall {
		return nil, nil, fmt.Errorf("vfio: a request of %d bytes, want at most %d: %w", len(body), maxVFIOCall, bus.ErrProtocol)
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, nil, fmt.Errorf("vfio: reading a request: %w: %w", err, bus.ErrProtocol)
	}
	l, facts, err := h.VFIO(ctx, q.Device)
	if err != nil {
		return nil, nil, err
	}
	if len(q.Request) == 0 {
		b, err := json.Marshal(facts)
		return b, nil, err
	}
	return l.Call(ctx, q.Request)
}

// VFIO implements OutsideVFIO for a System in this process.
func (h *heldVFIO) VFIO(ctx context.Context, device string) (vfio.Lender, FunctionFacts, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := h.open[device]; f != nil {
		return f.loan, f.facts, nil
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
	return &heldFunction{dev: dev, loan: loan, facts: factsOf(syspci.Sys, dev.Function().Addr)}, nil
}

// Quiesce stops what a dead worker had: of each function interrupts, a reset, bus mastering off, and then the memory. What ended by itself is
// not in the way: the next worker hears of it.
func (h *heldVFIO) Quiesce(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, f := range h.open {
		errs = append(errs, f.loan.Recall(ctx))
	}
	return errors.Join(errs...)
}

// Close gives the functions back to the kernel. It is idempotent.
func (h *heldVFIO) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	var errs []error
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
