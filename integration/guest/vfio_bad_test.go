//go:build vm

package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/vfio"
)

// wantLine checks that an error is one line that wraps want and says all of these.
func wantLine(t *testing.T, what string, err, want error, says ...string) {
	t.Helper()
	if !errors.Is(err, want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s = %v, want one line that wraps %v", what, err, want)
		return
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%s = %v, want it to say %q", what, err, s)
		}
	}
	t.Log(err)
}

// TestVFIOBad is bad input: each line has its cause and remedy.
func TestVFIOBad(t *testing.T) {
	open := func(addr string) error {
		d, err := vfio.Open(t.Context(), addr, vfio.Options{})
		if err == nil {
			err = d.Close()
			t.Errorf("%s was opened", addr)
		}
		return err
	}
	nic, shared0, shared1 := Address(t, "nic0"), Address(t, "shared0"), Address(t, "shared1")
	remedy := "sudo ring3 bind " + nic + " --driver vfio-pci --owner $USER"
	wantLine(t, "no such function", open("0000:1f:00.0"), bus.ErrGone, "lspci -D")
	wantLine(t, "a bridge", open(Address(t, "port0")), bus.ErrNotSupported, "bridge", "uio_pci_generic")
	Bind(t, nic, "")
	wantLine(t, "no driver", open(nic), bus.ErrNotSupported, remedy)
	Bind(t, nic, "e1000e")
	wantLine(t, "a kernel driver", open(nic), bus.ErrBusy, "the kernel's driver e1000e has it", remedy)
	b := Bind(t, nic, "vfio-pci")
	RunRoot(t, "chown", "0", b.Path)
	wantLine(t, "no permission", open(nic), fs.ErrPermission, "no permission on "+b.Path, remedy)
	RunRoot(t, "chown", strconv.Itoa(Nobody), b.Path)

	NeedSharedGroup(t)
	Bind(t, shared0, "vfio-pci")
	Bind(t, shared1, "e1000")
	wantLine(t, "a group with a member at a kernel driver", open(shared0), bus.ErrBusy, shared1+" (driver e1000)")
	a, err := vfio.Look(shared0, vfio.Options{})
	if err != nil || len(a.Members) < 2 || a.Err == nil {
		t.Errorf("Look = %+v, %v, want its group's members and what is wrong", a, err)
	}
	Bind(t, shared1, "vfio-pci")
	d := openVFIO(t, "shared0", vfio.Options{})
	wantLine(t, "a group that is open here", open(shared1), bus.ErrBusy, "by this process: open the devices of one group in one Space")
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	// Unbound between Look and Open.
	WriteRoot(t, "/sys/bus/pci/drivers/vfio-pci/unbind", shared0)
	wantLine(t, "unbound", open(shared0), bus.ErrNotSupported, "no driver has it")
}

// TestVFIOGroup uses both members of a group in one process: one space, memory of both.
func TestVFIOGroup(t *testing.T) {
	NeedSharedGroup(t)
	Memlock(t, enough)
	space := vfio.NewSpace()
	Bind(t, Address(t, "shared1"), "vfio-pci")
	var nics [2]netdev.Device
	for i, id := range []string{"shared0", "shared1"} {
		d := openVFIO(t, id, vfio.Options{Space: space})
		nics[i] = bindDriver(t, d, nil).(netdev.Device)
	}
	if err := space.Close(); err != nil { // it ends with its devices
		t.Error(err)
	}
	stop := traffic(t, nics[0])
	defer stop()
	for deadline := time.Now().Add(30 * time.Second); nics[1].Stats().RxPackets < 10; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d frames arrived in 30 s, want 10", nics[1].Stats().RxPackets)
		}
	}
}

