package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/syspci"
)

// A device that nothing confines cannot be lent: what its driver tells it, it does, to any memory. Its worker is bare: it keeps its user's rights and opens the device by
// itself, and all else comes from the supervisor as for others. Once such a worker is dead the supervisor looks that the device is no bus master any more, and nobody starts
// another one by himself.

// outsideTook is the word that a worker opened such a device by itself: bareTook. It comes before the device is told anything.
const outsideTook link.Method = 0x0340

type bareTook struct {
	Device string `json:"device"` // its name in the plan
}

// Took implements Outside.
func (o *farOutside) Took(ctx context.Context, device string) error {
	files, err := o.call(ctx, outsideTook, bareTook{device}, nil)
	closeOpen(files)
	return err
}

// took tells who looks after this System, if anybody does, that it opened a device by itself.
func (s *System) took(ctx context.Context, d DeviceSpec) error {
	if s.outside == nil {
		return nil
	}
	if err := s.outside.Took(ctx, d.Name); err != nil {
		return fmt.Errorf("%s: telling the supervisor that it is open: %w", d.Name, err)
	}
	return nil
}

// heldBare knows which devices a group's bare worker opened by itself; outsideBackend. Safe for concurrent use.
type heldBare struct {
	plan Plan
	root syspci.Root
	log  *slog.Logger

	mu    sync.Mutex
	taken []DeviceSpec
}

// holdBare is one of outsideBackends.
func holdBare(c Config, g groupPlan) (outsideBackend, error) {
	if !slices.ContainsFunc(g.Plan.Devices, func(d DeviceSpec) bool { return unconfined(d) != nil }) {
		return nil, nil
	}
	h := &heldBare{plan: g.Plan, root: syspci.Sys, log: c.Log}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	return h, nil
}

func (h *heldBare) calls() map[link.Method]outsideCall {
	return map[link.Method]outsideCall{outsideTook: h.took}
}

// took answers outsideTook.
func (h *heldBare) took(_ context.Context, body []byte, _ []*os.File) (any, []*os.File, error) {
	var q bareTook
	if err := asked(body, &q); err != nil {
		return nil, nil, err
	}
	d := h.plan.find(q.Device)
	if d == nil || unconfined(*d) == nil {
		return nil, nil, fmt.Errorf("device %.64q: the plan has no such that is opened without an IOMMU: %w", q.Device, syscall.EACCES)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.ContainsFunc(h.taken, func(o DeviceSpec) bool { return o.Name == d.Name }) {
		h.taken = append(h.taken, *d)
	}
	return nil, nil, nil
}

// Quiesce implements outsideBackend. The kernel's drivers end bus mastering when the last descriptor of a device is closed; where that was not so, it is done here, and where it
// may not be done, said.
func (h *heldBare) Quiesce(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.taken {
		if err := h.silence(d); err != nil && !errors.Is(err, os.ErrNotExist) {
			h.log.Warn(fmt.Sprintf("%s: it may go on with DMA: %v", d.Name, err))
		}
	}
	h.taken = nil
	return nil
}

// silence ends bus mastering of a device, whose error it is that it may not have ended.
func (h *heldBare) silence(d DeviceSpec) error {
	a, err := pci.ParseAddr(d.Device)
	if err == nil {
		return endMastering(h.root, a)
	}
	a, ok, err := h.root.UIOFunction(d.Device)
	switch {
	case err != nil:
		return err
	case ok:
		return endMastering(h.root, a)
	}
	if _, err := os.Stat(h.root.UIO(d.Device)); err != nil {
		return err
	}
	return fmt.Errorf("%s is no PCI function, so has no bus mastering to end", d.Device)
}

// Close implements outsideBackend.
func (h *heldBare) Close() error { return nil }

// endMastering takes bus mastering, and the interrupt pin, from a function that nobody drives any more. One that a driver of the kernel's has by now, which gives it to no
// process, has been set up by that, and keeps both.
func endMastering(root syspci.Root, a pci.Addr) error {
	if by, err := os.Readlink(root.Path(a, "driver")); err == nil && !strings.Contains(path.Base(by), "vfio") {
		if _, err := os.Stat(root.Path(a, "uio")); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	f, err := os.Open(root.Path(a, "config"))
	if err != nil {
		return fmt.Errorf("%s: bus mastering: %w", a, err)
	}
	defer f.Close()
	var b [2]byte
	if _, err := f.ReadAt(b[:], int64(pci.CfgCommand)); err != nil {
		return fmt.Errorf("%s: bus mastering: reading Command: %w", a, err)
	}
	v := pci.Command(binary.LittleEndian.Uint16(b[:]))
	if v == 0xffff || v&pci.CmdMaster == 0 {
		return nil // it is gone, or is none
	}
	w, err := os.OpenFile(root.Path(a, "config"), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("%s: bus mastering is on, and this user may not change that: %w", a, err)
	}
	defer w.Close()
	binary.LittleEndian.PutUint16(b[:], uint16(v&^pci.CmdMaster|pci.CmdINTxDisable))
	if _, err := w.WriteAt(b[:], int64(pci.CfgCommand)); err != nil {
		return fmt.Errorf("%s: bus mastering: writing Command: %w", a, err)
	}
	return nil
}
