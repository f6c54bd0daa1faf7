package vfio

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/iova"
)

// Space is an I/O address space: what devices see of memory. It is a VFIO container, or an
// IOAS of iommufd. Devices that share a Space reach each other's DMA memory. Safe for
// concurrent use.
type Space struct {
	k      kernel
	arenas arenas // of memory that Alloc gives

	// mu is held while devices join and leave, and while memory is mapped. A Device's own mu
	// comes before it.
	mu      sync.Mutex
	api     API        // once the first device joined
	noIOMMU bool       // of the first device
	fd      int        // the container, or iommufd; -1 while there is none
	t       translator // nil while no device is there, and where there is no IOMMU
	known   iommuInfo  // of t
	pool    *iova.Pool // of t
	groups  []*group   // that are open
	members []*Device  // that are open
	live    map[*mapping]struct{}
	closed  bool
}

// translator is what maps memory for devices.
type translator interface {
	add(iova uint64, mem []byte, p perm) error
	remove(iova, size uint64) error
	info() (iommuInfo, error)
}

// group is an IOMMU group that is open.
type group struct {
	number int
	fd     int
	path   string
	users  int // devices of it that are open
}

// NewSpace makes a space for devices to be opened in; Options.Space takes it. It opens nothing
// until the first device is. Close it.
func NewSpace() *Space { return &Space{fd: -1, live: map[*mapping]struct{}{}} }

// Range is IOVAs from First to Last.
type Range struct{ First, Last bus.IOVA }

// SpaceInfo is what there is to know of a Space.
type SpaceInfo struct {
	API       API     // Auto before the first device
	Ranges    []Range // what memory can be mapped at, sorted; none before the first device
	PageSizes uint64  // a bit for each size of page that the IOMMU has; 0 where it does not tell
	// MoreMappings is how many pieces of memory more can be mapped, -1 where nobody tells. It
	// is the kernel's: type1's dma_entry_limit.
	MoreMappings int
	Devices      []string // addresses
}

// Info tells of the space as it is.
func (s *Space) Info() SpaceInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := SpaceInfo{API: s.api, MoreMappings: -1}
	for _, d := range s.members {
		out.Devices = append(out.Devices, d.Address())
	}
	if s.t == nil {
		return out
	}
	if info, err := s.t.info(); err == nil {
		out.MoreMappings = info.avail
	}
	out.PageSizes = s.known.pages
	for _, r := range s.known.ranges {
		out.Ranges = append(out.Ranges, Range{bus.IOVA(r.Base), bus.IOVA(r.End - 1)})
	}
	return out
}

// Close refuses further devices, and ends the space when the last has left. It is idempotent.
func (s *Space) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.release()
}

// release closes what no device needs any more.
func (s *Space) release() error {
	if len(s.members) > 0 {
		return nil
	}
	s.stop()
	var errs []error
	for _, g := range s.groups {
		errs = append(errs, os.NewSyscallError("close "+g.path, unix.Close(g.fd)))
	}
	s.groups = nil
	if s.fd >= 0 {
		errs = append(errs, os.NewSyscallError("close", unix.Close(s.fd)))
		s.fd = -1
	}
	s.api, s.noIOMMU = Auto, false
	s.arenas.hold(false)
	return errors.Join(errs...)
}

// start sets up translation once there is a device for it.
func (s *Space) start(t translator) error {
	s.t = t
	if err := s.update(); err != nil {
		s.t = nil
		return err
	}
	return nil
}

// ioas is the translation that iommufd makes, where it does.
func (s *Space) ioas() (ioas, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.t.(ioas)
	return t, ok
}

// update asks which addresses there are: a device that joins may take some away.
func (s *Space) update() error {
	if s.t == nil {
		return nil
	}
	info, err := s.t.info()
	if err != nil {
		return fmt.Errorf("asking for the addresses that the IOMMU takes: %w", err)
	}
	if info.ranges == nil {
		info.ranges = oldRanges
	}
	info.ranges = usable(info.ranges)
	if least := info.pages & -info.pages; len(info.ranges) == 0 || least > pageSize {
		return fmt.Errorf("the IOMMU has %d ranges of addresses and pages of %d bytes, want one, and pages of %d: %w", len(info.ranges), least, pageSize, bus.ErrNotSupported)
	}
	s.known = info
	s.arenas.hold(true)
	if s.pool == nil {
		s.pool = iova.NewPool(pageSize, info.ranges)
	} else {
		s.pool.Limit(info.ranges)
	}
	return nil
}

// stop ends translation: there is no device any more. Memory of the space's own is unmapped.
func (s *Space) stop() {
	for m := range s.live {
		s.forget(m)
	}
	s.t, s.pool, s.known = nil, nil, iommuInfo{}
}

// pageSize is the smallest piece that is mapped.
var pageSize = uint64(os.Getpagesize())

