package vfio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// type1 is a container's translation.
type type1 struct {
	k  kernel
	fd int
}

func (t type1) add(iova uint64, mem []byte, p perm) error { return t.k.mapDMA(t.fd, iova, mem, p) }
func (t type1) remove(iova, size uint64) error            { return t.k.unmapDMA(t.fd, iova, size) }

func (t type1) info() (iommuInfo, error) {
	b, err := t.k.iommuInfo(t.fd)
	if err != nil {
		return iommuInfo{}, err
	}
	return parseIOMMU(b)
}

// ioas is translation by iommufd.
type ioas struct {
	k  kernel
	fd int
	id uint32
}

func (t ioas) add(iova uint64, mem []byte, p perm) error {
	return t.k.mapIOAS(t.fd, t.id, iova, mem, p)
}
func (t ioas) remove(iova, size uint64) error { return t.k.unmapIOAS(t.fd, t.id, iova, size) }

func (t ioas) info() (iommuInfo, error) {
	b, align, err := t.k.ioasRanges(t.fd, t.id)
	if err != nil {
		return iommuInfo{}, err
	}
	r, err := parseRanges(b)
	return iommuInfo{pages: align, ranges: r, avail: -1}, err
}

// join opens a device in the space. d.fd is its descriptor then.
func (s *Space) join(d *Device, a *Access, o Options) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return fmt.Errorf("the space is closed: %w", bus.ErrClosed)
	case s.api != Auto && (s.api != a.API || s.noIOMMU != a.Unsafe):
		return fmt.Errorf("the space's other devices were opened by %s, this one would be by %s: name the API: %w", s.api, a.API, bus.ErrNotSupported)
	}
	s.k, s.api, s.noIOMMU = o.kernel, a.API, a.Unsafe
	defer func() {
		if err != nil {
			err = errors.Join(err, s.release())
		}
	}()
	if s.fd < 0 {
		if s.fd, err = o.open(a, a.Paths[0]); err != nil {
			return err
		}
	}
	if a.API == Cdev {
		err = s.joinIOAS(d, a, o)
	} else {
		err = s.joinGroup(d, a, o)
	}
	if err != nil {
		return err
	}
	s.members = append(s.members, d)
	return nil
}

// open opens a device file, or takes the one that was passed in.
func (o Options) open(a *Access, path string) (int, error) {
	if f := o.Files[path]; f != nil {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("duplicating the descriptor of %s: %w", path, err)
		}
		return fd, nil
	}
	fd, err := o.kernel.open(path)
	switch {
	case errors.Is(err, unix.EBUSY):
		return -1, fmt.Errorf("opening %s: IOMMU group %d is in use%s: %w", path, a.Group, o.holder(a), bus.ErrBusy)
	case err != nil:
		return -1, whyNotOpen(a.Addr, path, err)
	}
	return fd, nil
}

// holder names who has the device or its group open, as far as this process may see it.
func (o Options) holder(a *Access) string {
	paths := []string{a.Paths[1], filepath.Join("/dev/vfio", strconv.Itoa(a.Group))}
	for _, m := range a.Members {
		paths = append(paths, o.cdev(m.Addr)...)
	}
	paths = slices.DeleteFunc(paths, func(p string) bool { return p == iommufdPath })
	return holderOf(paths)
}

// holderOf names who has one of the files open.
func holderOf(paths []string) string {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, l := range links {
		if to, err := os.Readlink(l); err != nil || !slices.Contains(paths, to) {
			continue
		}
		pid := strings.Split(l, "/")[2]
		if pid == strconv.Itoa(os.Getpid()) {
			return ", by this process: open the devices of one group in one Space"
		}
		name, _ := os.ReadFile("/proc/" + pid + "/comm")
		return fmt.Sprintf(", by process %s (%s)", pid, strings.TrimSpace(string(name)))
	}
	return ", by another process"
}

// joinGroup opens a device by its group and the container.
func (s *Space) joinGroup(d *Device, a *Access, o Options) error {
	v, err := s.k.version(s.fd)
	if err == nil && v != apiVersion {
		err = fmt.Errorf("%d, want %d: %w", v, apiVersion, bus.ErrNotSupported)
	}
	if err != nil {
		return fmt.Errorf("asking %s for its version: %w", a.Paths[0], err)
	}
	g, err := s.openGroup(a, o)
	if err != nil {
		return err
	}
	d.fd, err = s.k.deviceOf(g.fd, a.Addr.String())
	switch {
	case errors.Is(err, unix.ENODEV):
		err = fmt.Errorf("vfio-pci let go of the device: %w", bus.ErrGone)
	case err != nil:
		err = fmt.Errorf("taking the device from %s: %w", g.path, err)
	}
	if err != nil {
		d.fd = -1
		return errors.Join(err, s.dropGroup(g))
	}
	d.group = g
	return nil
}

