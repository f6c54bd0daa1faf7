package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/klog"
	"github.com/ring3dev/ring3/internal/syspci"
)

// A device that nothing confines takes containment from nobody else: its worker keeps its rights, and is started again only where somebody asks.
func TestSuperviseBare(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	plan, err := ParsePlan([]string{"edu0=sim:edu", "edu1=sim:edu"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	ring := klog.New(klog.Options{})
	s, err := newSupervisor(t.Context(), superviseConfig{Args: []string{workerArg}, Deaths: 1 << 30, Asked: true,
		Config: Config{Plan: plan, Drivers: testProgram.Drivers, Services: testProgram.Services, Log: ring.Logger()},
		Unconfined: func(d DeviceSpec) error {
			if d.Name == "edu0" {
				return errors.New("edu0 has no IOMMU that would confine it")
			}
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	bare, other := s.chargeOf("edu0"), s.chargeOf("edu1")
	filtered := func(ch *charge) bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", ch.worker().p.PID()))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(b), "\nSeccomp:\t2\n")
	}
	if filtered(bare) || !filtered(other) {
		t.Errorf("a filter of system calls: bare %v, contained %v, want only the contained one's", filtered(bare), filtered(other))
	}
	pid := other.worker().p.PID()
	if err := syscall.Kill(bare.worker().p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	vendor := "/sys/devices/pci" + fmt.Sprintf("%04x:00/%04x:00:03.0/vendor", bare.Numbers.Domain, bare.Numbers.Domain)
	for end := time.Now().Add(testPatience); ; {
		bare.mu.Lock()
		state, changed := bare.state, bare.changed
		bare.mu.Unlock()
		if state == stateFailed {
			break
		}
		select {
		case <-changed:
		case <-time.After(time.Until(end)):
			t.Fatalf("it is %s, want %s", state, stateFailed)
		}
	}
	if _, err := s.file(t, vendor).ReadAll(); !errors.Is(err, syscall.EIO) {
		t.Errorf("reading a file of it: %v, want EIO", err)
	}
	for _, d := range s.Devices() {
		switch {
		case d.Name == "edu1" && (d.State != stateUp || d.Worker != pid || d.Uncontained != ""):
			t.Errorf("the other: %+v", d)
		case d.Name == "edu0" && (d.State != stateFailed || !strings.Contains(d.Cause, "no IOMMU") || !strings.Contains(d.Cause, "killed by SIGKILL") || d.Uncontained == ""):
			t.Errorf("the bare one: %+v", d)
		}
	}
	if _, err := s.reloadHandler(t.Context(), []byte(`{"device":"edu0"}`), nil); err != nil {
		t.Fatal(err)
	}
	if got := s.get(t, vendor); got != "0x1234\n" || filtered(bare) {
		t.Errorf("after the reload its vendor is %q", got)
	}
	records, _ := ring.Read(0)
	said := 0
	for _, r := range records {
		if strings.Contains(r.Text, "keeps its user's rights") {
			said++
		}
	}
	if said != 1 {
		t.Errorf("that it is not contained was said %d times, want once", said)
	}
}

// What a dead worker left a bus master is none afterwards, and what no worker had is not touched.
func TestBareQuiesce(t *testing.T) {
	root := t.TempDir()
	config := func(addr string) string { return filepath.Join(syspci.Root(root).Path(addrOf(t, addr)), "config") }
	link := func(to string, at ...string) {
		t.Helper()
		path := filepath.Join(append([]string{root}, at...)...)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.Symlink(to, path)); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range []string{"0000:00:05.0", "0000:00:06.0", "0000:00:08.0", "0000:00:09.0", "0000:00:0a.0"} {
		if err := os.MkdirAll(filepath.Dir(config(a)), 0o700); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64)
		binary.LittleEndian.PutUint16(b[4:], uint16(pci.CmdMem|pci.CmdMaster))
		if err := os.WriteFile(config(a), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link("../../drivers/uio_pci_generic", "bus/pci/devices/0000:00:08.0/driver") // called by its UIO device
	link("../../../pci", "bus/pci/devices/0000:00:08.0/subsystem")
	link("../../../bus/pci/devices/0000:00:08.0", "class/uio/uio8/device")
	if err := os.Mkdir(filepath.Join(filepath.Dir(config("0000:00:08.0")), "uio"), 0o700); err != nil {
		t.Fatal(err)
	}
	link("../../drivers/e1000e", "bus/pci/devices/0000:00:09.0/driver") // somebody else's by now
	link("../../drivers/vfio-pci", "bus/pci/devices/0000:00:0a.0/driver")
	link("../../../platform", "devices/platform/tpm/subsystem")
	link("../../../devices/platform/tpm", "class/uio/uio9/device")
	plan, err := ParsePlan([]string{"a=uio:0000:00:05.0", "b=uio:0000:00:06.0", "c=uio:uio7", "d=uio:0000:00:07.0", "e=sim:edu", "f=uio:uio8", "g=uio:0000:00:09.0",
		"h=vfio:0000:00:0a.0,noiommu=unsafe", "tpm0=uio:uio9,tpm=2.0"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	ring := klog.New(klog.Options{})
	b, err := holdBare(Config{Log: ring.Logger()}, groupPlan{Plan: plan})
	if err != nil {
		t.Fatal(err)
	}
	h := b.(*heldBare)
	h.root = syspci.Root(root)
	for name, want := range map[string]error{"a": nil, "c": nil, "d": nil, "f": nil, "g": nil, "h": nil, "tpm0": nil, "e": syscall.EACCES, "x": syscall.EACCES} {
		if _, _, err := h.took(t.Context(), []byte(`{"device":"`+name+`"}`), nil); !errors.Is(err, want) {
			t.Errorf("took %s: %v, want %v", name, err, want)
		}
	}
	if err := h.Quiesce(context.Background()); err != nil {
		t.Error(err)
	}
	records, _ := ring.Read(0)
	if len(records) != 1 || !strings.Contains(records[0].Text, "tpm0: it may go on with DMA: uio9 is no PCI function") {
		t.Errorf("it logged %+v, want the one that has no bus mastering", records)
	}
	const off, on = pci.CmdMem | pci.CmdINTxDisable, pci.CmdMem | pci.CmdMaster
	for a, want := range map[string]pci.Command{"0000:00:05.0": off, "0000:00:06.0": on, "0000:00:08.0": off, "0000:00:09.0": on, "0000:00:0a.0": off} {
		b, err := os.ReadFile(config(a))
		if got := pci.Command(binary.LittleEndian.Uint16(b[4:])); err != nil || got != want {
			t.Errorf("%s: Command = %v, %v, want %v", a, got, err, want)
		}
	}
}

func addrOf(t *testing.T, s string) pci.Addr {
	t.Helper()
	a, err := pci.ParseAddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