// oldRanges are for kernels that do not tell: what every IOMMU has, but for the addresses of
// interrupt messages on a PC.
var oldRanges = iova.Spans{{Base: 0, End: 0xfee00000}, {Base: 0xfef00000, End: 1 << 39}}

// lowest is the first address that is given out: a device that was told nothing, or 0, or
// a small number by mistake hits nothing.
const lowest = 1 << 20

// usable is ranges in whole pages, without the lowest addresses.
func usable(r iova.Spans) iova.Spans {
	var out iova.Spans
	for _, s := range r {
		if s.Base > iova.None-pageSize {
			continue
		}
		s.Base, s.End = (max(s.Base, lowest)+pageSize-1)&^(pageSize-1), s.End&^(pageSize-1)
		if s.Base < s.End {
			out.Put(s)
		}
	}
	return out
}

// mapping is memory that the devices of a space reach.
type mapping struct {
	at    iova.Span // its addresses, and a page behind them where they were not chosen by somebody else
	mem   []byte    // whole pages
	owner *Device   // with which it ends; nil: with the space
	live  bool      // the IOMMU has it; guarded by Space.mu
}

// place finds addresses and maps memory there, with the first of perms that the memory allows.
// better is the alignment that would be best.
func (s *Space) place(step string, owner *Device, q bus.DMARequest, mem []byte, better uint64, perms []perm) (*mapping, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuse(owner); err != nil {
		return nil, fmt.Errorf("%s DMA memory: %w", step, err)
	}
	at, ok := s.pool.Take(q, better, iova.None)
	if !ok {
		return nil, iova.NoRoom(step, q, "the device's addresses")
	}
	return s.enter(step, &mapping{at: at, mem: mem, owner: owner}, perms)
}

// placeAt maps memory at addresses that somebody else chose.
func (s *Space) placeAt(step string, owner *Device, at iova.Span, mem []byte, p perm) (*mapping, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuse(owner); err != nil {
		return nil, fmt.Errorf("%s DMA memory: %w", step, err)
	}
	if !s.pool.TakeAt(at) {
		return nil, fmt.Errorf("%s DMA memory: the IOMMU does not take %#x to %#x, or something is there: %w", step, at.Base, at.End-1, bus.ErrBusy)
	}
	return s.enter(step, &mapping{at: at, mem: mem, owner: owner}, []perm{p})
}

// enter maps memory at addresses that were taken, and gives these back where that fails. mu is held.
func (s *Space) enter(step string, m *mapping, perms []perm) (*mapping, error) {
	err := error(unix.EFAULT)
	for i := 0; i < len(perms) && errors.Is(err, unix.EFAULT); i++ {
		err = s.t.add(m.at.Base, m.mem, perms[i])
		if errors.Is(err, unix.ENOMEM) && raiseMemlock() {
			err = s.t.add(m.at.Base, m.mem, perms[i])
		}
	}
	if err != nil {
		s.pool.Put(m.at)
		return nil, fmt.Errorf("%s DMA memory: mapping %d bytes at %#x: %w", step, len(m.mem), m.at.Base, whyNotMapped(err, uint64(len(m.mem)), s.api == Cdev))
	}
	m.live = true
	s.live[m] = struct{}{}
	return m, nil
}

// refuse says why memory cannot be mapped for a device, or for all of them.
func (s *Space) refuse(owner *Device) error {
	switch {
	case owner != nil && owner.Err() != nil:
		return owner.Err()
	case owner != nil && !slices.Contains(s.members, owner):
		return bus.ErrClosed
	case s.closed && owner == nil:
		return bus.ErrClosed
	case s.noIOMMU:
		return fmt.Errorf("nothing translates addresses: %w", bus.ErrNoIOMMU)
	case s.t == nil:
		return fmt.Errorf("no device is in the space: %w", bus.ErrNotSupported)
	}
	return nil
}

// remove takes memory away from the devices: when it returns they cannot reach it.
func (s *Space) remove(m *mapping) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.live {
		s.forget(m)
	}
}

// forget is remove with mu held.
func (s *Space) forget(m *mapping) {
	m.live = false
	delete(s.live, m)
	// A failure leaves its addresses unused: something may still be there.
	if s.t.remove(m.at.Base, uint64(len(m.mem))) == nil {
		s.pool.Put(m.at)
	}
}

// permission is what a device may do with memory of a direction.
func permission(d bus.Direction) perm {
	switch d {
	case bus.ToDevice:
		return permRead
	case bus.FromDevice:
		return permWrite
	}
	return permRead | permWrite
}

// leave takes a device and its memory out. The device's descriptor is closed.
func (s *Space) leave(d *Device) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.members, d)
	if i < 0 {
		return nil
	}
	for m := range s.live {
		if m.owner == d {
			s.forget(m)
		}
	}
	s.members = slices.Delete(s.members, i, i+1)
	var err error
	if d.group != nil {
		err = s.dropGroup(d.group)
	}
	return errors.Join(err, s.release())
}