// openGroup finds a group that is open, or opens it and puts it into the container.
func (s *Space) openGroup(a *Access, o Options) (g *group, err error) {
	path := a.Paths[1]
	for _, g := range s.groups {
		if g.path == path {
			g.users++
			return g, nil
		}
	}
	g = &group{path: path, number: a.Group, users: 1}
	if g.fd, err = o.open(a, path); err != nil {
		return nil, err
	}
	s.groups = append(s.groups, g)
	if err := s.addGroup(g, a, o); err != nil {
		return nil, errors.Join(err, s.dropGroup(g))
	}
	return g, nil
}

func (s *Space) addGroup(g *group, a *Access, o Options) error {
	flags, err := s.k.groupFlags(g.fd)
	if err != nil {
		return fmt.Errorf("asking %s for its state: %w", g.path, err)
	}
	if flags&groupViable == 0 {
		if err := a.blocked(); err != nil {
			return err
		}
		return fmt.Errorf("IOMMU group %d has members at drivers of the kernel's: bind each to vfio-pci, or unbind it: %w", g.number, bus.ErrBusy)
	}
	if err := s.k.setContainer(g.fd, s.fd); err != nil {
		return fmt.Errorf("putting %s into its container: %w", g.path, err)
	}
	kind, name := kindType1v2, "type1v2"
	if a.Unsafe {
		kind, name = kindNone, "no IOMMU"
	}
	if s.translates() {
		return s.update() // in one container with others, which have set the kind
	}
	if ok, err := s.k.supports(s.fd, kind); err != nil {
		return fmt.Errorf("asking for %s: %w", name, err)
	} else if !ok {
		return fmt.Errorf("the kernel's VFIO has no %s (sudo modprobe vfio_iommu_type1): %w", name, bus.ErrNotSupported)
	}
	switch err := s.k.setIOMMU(s.fd, kind); {
	case errors.Is(err, unix.EPERM) && !a.Unsafe:
		return fmt.Errorf("switching on %s: the IOMMU does not remap interrupts, so a device could forge them: use a machine that does (QEMU: intel-iommu,intremap=on), or, at its risk, vfio_iommu_type1.allow_unsafe_interrupts=1: %w", name, err)
	case err != nil:
		return fmt.Errorf("switching on %s: %w", name, err)
	}
	if a.Unsafe {
		return nil
	}
	return s.start(type1{s.k, s.fd})
}

// translates says whether the IOMMU is set up.
func (s *Space) translates() bool { return s.t != nil || s.noIOMMU && len(s.groups) > 1 }

// dropGroup lets go of a group that a device used.
func (s *Space) dropGroup(g *group) error {
	if g.users--; g.users > 0 {
		return nil
	}
	s.groups = slices.DeleteFunc(s.groups, func(o *group) bool { return o == g })
	if len(s.groups) == 0 {
		s.stop()
	}
	return os.NewSyscallError("close "+g.path, unix.Close(g.fd))
}

// joinIOAS opens a device by its own file and iommufd.
func (s *Space) joinIOAS(d *Device, a *Access, o Options) (err error) {
	if d.fd, err = o.open(a, a.Paths[1]); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			unix.Close(d.fd)
			d.fd = -1
		}
	}()
	if err := s.k.bind(d.fd, s.fd); err != nil {
		return o.whyNotBound(a, err)
	}
	t, started := s.t.(ioas)
	if !started {
		t = ioas{k: s.k, fd: s.fd}
		if t.id, err = s.k.newIOAS(s.fd); err != nil {
			return fmt.Errorf("making an address space: %w", err)
		}
	}
	if err := s.k.attach(d.fd, t.id); err != nil {
		return fmt.Errorf("attaching the device to its address space: %w", err)
	}
	if started {
		return s.update()
	}
	return s.start(t)
}

// whyNotBound adds cause and remedy to the refusal of BIND_IOMMUFD.
func (o Options) whyNotBound(a *Access, err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("vfio-pci let go of the device: %w", bus.ErrGone)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("the IOMMU does not remap interrupts, so a device could forge them: use a machine that does, or, at its risk, iommufd.allow_unsafe_interrupts=1: %w", err)
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL):
		if err := a.blocked(); err != nil {
			return err
		}
		return fmt.Errorf("binding %s to iommufd: the device or its IOMMU group %d is in use%s: %w", a.Paths[1], a.Group, o.holder(a), bus.ErrBusy)
	}
	return fmt.Errorf("binding %s to iommufd: %w", a.Paths[1], err)
}
