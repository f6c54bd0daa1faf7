package tap

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/ioctl"
	"github.com/ring3dev/ring3/netdev"
)

// tunPath is the kernel's device that makes TUN and TAP interfaces.
const tunPath = "/dev/net/tun"

// maxQueues is how many queues a TAP has at most (the kernel's MAX_TAP_QUEUES).
const maxQueues = 256

// Tap is a TAP interface: the program's end of it. Nothing is read from or written to the files of one that Open made, but to duplicates: what
// arrives there wakes nobody here. Its methods are safe for concurrent use.
type Tap struct {
	name   string
	queues []*file
}

// file is one queue of the interface.
type file struct {
	f   *os.File
	raw syscall.RawConn
}

// Open creates the interface, or takes over one that an administrator made for this user
// and that nobody uses. It has c.Queues queues (0 means one), carries a header before each
// frame, and is offered no offload yet.
func Open(c Config) (*Tap, error) {
	if err := checkName(c.Name); err != nil {
		return nil, err
	}
	n := max(c.Queues, 1)
	if n > maxQueues {
		return nil, fmt.Errorf("tap %s: %d queues, want at most %d: %w", c.Name, n, maxQueues, unix.EINVAL)
	}
	t := &Tap{name: c.Name}
	for i := range n {
		f, err := t.openQueue(n > 1 || i > 0)
		if err != nil {
			return nil, errors.Join(err, t.Close())
		}
		t.queues = append(t.queues, f)
	}
	if err := t.alone(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// checkName holds a name to what the kernel takes. None lets the kernel choose one.
func checkName(s string) error {
	if len(s) >= unix.IFNAMSIZ {
		return fmt.Errorf("tap %s: a name of %d bytes, want at most %d: %w", s, len(s), unix.IFNAMSIZ-1, unix.ENAMETOOLONG)
	}
	if s == "." || s == ".." || strings.ContainsAny(s, "/:% \t\n\v\f\r\x00") {
		return fmt.Errorf("tap %q: an interface's name has no space, '/', ':' or '%%': %w", s, unix.EINVAL)
	}
	return nil
}

// openQueue opens one more queue. An interface that was made without multi_queue serves
// where one queue is enough.
func (t *Tap) openQueue(many bool) (*file, error) {
	fd, err := attach(t.name, unix.IFF_MULTI_QUEUE)
	if errors.Is(err, unix.EINVAL) && !many {
		fd, err = attach(t.name, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", t.name, explain(t.name, many, err))
	}
	f := os.NewFile(uintptr(fd), tunPath)
	raw, err := f.SyscallConn()
	if err == nil {
		q := &file{f, raw}
		if err = q.setUp(t); err == nil {
			return q, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("tap %s: setting the interface up: %w", t.name, err), f.Close())
}

// attach opens a queue of the interface.
func attach(name string, flags uint16) (fd int, err error) {
	fd, err = unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: tunPath, Err: err}
	}
	r, err := unix.NewIfreq(name)
	if err == nil {
		r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// setUp learns the name, and says what headers look like.
func (q *file) setUp(t *Tap) error {
	return q.do(func(fd int) error {
		r, err := unix.NewIfreq(t.name)
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, r); err != nil {
			return err
		}
		t.name = r.Name()
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, headerLen); err != nil {
			return fmt.Errorf("headers of %d bytes: %w", headerLen, err)
		}
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1); err != nil {
			return fmt.Errorf("little-endian headers: %w", err)
		}
		return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0)
	})
}

// do calls f with the file's descriptor.
func (q *file) do(f func(fd int) error) error {
	var err error
	if e := q.raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

// duplicate is another descriptor of the queue.
func (q *file) duplicate() (f *os.File, err error) {
	err = q.do(func(fd int) error {
		fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			f = os.NewFile(uintptr(fd), tunPath)
		}
		return err
	})
	return f, err
}

// readable makes a queue of f, which stays the caller's, that the runtime's poller waits for. Passing a descriptor on may have made it one that blocks.
func readable(f *os.File) (*file, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if e := raw.Control(func(u uintptr) {
		if fd, err = unix.FcntlInt(u, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = unix.SetNonblock(fd, true)
		}
	}); e != nil {
		return nil, e
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, err
	}
	q := &file{f: os.NewFile(uintptr(fd), tunPath)}
	q.raw, err = q.f.SyscallConn()
	return q, err
}

