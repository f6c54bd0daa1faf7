package bench

import (
	"context"
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/mmio"
	"github.com/ring3dev/ring3/vfio/vfiouser"
)

// memory is a region that is shared memory.
type memory struct {
	*mmio.Region
	file *os.File
}

func newMemory(index int, size uint64) (m memory, err error) {
	fd, err := unix.MemfdCreate("ring3-bench", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return m, err
	}
	m.file = os.NewFile(uintptr(fd), "region")
	defer func() {
		if err != nil {
			m.file.Close()
		}
	}()
	if err := m.file.Truncate(int64(size)); err != nil {
		return m, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		return m, err
	}
	b, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return m, err
	}
	m.Region, err = mmio.NewRegion(bus.RegionInfo{Index: index, Size: size}, b, unix.Munmap)
	return m, err
}

func (m memory) Shared() (*os.File, int64, []bus.Part) {
	return m.file, 0, []bus.Part{{Size: m.Info().Size}}
}

func (m memory) close() error { return errors.Join(m.Close(), m.file.Close()) }

// withMemory is a device with one more region, as ivshmem has it; no model of package sim does.
type withMemory struct {
	bus.Device
	more memory
}

func (d *withMemory) Regions() []bus.RegionInfo { return append(d.Device.Regions(), d.more.Info()) }

func (d *withMemory) Region(index int) (bus.Region, error) {
	if index == d.more.Info().Index {
		return d.more, nil
	}
	return d.Device.Region(index)
}

// vfioUserMapped is accesses to a region that the server shares. It has no part in them, so it may
// as well be this process.
func vfioUserMapped(ctx context.Context, o *Options, emit func(Row) error) (err error) {
	const read, write = "read mapped", "posted write mapped"
	if !o.wantsAny("vfio-user", []string{read, write}) {
		return nil
	}
	near, _, err := simEDU(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, near.Close()) }()
	dev, err := near.Device("edu0")
	if err != nil {
		return err
	}
	here, err := newMemory(2, 4096)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, here.close()) }()
	srv, err := vfiouser.NewServer(&withMemory{dev, here}, vfiouser.ServerOptions{Log: o.Log})
	if err != nil {
		return err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, e := net.FileConn(f)
		err = errors.Join(err, e, f.Close())
		conns[i], _ = c.(*net.UnixConn)
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- srv.ServeConn(ctx, conns[0]) }()
	defer func() {
		cancel()
		<-served
	}()
	d, err := vfiouser.Open(ctx, conns[1], vfiouser.Options{Log: o.Log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	there, err := d.Region(2)
	if err != nil {
		return err
	}
	if o.wants("vfio-user", read) {
		if err := emit(pairNs(o, read, here, there, func(r bus.Region) { r.Read32(eduLive) })); err != nil {
			return err
		}
	}
	if !o.wants("vfio-user", write) {
		return nil
	}
	return emit(pairNs(o, write, here, there, func(r bus.Region) { r.Write32(eduLive, 1) }))
}
