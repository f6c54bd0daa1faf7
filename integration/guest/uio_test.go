//go:build vm

package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/uio"
)

// passUIO makes this program, run by root, open a UIO device's files and pass them on:
// guest.test pass-uio ADDRESS SOCKET.
const passUIO = "pass-uio"

func init() {
	if len(os.Args) != 4 || os.Args[1] != passUIO {
		return
	}
	if err := passFiles(os.Args[2], os.Args[3]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func passFiles(device, socket string) error {
	f, err := uio.OpenFiles(device, uio.Options{})
	if err != nil {
		return err
	}
	named := f.Named()
	names := slices.Sorted(maps.Keys(named))
	var fds []int
	for _, n := range names {
		fds = append(fds, int(named[n].Fd()))
	}
	b, err := json.Marshal(names)
	if err != nil {
		return err
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	_, _, err = c.(*net.UnixConn).WriteMsgUnix(b, unix.UnixRights(fds...), nil)
	return err
}

// uioFiles are the files of a device that uio_pci_generic has, opened by root and passed to this
// process, which is nobody.
func uioFiles(t *testing.T, addr string) *uio.Files {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "files")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if out, code := RunRoot(t, os.Args[0], passUIO, addr, socket); code != 0 {
		t.Fatalf("root opens %s: exit status %d: %s", addr, code, out)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, oob := make([]byte, 4096), make([]byte, 4096)
	n, oobn, _, _, err := c.(*net.UnixConn).ReadMsgUnix(b, oob)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	if err := json.Unmarshal(b[:n], &names); err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%d control messages, %v, want one", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != len(names) {
		t.Fatalf("%d descriptors for %v, %v", len(fds), names, err)
	}
	named := map[string]*os.File{}
	for i, name := range names {
		unix.CloseOnExec(fds[i])
		named[name] = os.NewFile(uintptr(fds[i]), name)
	}
	f, err := uio.FilesOf(addr, named)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// openUIO opens a device with files that root passed.
func openUIO(t *testing.T, f *uio.Files) *uio.Device {
	t.Helper()
	d, err := uio.Open(t.Context(), f.Device, uio.Options{Files: f, Log: bustest.Log(t)})
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

// boundUIO gives a device to uio_pci_generic and has root open its files.
func boundUIO(t *testing.T, id string) *uio.Files {
	t.Helper()
	addr := Address(t, id)
	Bind(t, addr, "uio_pci_generic")
	return uioFiles(t, addr)
}

// Registers of a root port (PCI Express Base 3.0, 7.8 and 7.10) and of QEMU's, which has a
// table of MSI-X at the beginning of its BAR.
const (
	devControl  bus.Off = 0x08 // of the PCI Express capability: Device Control, RW
	aerUncor    bus.Off = 0x04 // of the AER capability: Uncorrectable Error Status, RW1C
	aerRootCmd  bus.Off = 0x2c // Root Error Command, RW
	aerRootStat bus.Off = 0x30 // Root Error Status, RW1C
	msixData    bus.Off = 0x08 // of the table's first entry: Message Data, RW

	devControlErrors = 0xf // report correctable, non-fatal, fatal, unsupported request
	rootCmdAll       = 0x7 // interrupt for correctable, non-fatal, fatal
)

// rootPort is a root port with its hooks: an error that QEMU injects raises the line, until its
// status is cleared.
func rootPort(t *testing.T, d *uio.Device, id string) bustest.Subject {
	t.Helper()
	c := d.Config()
	aer, ok := pci.FindExtCap(c, pci.ExtCapAER)
	if !ok {
		t.Fatal("no AER capability: config space is cut, or this is no root port")
	}
	exp, ok := pci.FindCap(c, pci.CapPCIe)
	if !ok {
		t.Fatal("no PCI Express capability")
	}
	lower := func() {
		c.Write32(aer+aerUncor, c.Read32(aer+aerUncor))
		c.Write32(aer+aerRootStat, c.Read32(aer+aerRootStat))
	}
	oldCmd := pci.SetCommand(c, pci.CmdSERR, 0)
	oldCtl, oldRoot := c.Read16(exp+devControl), c.Read32(aer+aerRootCmd)
	c.Write16(exp+devControl, oldCtl|devControlErrors)
	lower()
	c.Write32(aer+aerRootCmd, rootCmdAll)
	t.Cleanup(func() {
		if d.Err() != nil {
			return
		}
		c.Write32(aer+aerRootCmd, oldRoot)
		lower()
		c.Write16(exp+devControl, oldCtl)
		pci.SetCommand(c, oldCmd&pci.CmdSERR, ^oldCmd&pci.CmdSERR)
	})
	return bustest.Subject{
		Device:  d,
		Scratch: &bustest.Scratch{Region: 0, Off: msixData, Reads: func(v uint32) uint32 { return v }},
		Raise: func() {
			var said string
			b := QMP(t, "human-monitor-command", map[string]any{"command-line": "pcie_aer_inject_error " + id + " COMP_TIME"})
			if err := json.Unmarshal(b, &said); err != nil || !strings.HasPrefix(said, "OK") {
				t.Errorf("pcie_aer_inject_error: %q, %v", said, err)
			}
		},
		Lower: lower,
	}
}

// A root port, which VFIO refuses: registers, all of config space, interrupt.
func TestUIORootPort(t *testing.T) {
	f := boundUIO(t, "port0")
	t.Run("Function", func(t *testing.T) {
		fn := openUIO(t, f).Function()
		if fn.Header != pci.HeaderBridge || fn.ID.String() != "1b36:000c" || fn.Config.Size() != 4096 || !fn.IsBridge() {
			t.Errorf("Function = %+v, want QEMU's root port", fn)
		}
		dir := "/sys/bus/pci/devices/" + f.Device
		for file, got := range map[string]uint8{"secondary_bus_number": fn.Secondary, "subordinate_bus_number": fn.Subordinate} {
			b, err := os.ReadFile(filepath.Join(dir, file))
			if want := fmt.Sprintln(got); err != nil || string(b) != want {
				t.Errorf("%s is %q, %v, want %q as in config space", file, b, err, want)
			}
		}
		if len(fn.BARs) != 1 || fn.BARs[0].Size != 4096 {
			t.Errorf("BARs = %+v, want one of 4096 bytes", fn.BARs)
		}
	})
	bustest.All(t, func(t *testing.T) bustest.Subject { return rootPort(t, openUIO(t, f), "port0") })
}

// A device in memory space, in all but DMA.
func TestUIOEdu(t *testing.T) {
	f := boundUIO(t, "edu0")
	bustest.All(t, func(t *testing.T) bustest.Subject { return bustest.Edu(t, openUIO(t, f)) })
	d := openUIO(t, f)
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 4096})
	if m != nil || !errors.Is(err, bus.ErrNoIOMMU) {
		t.Errorf("Alloc = %v, %v, want ErrNoIOMMU", m, err)
	}
}

// Without files from root, nobody has the BAR by the UIO driver's map, and config space not.
func TestUIOMap(t *testing.T) {
	f := boundUIO(t, "edu0")
	own := *f
	own.Resource = nil
	d := openUIO(t, &own)
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	const ident, liveness = 0x00, 0x04 // of edu: identification, and what answers with its inverse
	if got := r.Read32(ident); got&0xffff != 0x00ed {
		t.Errorf("identification = %#x, want ..00ed", got)
	}
	r.Write32(liveness, 0x12345678)
	if got := r.Read32(liveness); got != ^uint32(0x12345678) {
		t.Errorf("liveness = %#x, want %#x", got, ^uint32(0x12345678))
	}
}

// A BAR in I/O space: the 82574's window to its registers (datasheet, 10.1.1.4).
func TestUIOPorts(t *testing.T) {
	d := openUIO(t, boundUIO(t, "nic1"))
	mem, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	io, err := d.Region(2)
	if err != nil {
		t.Fatal(err)
	}
	const ioaddr, iodata = 0, 4
	const ral, rdbal = 0x5400, 0x2800 // Receive Address Low: the station address; Receive Descriptor Base Low
	if io.Info().Kind != bus.RegionIO {
		t.Fatalf("region 2 = %+v, want I/O space", io.Info())
	}
	io.Write32(ioaddr, ral)
	if got, want := io.Read32(iodata), mem.Read32(ral); got != want || want == 0 || want == 0xffffffff {
		t.Errorf("RAL by I/O space = %#x, by memory %#x, want the same", got, want)
	}
	if got := io.Read32(ioaddr); got != ral {
		t.Errorf("IOADDR = %#x, want %#x", got, ral)
	}
	io.Write32(ioaddr, rdbal)
	io.Write32(iodata, 0x12340000)
	if got := mem.Read32(rdbal); got != 0x12340000 {
		t.Errorf("RDBAL = %#x, want what was written by I/O space", got)
	}
}

// plugged waits until the kernel has a device that was plugged in, and is its address.
func plugged(t *testing.T, id string) string {
	t.Helper()
	addr := Address(t, id)
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat("/sys/bus/pci/devices/" + addr + "/irq"); err == nil {
			return addr
		}
		if time.Now().After(until) {
			t.Fatalf("the kernel has no %s (%s) 20 s after it was plugged in", id, addr)
		}
	}
}

// The kernel's reset, of a device that has one: registers forget, config space does not.
func TestUIOReset(t *testing.T) {
	Plug(t, "virtio-rng-pci", "id=flr0", "bus=port0", "disable-legacy=on")
	t.Cleanup(func() {
		Unplug(t, "flr0")
		WaitUnplugged(t, "flr0", 20*time.Second)
	})
	plugged(t, "flr0")
	d := openUIO(t, boundUIO(t, "flr0"))
	r, err := d.Region(4)
	if err != nil {
		t.Fatal(err)
	}
	const status, acknowledge = 0x14, 1 // device_status (Virtual I/O Device 1.1, 4.1.4.3 and 2.1)
	r.Write8(status, acknowledge)
	if got := r.Read8(status); got != acknowledge {
		t.Fatalf("device_status = %#x, want %#x as written", got, acknowledge)
	}
	c := d.Config()
	pci.SetCommand(c, pci.CmdMaster, 0)
	var before, after [16]uint32
	for i := range before {
		before[i] = c.Read32(bus.Off(4 * i))
	}
	if err := d.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.Read8(status); got != 0 {
		t.Errorf("device_status = %#x after Reset, want 0", got)
	}
	for i := range after {
		after[i] = c.Read32(bus.Off(4 * i))
	}
	if before != after {
		t.Errorf("the header after Reset is %08x, want %08x as before", after, before)
	}
}

// An unplugged device is dead within a second, and a touch of its BAR no SIGBUS.
func TestUIOUnplug(t *testing.T) {
	f := boundUIO(t, "hot0")
	d := openUIO(t, f)
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	q, err := d.EnableIRQs(bus.INTx, 1)
	if err != nil {
		t.Fatal(err)
	}
	const status = 0x08 // Device Status
	if got := r.Read32(status); got == 0xffffffff {
		t.Fatalf("STATUS = %#x", got)
	}
	touched := make(chan struct{})
	go func() {
		defer close(touched)
		for r.Read32(status) != 0xffffffff {
		}
	}()
	Unplug(t, "hot0")
	WaitUnplugged(t, "hot0", 20*time.Second)
	select {
	case <-d.Done():
	case <-time.After(10 * time.Second):
		t.Error("the device is not dead 10 s after the kernel let it go")
	}
	if err := d.Err(); !errors.Is(err, bus.ErrGone) || !strings.Contains(err.Error(), f.Device) {
		t.Errorf("Err = %v, want ErrGone", err)
	}
	<-touched
	if got := d.Config().Read16(pci.CfgVendor); got != 0xffff {
		t.Errorf("config space reads %#x, want all-ones", got)
	}
	q[0].Unmask()
	if err := d.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	_, err = uio.Open(t.Context(), f.Device, uio.Options{Files: f})
	oneLine(t, "Open of what was unplugged", err, bus.ErrGone, f.Device)
	Plug(t, "e1000e", "id=hot0", "netdev=net4", "bus=port1", "mac=52:54:00:12:34:5a", "romfile=")
	plugged(t, "hot0")
}

// A device that root unbinds from its driver is dead, and none of this process's business.
func TestUIOUnbind(t *testing.T) {
	f := boundUIO(t, "edu0")
	d := openUIO(t, f)
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TryBind(f.Device, ""); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the device is not dead 10 s after it was unbound")
	}
	if got := r.Read32(0); got != 0xffffffff {
		t.Errorf("a register reads %#x, want all-ones", got)
	}
	_, err = uio.Open(t.Context(), f.Device, uio.Options{Files: f})
	oneLine(t, "Open of what is unbound", err, bus.ErrNotSupported, f.Device, "no kernel driver has it", "sudo ring3 bind")
}

