package vfio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/iova"
	"github.com/ring3dev/ring3/internal/syspci"
)

// fake is a kernel with VFIO and a machine: devices whose registers are files in memory, an
// IOMMU that is a list, eventfds that are real. It keeps the kernel's rules as far as this
// package depends on them.
type fake struct {
	t    *testing.T
	root string // its sysfs

	mu     sync.Mutex
	files  map[inode]any // what a descriptor is
	keep   []*os.File    // its own view of devices
	groups map[int]*fakeGroup
	funcs  map[string]*fakeFunc
	denied map[string]error // opening a path fails
	cdevs  bool

	ranges  []iova.Span
	pages   uint64
	avail   int
	memlock uint64 // 0: no limit
	failAt  int    // this operation fails, counted from 1
	ops     int
	trace   []string
}

type fakeGroup struct {
	n         int
	viable    bool
	container *fakeSpace
}

// fakeSpace is a container, or iommufd with its one IOAS.
type fakeSpace struct {
	kind int
	maps map[uint64]fakeMap
}

type fakeMap struct {
	mem []byte
	p   perm
}

// fakeFunc is a function, and its device file.
type fakeFunc struct {
	addr     pci.Addr
	group    int
	file     *os.File
	ino      inode
	sparse   bool
	io       bool // region 1 is in I/O space
	canReset bool
	space    *fakeSpace
	irqs     map[uint32]map[uint32]int32 // eventfds by index and vector
	masked   bool                        // the line
	high     bool
	hit      []dependent // by a bus reset
	resets   int
	hotWith  []int32
	left     int // MSI vectors left, 0 for all
	dead     bool
}

const (
	barSize  = 4 * 4096
	cfgSize  = 4096
	vectors  = 8
	fakeLine = 11
)

func offsetOf(region uint32) int64 { return int64(region) << 40 }

func newFake(t *testing.T) *fake {
	f := &fake{
		t: t, root: t.TempDir(), files: map[inode]any{}, groups: map[int]*fakeGroup{}, funcs: map[string]*fakeFunc{}, denied: map[string]error{},
		ranges: []iova.Span{{Base: 0, End: 0xfee00000}, {Base: 0xfef00000, End: 1 << 39}}, pages: 4096 | 2<<20, avail: 65535,
	}
	f.write("bus/pci/drivers/vfio-pci/x", "")
	t.Cleanup(func() {
		for _, k := range f.keep {
			k.Close()
		}
	})
	return f
}

func (f *fake) write(path, text string) {
	f.t.Helper()
	p := filepath.Join(f.root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) link(path, to string) {
	f.t.Helper()
	p := filepath.Join(f.root, path)
	_ = os.Remove(p)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.Symlink(to, p)); err != nil {
		f.t.Fatal(err)
	}
}

// add puts a function into the machine. group < 0 is none.
func (f *fake) add(addr string, group int, driver string) *fakeFunc {
	f.t.Helper()
	a, err := pci.ParseAddr(addr)
	if err != nil {
		f.t.Fatal(err)
	}
	dir := "bus/pci/devices/" + addr + "/"
	for file, text := range map[string]string{
		"vendor": "0x1234", "device": "0x11e8", "subsystem_vendor": "0x1af4", "subsystem_device": "0x1100", "class": "0x00ff00", "revision": "0x10", "irq": strconv.Itoa(fakeLine),
		"resource": fmt.Sprintf("0x%016x 0x%016x 0x%016x\n", 0xfea00000, 0xfea00000+barSize-1, 0x200) +
			"0x000000000000c000 0x000000000000c01f 0x0000000000000101\n" + strings.Repeat("0x0 0x0 0x0\n", 4),
	} {
		f.write(dir+file, text)
	}
	if driver != "" {
		f.link(dir+"driver", "../../../bus/pci/drivers/"+driver)
	}
	if group >= 0 {
		f.link(dir+"iommu_group", "../../../kernel/iommu_groups/"+strconv.Itoa(group))
		f.write(fmt.Sprintf("kernel/iommu_groups/%d/devices/%s", group, addr), "")
		if f.groups[group] == nil {
			f.groups[group] = &fakeGroup{n: group, viable: true}
		}
	}
	fn := &fakeFunc{addr: a, group: group, canReset: true, irqs: map[uint32]map[uint32]int32{}}
	fn.file, fn.ino = f.memory("device")
	f.keep = append(f.keep, fn.file)
	if err := fn.file.Truncate(offsetOf(8)); err != nil {
		f.t.Fatal(err)
	}
	fn.config(0, 0x34, 0x12, 0xe8, 0x11, 0, 0, 0x10, 0, 0x10, 0x00, 0xff, 0x00)
	fn.config(uint64(pci.CfgCapPtr), 0x40)
	fn.config(0x40, pci.CapPM, 0, 3, 0, 0, 0)
	f.funcs[addr] = fn
	return fn
}

