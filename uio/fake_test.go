package uio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// machine is a tree of sysfs and one of /dev, with one PCI function at address that
// uio_pci_generic has, and with what the kernel does for it: a model. Registers are files.
type machine struct {
	t   *testing.T
	sys string
	dev string

	uio  *net.UnixConn // the kernel's side of /dev/uio0
	file *os.File      // the other side

	mu    sync.Mutex
	high  bool   // the device asserts its line
	count uint32 // of interrupts
	ctl   []uint32
}

const (
	address  = "0000:00:05.0"
	barSize  = 0x2000
	smallBAR = 0x100 // a BAR smaller than a page, that begins inside one
	smallAt  = 0x300
	ioSize   = 0x20
)

// resource is the function's: two BARs in memory, one in I/O space.
var resource = fmt.Sprintf(`0x%016x 0x%016x 0x0000000000040200
0x%016x 0x%016x 0x0000000000040200
0x%016x 0x%016x 0x0000000000040101
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
`, 0xfe800000, 0xfe800000+barSize-1, 0xfe900000+smallAt, 0xfe900000+smallAt+smallBAR-1, 0xc000, 0xc000+ioSize-1)

// newMachine makes the tree. The function's header type is 0.
func newMachine(t *testing.T) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{t: t, sys: filepath.Join(dir, "sys"), dev: filepath.Join(dir, "dev"), count: 0xfffffffe}
	fn := m.fn()
	for name, s := range map[string]string{
		"vendor": "0x1234\n", "device": "0x11e8\n", "subsystem_vendor": "0x1af4\n", "subsystem_device": "0x1100\n",
		"class": "0x00ff00\n", "revision": "0x10\n", "driver_override": "(null)\n", "numa_node": "-1\n", "irq": "21\n",
		"resource": resource, "reset": "",
	} {
		m.write(filepath.Join(fn, name), s)
	}
	for name, size := range map[string]int{"config": 4096, "resource0": barSize, "resource1": 4096, "resource2": ioSize} {
		m.write(filepath.Join(fn, name), string(make([]byte, size)))
	}
	c := make([]byte, 64)
	copy(c, []byte{0x34, 0x12, 0xe8, 0x11, 0x03, 0x04}) // INTx-Disable is set, as uio_pci_generic leaves it
	m.config(0, c)
	m.link(filepath.Join(m.sys, "bus/pci/drivers", generic), filepath.Join(fn, "driver"))
	m.link(filepath.Join(m.sys, "bus/pci"), filepath.Join(fn, "subsystem"))
	m.link(fn, filepath.Join(m.sys, "bus/pci/devices", address))
	m.uioNode("uio0", fn, "uio0")
	m.write(filepath.Join(m.sys, "module/uio/version"), "")
	m.mkdir(filepath.Join(m.sys, "bus/pci/drivers", generic))
	m.mkdir(m.dev)
	m.connect()
	return m
}

// fn is the function's folder.
func (m *machine) fn() string { return filepath.Join(m.sys, "devices/pci0000:00", address) }

// uioNode makes a UIO device of the device in folder parent.
func (m *machine) uioNode(node, parent, name string) {
	dir := filepath.Join(parent, "uio", node)
	m.write(filepath.Join(dir, "event"), fmt.Sprintln(m.count))
	m.write(filepath.Join(dir, "name"), name+"\n")
	m.link(parent, filepath.Join(dir, "device"))
	m.link(dir, filepath.Join(m.sys, "class/uio", node))
}

// window adds a map to the UIO device in folder parent.
func (m *machine) window(parent, node string, n int, addr, size, offset uint64) {
	dir := filepath.Join(parent, "uio", node, "maps", fmt.Sprintf("map%d", n))
	for name, v := range map[string]uint64{"addr": addr, "size": size, "offset": offset} {
		m.write(filepath.Join(dir, name), fmt.Sprintf("0x%x\n", v))
	}
}

func (m *machine) mkdir(dir string) {
	m.t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) write(path, s string) {
	m.t.Helper()
	m.mkdir(filepath.Dir(path))
	if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) link(to, at string) {
	m.t.Helper()
	m.mkdir(filepath.Dir(at))
	if err := os.Symlink(to, at); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) remove(path string) {
	m.t.Helper()
	if err := os.RemoveAll(path); err != nil {
		m.t.Fatal(err)
	}
}

// connect makes /dev/uio0: packets in either direction, as the file has them.
func (m *machine) connect() {
	m.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	m.file = os.NewFile(uintptr(fds[0]), "/dev/uio0")
	f := os.NewFile(uintptr(fds[1]), "kernel")
	c, err := net.FileConn(f)
	if err != nil {
		m.t.Fatal(err)
	}
	f.Close()
	m.uio = c.(*net.UnixConn)
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { m.interrupts(stop) })
	running.Go(m.writes)
	m.t.Cleanup(func() {
		m.uio.Close()
		m.file.Close()
		close(stop)
		running.Wait()
	})
}