// explain says why an interface cannot be had, and what to do about it.
func explain(name string, many bool, err error) error {
	make := fmt.Sprintf("sudo ip tuntap add dev %s mode tap user $USER multi_queue vnet_hdr", or(name, "tap0"))
	var open *fs.PathError
	if errors.As(err, &open) {
		switch open.Err {
		case unix.ENOENT, unix.ENODEV, unix.ENXIO:
			return fmt.Errorf("%w: load the module (sudo modprobe tun), or give the container the device", err)
		case unix.EACCES, unix.EPERM:
			return fmt.Errorf("%w: distributions ship it for everybody (sudo chmod 0666 %s)", err, tunPath)
		}
		return err
	}
	link, _ := netlink.LinkByName(name) // without netlink, the shorter answer
	tun, isTun := link.(*netlink.Tuntap)
	switch {
	case errors.Is(err, unix.EPERM) && link == nil:
		return fmt.Errorf("creating the interface needs CAP_NET_ADMIN; have it made: %s: %w", make, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("the interface belongs to somebody else; have it made for you: %s: %w", make, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("another program uses the interface: %w", err)
	case link != nil && (!isTun || tun.Mode != unix.IFF_TAP):
		return fmt.Errorf("the name is taken by an interface of type %s that is no TAP: %w", kind(link), unix.EEXIST)
	case errors.Is(err, unix.EINVAL) && isTun && many:
		return fmt.Errorf("the interface was made without multi_queue; have it made again: sudo ip link del %s && %s: %w", name, make, err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("the kernel takes neither the name nor the flags of the interface: %w", err)
	}
	return fmt.Errorf("creating the interface: %w", err)
}

// kind is what `ip -d link` calls an interface.
func kind(l netlink.Link) string {
	if t, ok := l.(*netlink.Tuntap); ok && t.Mode == unix.IFF_TUN {
		return "tun"
	}
	return l.Type()
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// alone makes sure that no other program has queues of the interface: the kernel would
// deal the frames out between both.
func (t *Tap) alone() error {
	link, err := netlink.LinkByName(t.name)
	if err != nil {
		return nil // without netlink, the administrator's care
	}
	if l, ok := link.(*netlink.Tuntap); ok && l.Queues+l.DisabledQueues > len(t.queues) {
		return fmt.Errorf("tap %s: another program uses %d queues of the interface: %w", t.name, l.Queues+l.DisabledQueues-len(t.queues), unix.EBUSY)
	}
	return nil
}

// Name is the interface's name when it was opened.
func (t *Tap) Name() string { return t.name }

// Queues is how many queues there are.
func (t *Tap) Queues() int { return len(t.queues) }

// now is the interface's name at this moment; it fails with EBADFD where the interface is
// no more.
func (t *Tap) now() (name string, err error) {
	err = t.queues[0].do(func(fd int) error {
		r, err := unix.NewIfreq("")
		if err == nil {
			err = unix.IoctlIfreq(fd, unix.TUNGETIFF, r)
		}
		if err == nil {
			name = r.Name()
		}
		return err
	})
	return name, err
}

// SetMAC sets the interface's station address.
func (t *Tap) SetMAC(mac net.HardwareAddr) error {
	if len(mac) != 6 {
		return fmt.Errorf("tap %s: setting the address %s: want 6 bytes: %w", t.name, mac, unix.EINVAL)
	}
	if err := t.queues[0].do(func(fd int) error { return ioctl.SetHWAddr(fd, [6]byte(mac)) }); err != nil {
		return fmt.Errorf("tap %s: setting the address %s: %w", t.name, mac, err)
	}
	return nil
}

// SetCarrier says whether the interface has a link. Kernels before 4.20 always have one.
func (t *Tap) SetCarrier(up bool) error {
	v := 0
	if up {
		v = 1
	}
	err := t.queues[0].do(func(fd int) error { return unix.IoctlSetPointerInt(fd, tunSetCarrier, v) })
	if err != nil {
		return fmt.Errorf("tap %s: setting the carrier to %d: %w", t.name, v, err)
	}
	return nil
}

// tunSetCarrier is TUNSETCARRIER, _IOW('T', 226, int).
const tunSetCarrier = unix.TUNSETCARRIER

// SetOffload tells the kernel what it may leave to the reader of frames: of f, checksums and
// TCP segmentation. Segmentation goes with checksums only.
func (t *Tap) SetOffload(f netdev.Feature) error {
	v := 0
	if f&netdev.TxCsum != 0 {
		v |= unix.TUN_F_CSUM
		if f&netdev.TxTSO4 != 0 {
			v |= unix.TUN_F_TSO4
		}
		if f&netdev.TxTSO6 != 0 {
			v |= unix.TUN_F_TSO6
		}
	}
	if err := t.queues[0].do(func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, v) }); err != nil {
		return fmt.Errorf("tap %s: setting offloads to %#x (%s): %w", t.name, v, f, err)
	}
	return nil
}

// netns opens the network namespace that the interface is in.
func (t *Tap) netns() (fd int, err error) {
	fd = -1
	err = t.queues[0].do(func(f int) (err error) {
		fd, err = unix.IoctlRetInt(f, unix.TUNGETDEVNETNS)
		return err
	})
	return fd, err
}

// Close gives the interface back; one that was created here is gone then. It is idempotent.
func (t *Tap) Close() error {
	var err error
	for _, q := range t.queues {
		if e := q.f.Close(); e != nil && !errors.Is(e, fs.ErrClosed) {
			err = errors.Join(err, fmt.Errorf("tap %s: closing: %w", t.name, e))
		}
	}
	return err
}

// errGone says that the interface was deleted.
func (t *Tap) errGone() error {
	return fmt.Errorf("tap %s: the interface was deleted: %w", t.name, bus.ErrGone)
}