// What nobody may not do, and is told how it can be done.
func TestUIORights(t *testing.T) {
	f := boundUIO(t, "edu0")
	_, err := uio.Open(t.Context(), f.Device, uio.Options{})
	oneLine(t, "Open without files", err, fs.ErrPermission, f.Device, "config space", "sudo ring3 up --as $USER")
	// The kernel goes by who opened config space, whatever the mode of the file allows.
	cut := *f
	if cut.Config, err = os.Open("/sys/bus/pci/devices/" + f.Device + "/config"); err != nil {
		t.Fatal(err)
	}
	defer cut.Config.Close()
	_, err = uio.Open(t.Context(), f.Device, uio.Options{Files: &cut})
	oneLine(t, "Open with config space that nobody opened", err, unix.EPERM, f.Device, "64 of its 256 bytes", "sudo ring3 up --as $USER")
	_, err = uio.Open(t.Context(), f.Device, uio.Options{Files: f, DMAUnsafe: true})
	oneLine(t, "Open with dma=unsafe", err, bus.ErrNotSupported, f.Device, "IOMMU translates", "vfio")
	_, err = uio.Open(t.Context(), "0000:1f:1f.7", uio.Options{})
	oneLine(t, "Open of no device", err, bus.ErrGone, "0000:1f:1f.7", "lspci")
	nic := Address(t, "nic1")
	Bind(t, nic, "e1000e")
	_, err = uio.Open(t.Context(), nic, uio.Options{})
	oneLine(t, "Open of a device of another driver", err, bus.ErrBusy, nic, "driver e1000e has it", "sudo ring3 bind")
}

// oneLine checks an error that a user reads.
func oneLine(t *testing.T, what string, err, is error, words ...string) {
	t.Helper()
	if !errors.Is(err, is) {
		t.Errorf("%s = %v, want it to wrap %v", what, err, is)
		return
	}
	t.Log(err)
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s = %q, want it to say %q", what, err, w)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%s = %q, want one line", what, err)
	}
}