// TestVFIOMemlock asks for more than may be locked, and raises what may be raised.
func TestVFIOMemlock(t *testing.T) {
	d := openVFIO(t, "edu0", vfio.Options{})
	for _, dir := range []bus.Direction{bus.Bidirectional, bus.ToDevice} {
		_, err := d.DMA().Alloc(bus.DMARequest{Size: 9 << 20, Dir: dir})
		wantLine(t, "9 MiB", err, unix.ENOMEM, "locking 9216 KiB: the limit is 8192 KiB", "LimitMEMLOCK=")
	}
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 7 << 20})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.DMA().Alloc(bus.DMARequest{Size: 2 << 20})
	wantLine(t, "2 MiB beside 7 MiB", err, unix.ENOMEM, "7168 KiB are locked already")
	m.Free()
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 4096, Max: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	m, err = d.DMA().Alloc(bus.DMARequest{Size: 1 << 20})
	if err != nil {
		t.Fatalf("Alloc with a low soft limit = %v, want it raised", err)
	}
	m.Free()
}

// TestVFIOHugePages has memory of reserved huge pages, where there are some.
func TestVFIOHugePages(t *testing.T) {
	Memlock(t, enough)
	const pool = "/proc/sys/vm/nr_hugepages"
	WriteRoot(t, pool, "4")
	defer WriteRoot(t, pool, "0")
	free := func() string {
		t.Helper()
		return strings.TrimSpace(ReadRoot(t, "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"))
	}
	if got := free(); got != "4" {
		t.Skipf("the kernel found %s huge pages of 4", got)
	}
	d := openVFIO(t, "edu0", vfio.Options{})
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 6 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if got := free(); got != "1" || m.IOVA%(2<<20) != 0 {
		t.Errorf("%s huge pages free, IOVA %#x, want 1 of 4, aligned", got, m.IOVA)
	}
	more, err := d.DMA().Alloc(bus.DMARequest{Size: 4 << 20}) // not enough are left
	if err != nil {
		t.Fatal(err)
	}
	m.Bytes[6<<20-1], more.Bytes[4<<20-1] = 1, 1
	m.Free()
	more.Free()
	if got := free(); got != "4" {
		t.Errorf("%s huge pages free after Free, want 4", got)
	}
}

// holdVFIO makes this program open devices and send frames from each until it is killed:
// guest.test hold-vfio ADDRESS...
const holdVFIO = "hold-vfio"

func init() {
	if len(os.Args) < 3 || os.Args[1] != holdVFIO {
		return
	}
	fmt.Println(hold(os.Args[2:]))
	os.Exit(1)
}

func hold(addrs []string) error {
	for _, a := range addrs {
		d, err := vfio.Open(context.Background(), a, vfio.Options{})
		if err != nil {
			return err
		}
		r := pci.Bind(context.Background(), d, pci.Env{Name: "eth0"}, []*pci.Driver{e1000.Driver})
		if r.Err != nil {
			return r.Err
		}
		if err := transmit(context.Background(), r.Instance.(netdev.Device), func() { fmt.Println("running") }); err != nil {
			return err
		}
	}
	return nil
}

// holder starts a process that holds a NIC, and waits until frames flow.
func holder(t *testing.T, addr string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], holdVFIO, addr)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "running\n" {
		t.Fatalf("the other process said %q, %v, want running", line, err)
	}
	return cmd
}

// TestVFIOKilled kills a process in the middle of traffic, ten times in a row: the next has the
// device at once.
func TestVFIOKilled(t *testing.T) {
	Memlock(t, enough)
	addr := Address(t, "nic0")
	Bind(t, addr, "vfio-pci")
	for i := range 10 {
		cmd := holder(t, addr)
		if i == 0 {
			_, err := vfio.Open(t.Context(), addr, vfio.Options{})
			wantLine(t, "a group that another process has", err, bus.ErrBusy, "is in use, by process "+strconv.Itoa(cmd.Process.Pid)+" (guest.test)")
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
	openVFIO(t, "nic0", vfio.Options{})
}

// TestNoIOMMUVFIO is a machine without an IOMMU.
func TestNoIOMMUVFIO(t *testing.T) {
	_, err := vfio.Open(t.Context(), Address(t, "nic0"), vfio.Options{})
	wantLine(t, "no IOMMU", err, bus.ErrNoIOMMU, "no IOMMU group", "intel_iommu=on")
}