func (fn *fakeFunc) config(at uint64, b ...byte) {
	if _, err := fn.file.WriteAt(b, offsetOf(regionConfig)+int64(at)); err != nil {
		panic(err)
	}
}

// memory is a file in memory, and which one it is.
func (f *fake) memory(name string) (*os.File, inode) {
	f.t.Helper()
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		f.t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name), ino(fd)
}

// inode is a file. Its number alone is not: file systems count for themselves.
type inode struct{ dev, ino uint64 }

func ino(fd int) inode {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return inode{}
	}
	return inode{uint64(st.Dev), st.Ino}
}

// users is how many descriptors of a file this process has.
func users(n inode) int {
	c := 0
	ent, _ := os.ReadDir("/proc/self/fd")
	for _, e := range ent {
		if fd, _ := strconv.Atoi(e.Name()); ino(fd) == n {
			c++
		}
	}
	return c
}

func (f *fake) options() Options { return Options{Root: syspci.Root(f.root), kernel: f} }

// mustOpen opens a device, or fails the test.
func (f *fake) mustOpen(t *testing.T, addr string, o Options) *Device {
	t.Helper()
	d, err := Open(t.Context(), addr, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return d
}

var errFake = errors.New("made to fail")

// begin counts an operation. The caller unlocks.
func (f *fake) begin(format string, args ...any) error {
	f.mu.Lock()
	f.ops++
	f.trace = append(f.trace, fmt.Sprintf(format, args...))
	if f.ops == f.failAt {
		return errFake
	}
	return nil
}

// is what a descriptor is.
func is[T any](f *fake, fd int) (T, error) {
	x, ok := f.files[ino(fd)].(T)
	if !ok {
		return x, unix.ENOTTY
	}
	return x, nil
}

func (f *fake) give(x any) (int, error) {
	m, n := f.memory("vfio")
	fd, err := unix.FcntlInt(m.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	m.Close()
	f.files[n] = x
	return fd, err
}

func (f *fake) access(path string) error {
	defer f.mu.Unlock()
	if err := f.begin("access %s", path); err != nil {
		return err
	}
	return f.denied[path]
}

func (f *fake) open(path string) (int, error) {
	defer f.mu.Unlock()
	if err := f.begin("open %s", path); err != nil {
		return -1, err
	}
	if err := f.denied[path]; err != nil {
		return -1, err
	}
	base := filepath.Base(path)
	switch {
	case path == containerPath || path == iommufdPath:
		return f.give(&fakeSpace{maps: map[uint64]fakeMap{}})
	case strings.HasPrefix(path, "/dev/vfio/devices/"):
		for _, fn := range f.funcs {
			if "vfio"+strconv.Itoa(fn.group) == base {
				return f.openDevice(fn)
			}
		}
		return -1, unix.ENOENT
	}
	n, err := strconv.Atoi(strings.TrimPrefix(base, "noiommu-"))
	g := f.groups[n]
	if err != nil || g == nil {
		return -1, unix.ENOENT
	}
	for number, x := range f.files {
		if x == any(g) && users(number) > 0 {
			return -1, unix.EBUSY
		}
	}
	return f.give(g)
}

func (f *fake) openDevice(fn *fakeFunc) (int, error) {
	if fn.dead {
		return -1, unix.ENODEV
	}
	// A file description of its own.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fn.file.Fd()), unix.O_RDWR|unix.O_CLOEXEC, 0)
	f.files[fn.ino] = fn
	fn.irqs, fn.masked = map[uint32]map[uint32]int32{}, false
	return fd, err
}
