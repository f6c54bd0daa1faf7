//go:build vm

package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/internal/ioctl"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/vfio"
)

// lentVFIO opens a device and lends it.
func lentVFIO(t *testing.T, id string) (*vfio.Device, *vfio.Loan) {
	t.Helper()
	d := openVFIO(t, id, vfio.Options{})
	l, err := d.Lend(vfio.LoanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return d, l
}

// conformLent holds a borrowed device to the contract, lender and borrower being one process.
func conformLent(t *testing.T, id string, hooks func(*testing.T, bus.Device) bustest.Subject) {
	Memlock(t, enough)
	bustest.All(t, func(t *testing.T) bustest.Subject {
		owner, l := lentVFIO(t, id)
		d, err := vfio.Borrow(t.Context(), l, vfio.Options{Log: bustest.Log(t)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Errorf("closing the borrowed %s: %v", id, err)
			}
		})
		s := hooks(t, d)
		s.Kill = func() { askBack(t, owner) }
		return s
	})
}

func TestVFIOLentEdu(t *testing.T)    { conformLent(t, "edu0", bustest.Edu) }
func TestVFIOLentE1000e(t *testing.T) { conformLent(t, "nic0", slowE1000e) }

// Methods between a lender and a borrower that is another process.
const (
	lentCall    link.Method = 0x0301 // call to the lender, of package vfio's
	lentRunning link.Method = 0x0302 // event to it: frames are being sent
)

// borrower names the environment variable by which this program is one, with the link as descriptor 3.
const borrower = "RING3_TEST_BORROWER"