// writes is where writes to the file end.
func (m *machine) writes() {
	for {
		var b [4]byte
		n, err := m.uio.Read(b[:])
		if err != nil || n != len(b) {
			return
		}
		m.mu.Lock()
		m.ctl = append(m.ctl, binary.NativeEndian.Uint32(b[:]))
		m.mu.Unlock()
	}
}

// interrupts is uio_pci_generic's: a line that is high, and not held back, is held back and
// counted. It looks each millisecond; a real one is woken.
func (m *machine) interrupts(stop chan struct{}) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		m.mu.Lock()
		status := []byte{0}
		if m.high {
			status[0] = byte(pci.StatusINTx)
		}
		m.config(pci.CfgStatus, status)
		hi := m.readConfig(pci.CfgCommand+1, 1)[0]
		if m.high && hi&byte(pci.CmdINTxDisable>>8) == 0 {
			m.config(pci.CfgCommand+1, []byte{hi | byte(pci.CmdINTxDisable>>8)})
			m.fire(1)
		}
		m.mu.Unlock()
	}
}

// fire counts n interrupts. Called with mu held.
func (m *machine) fire(n uint32) {
	var b [4]byte
	m.count += n
	binary.NativeEndian.PutUint32(b[:], m.count)
	_, _ = m.uio.Write(b[:])
	_ = os.WriteFile(filepath.Join(m.sys, "class/uio/uio0/event"), []byte(fmt.Sprintln(m.count)), 0o644)
}

func (m *machine) raise(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.high = on
	if !on {
		m.config(pci.CfgStatus, []byte{0})
	}
}

func (m *machine) written() []uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]uint32(nil), m.ctl...)
}

// config writes to config space as the device does.
func (m *machine) config(off bus.Off, b []byte) {
	f, err := os.OpenFile(filepath.Join(m.fn(), "config"), os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return // the end of the test
	}
	if err != nil {
		m.t.Error(err)
		return
	}
	defer f.Close()
	if _, err := f.WriteAt(b, int64(off)); err != nil {
		m.t.Error(err)
	}
}

func (m *machine) readConfig(off bus.Off, n int) []byte {
	b := make([]byte, n)
	f, err := os.Open(filepath.Join(m.fn(), "config"))
	if err != nil {
		return b // the end of the test
	}
	defer f.Close()
	if _, err := f.ReadAt(b, int64(off)); err != nil {
		m.t.Error(err)
	}
	return b
}

func (m *machine) command() pci.Command {
	return pci.Command(binary.LittleEndian.Uint16(m.readConfig(pci.CfgCommand, 2)))
}

// options are those for the tree.
func (m *machine) options() Options { return Options{Sys: m.sys, Dev: m.dev} }

// files are what root would pass.
func (m *machine) files() *Files {
	m.t.Helper()
	open := func(name string, flag int) *os.File {
		f, err := os.OpenFile(filepath.Join(m.fn(), name), flag, 0)
		if err != nil {
			m.t.Fatal(err)
		}
		m.t.Cleanup(func() { f.Close() })
		return f
	}
	f := &Files{Device: address, UIO: m.file, Config: open("config", os.O_RDWR), Reset: open("reset", os.O_WRONLY), Resource: map[int]*os.File{}}
	for i := range 3 {
		f.Resource[i] = open(fmt.Sprintf("resource%d", i), os.O_RDWR)
	}
	return f
}

// open opens the function with files that root opened.
func (m *machine) open() *Device {
	m.t.Helper()
	o := m.options()
	o.Files = m.files()
	return m.openWith(address, o)
}

func (m *machine) openWith(device string, o Options) *Device {
	m.t.Helper()
	d, err := Open(m.t.Context(), device, o)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := d.Close(); err != nil {
			m.t.Errorf("Close = %v", err)
		}
	})
	return d
}

// fifo makes a file in /dev that can be opened by name, and has no interrupt pending.
func (m *machine) fifo(node string) {
	m.t.Helper()
	if err := syscall.Mkfifo(filepath.Join(m.dev, node), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// wantErr checks an error: one line, that wraps what it should and says these words.
func wantErr(t *testing.T, what string, err, is error, words ...string) {
	t.Helper()
	if !errors.Is(err, is) {
		t.Errorf("%s = %v, want it to wrap %v", what, err, is)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s = %q, want it to say %q", what, err, w)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%s = %q, want one line", what, err)
	}
}