func init() {
	if os.Getenv(borrower) == "" {
		return
	}
	if err := borrowAndSend(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// overLink is a vfio.Lender at the other end of a link.
type overLink struct{ c *link.Conn }

func (l overLink) Call(ctx context.Context, request []byte) ([]byte, []*os.File, error) {
	return l.c.Call(ctx, lentCall, request)
}

// borrowAndSend borrows a NIC and sends until it is killed, or the link ends.
func borrowAndSend() error {
	u, err := link.Open(os.NewFile(3, "link"))
	if err != nil {
		return err
	}
	c := link.New(u, link.Mux{}, link.Options{Name: "lender"})
	ctx := context.Background()
	d, err := vfio.Borrow(ctx, overLink{c}, vfio.Options{})
	if err != nil {
		return err
	}
	r := pci.Bind(ctx, d, pci.Env{Name: "eth0"}, []*pci.Driver{e1000.Driver})
	if r.Outcome != pci.Bound {
		return fmt.Errorf("binding: %w", r.Err)
	}
	go func() {
		<-c.Done()
		os.Exit(1)
	}()
	return transmit(ctx, r.Instance.(netdev.Device), func() { _ = c.Send(lentRunning, nil) })
}

// lenderEnd is the lender's end of a link.
type lenderEnd struct {
	l       *vfio.Loan
	running chan struct{}
}

func (e lenderEnd) Call(ctx context.Context, m link.Method, body []byte, files []*os.File, _ func([]byte) error) ([]byte, []*os.File, error) {
	for _, f := range files {
		f.Close()
	}
	return e.l.Call(ctx, body)
}

func (e lenderEnd) Event(link.Method, []byte, []*os.File) error {
	close(e.running)
	return nil
}

// vectorsOf are the lines of /proc/interrupts that VFIO has for a function.
func vectorsOf(t *testing.T, addr string) (lines []string) {
	t.Helper()
	for line := range strings.Lines(ReadRoot(t, "/proc/interrupts")) {
		if strings.Contains(line, "vfio") && strings.Contains(line, "("+addr+")") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// TestVFIOLentKilled kills a process that drives a NIC under full traffic, again and again. Whoever lent it the device stops it: interrupts are off, it is no
// bus master, nothing is mapped, and nothing strays; the next one has a device that works.
func TestVFIOLentKilled(t *testing.T) {
	Memlock(t, enough)
	owner, l := lentVFIO(t, "nic0")
	before := owner.Space().Info().MoreMappings
	faults := strings.Count(KernelLog(t), "DMAR: [DMA")
	var took []time.Duration
	for round := range 10 {
		ours, theirs, err := link.Pair()
		if err != nil {
			t.Fatal(err)
		}
		end := lenderEnd{l, make(chan struct{})}
		c := link.New(ours, link.Mux{3: end}, link.Options{Name: "borrower"})
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), borrower+"=1")
		cmd.ExtraFiles = []*os.File{theirs}
		var said bytes.Buffer
		cmd.Stderr = &said
		err = cmd.Start()
		theirs.Close()
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-end.running:
		case <-c.Done():
			_ = cmd.Wait()
			t.Fatalf("round %d: the borrower ended: %v: %s", round, cmd.ProcessState, said.String())
		case <-time.After(60 * time.Second):
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatalf("round %d: nothing is sent after 60 s: %s", round, said.String())
		}
		if n := len(vectorsOf(t, owner.Address())); n == 0 {
			t.Errorf("round %d: no interrupts are enabled while it runs", round)
		}
		if c := pci.Command(owner.Config().Read16(pci.CfgCommand)); c&pci.CmdMaster == 0 {
			t.Errorf("round %d: no bus master while it runs", round)
		}
		if i := owner.Space().Info(); i.API == vfio.Group && i.MoreMappings >= before {
			t.Errorf("round %d: nothing is mapped while it runs", round)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		start := time.Now()
		if err := l.Recall(t.Context()); err != nil {
			t.Fatalf("round %d: Recall = %v", round, err)
		}
		took = append(took, time.Since(start))
		c.Close()
		if v := vectorsOf(t, owner.Address()); v != nil {
			t.Errorf("round %d: interrupts are enabled afterwards: %q", round, v)
		}
		if c := pci.Command(owner.Config().Read16(pci.CfgCommand)); c&pci.CmdMaster != 0 {
			t.Errorf("round %d: a bus master afterwards (Command %#x)", round, uint16(c))
		}
		if n := owner.Space().Info().MoreMappings; n != before {
			t.Errorf("round %d: %d mappings can be made afterwards, want %d as before", round, n, before)
		}
	}
	if n := strings.Count(KernelLog(t), "DMAR: [DMA"); n != faults {
		t.Errorf("%d DMA faults in the kernel's log, want none of a device that was stopped first", n-faults)
	}
	slices.Sort(took)
	t.Logf("a device is taken back in %v (median), %v at most", took[len(took)/2], took[len(took)-1])
}

// TestVFIOLentRights: what a borrower has in hand, a device's file, is not enough to map anything.
func TestVFIOLentRights(t *testing.T) {
	_, l := lentVFIO(t, "edu0")
	_, files, err := l.Call(t.Context(), []byte(`{"op":"open"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
		if err := l.Recall(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	for what, err := range hostileIoctls(int(files[0].Fd())) {
		if err == nil {
			t.Errorf("%s by the device's file is let through", what)
		} else {
			t.Logf("%s: %v", what, err)
		}
	}
	if _, err := vfio.Borrow(t.Context(), l, vfio.Options{}); !errors.Is(err, bus.ErrBusy) {
		t.Errorf("borrowing it twice = %v, want ErrBusy", err)
	}
}

// fixed are the bytes of a function's config space that nobody but its kernel may set: what it is, BARs, ROM, and where its capabilities say that interrupts go.
func fixed(t *testing.T, addr string) []byte {
	t.Helper()
	b := []byte(ReadRoot(t, "/sys/bus/pci/devices/"+addr+"/config"))
	if len(b) < 256 {
		t.Fatalf("%s: its config space has %d bytes, want 256 at least", addr, len(b))
	}
	out := append(slices.Clone(b[:4]), b[8:0x0c]...)
	out = append(out, b[0x10:0x3c]...)
	for p, n := b[0x34]&^3, 0; p >= 0x40 && n < 48; p, n = b[p+1]&^3, n+1 {
		switch b[p] {
		case pci.CapMSI:
			out = append(out, b[p+4:p+14]...) // address, data
		case pci.CapMSIX:
			out = append(out, b[p+4:p+12]...) // where table and PBA are
		}
	}
	return out
}

// TestVFIOLentConfig writes everything that can be written to a borrowed device's config space: BARs, message addresses and data, Command, power. The hardware's BARs and
// messages are what the kernel made them; and once the device is taken back, the next borrower has one that works.
func TestVFIOLentConfig(t *testing.T) {
	Memlock(t, enough)
	owner, l := lentVFIO(t, "nic0")
	before := fixed(t, owner.Address())
	_, files, err := l.Call(t.Context(), []byte(`{"op":"open"}`))
	if err != nil {
		t.Fatal(err)
	}
	fd := int(files[0].Fd())
	region := make([]byte, 32) // struct vfio_region_info
	binary.NativeEndian.PutUint32(region, 32)
	binary.NativeEndian.PutUint32(region[8:], 7) // VFIO_PCI_CONFIG_REGION_INDEX
	if _, err := ioctl.Bytes(fd, 0x3b00+108, region); err != nil {
		t.Fatal(err)
	}
	size, at := int64(binary.NativeEndian.Uint64(region[16:])), int64(binary.NativeEndian.Uint64(region[24:]))
	if size < 256 || size > 4096 {
		t.Fatalf("config space has %d bytes", size)
	}
	for _, v := range []byte{0xff, 0x00, 0xa5, 0x5a, 0x01, 0x07} {
		for off := range size {
			_, _ = unix.Pwrite(fd, []byte{v}, at+off)
		}
		for off := int64(0); off < size; off += 4 {
			_, _ = unix.Pwrite(fd, []byte{v, v, v, v}, at+off)
		}
		if now := fixed(t, owner.Address()); !bytes.Equal(now, before) {
			t.Errorf("after %#02x everywhere: the hardware has % x, want % x as before", v, now, before)
		}
	}
	if _, err := unix.Pwrite(fd, make([]byte, 4096), at+size-4); err == nil {
		if now := fixed(t, owner.Address()); !bytes.Equal(now, before) {
			t.Errorf("after a write over the end: % x, want % x", now, before)
		}
	}
	for _, f := range files {
		f.Close()
	}
	if err := l.Recall(t.Context()); err != nil {
		t.Fatalf("Recall = %v", err)
	}
	if now := fixed(t, owner.Address()); !bytes.Equal(now, before) {
		t.Errorf("afterwards the hardware has % x, want % x as before", now, before)
	}
	d, err := vfio.Borrow(t.Context(), l, vfio.Options{Log: bustest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r := pci.Bind(t.Context(), d, pci.Env{Name: "eth0"}, []*pci.Driver{e1000.Driver})
	if r.Outcome != pci.Bound {
		t.Fatalf("binding it afterwards: %v", r.Err)
	}
	if err := r.Instance.Close(); err != nil {
		t.Errorf("closing its driver: %v", err)
	}
}
