package host

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/edu"
)

// A device that reaches for memory that is not its own as soon as it is brought up is one line
// to the user.
func TestUpFaulting(t *testing.T) {
	bustest.NeedQEMU(t)
	stray := &pci.Driver{
		Name: "stray", IDs: []pci.ID{{Vendor: 0x1234, Device: 0x11e8}},
		Probe: func(ctx context.Context, dev bus.Device, _ pci.Env) (pci.Instance, error) {
			pci.SetCommand(dev.Config(), pci.CmdMem|pci.CmdMaster, 0)
			r, err := dev.Region(0)
			if err != nil {
				return nil, err
			}
			r.Write32(0x80, 0x40000)   // edu: source, its own buffer
			r.Write32(0x88, 0x7ff0000) // destination
			r.Write32(0x90, 16)        // bytes
			r.Write32(0x98, 3)         // go
			select {
			case <-dev.Done():
				return nil, dev.Err()
			case <-time.After(10 * time.Second):
				return nil, bus.ErrTimeout
			}
		},
	}
	plan, err := ParsePlan([]string{"x=qemu:edu,iommu=on"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	sys, err := NewSystem(t.Context(), Config{Plan: plan, Drivers: []*pci.Driver{stray}, Log: slog.New(slog.NewTextHandler(&said, nil))})
	if err == nil {
		t.Errorf("NewSystem succeeded; Close = %v", sys.Close())
	}
	want := " x: DMA write to 0x7ff0000: nothing is mapped there (reason 5): stopped by the IOMMU"
	if err == nil || !strings.HasPrefix(err.Error(), "x (qemu:edu): ") || !strings.HasSuffix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("NewSystem with a device that faults = %v, want one line that ends in %q", err, want)
	}
	if said.Len() > 0 {
		t.Errorf("the log has %q too, want the error only", &said)
	}
}

// One that does so later is told in one line of the log, and the other devices stay.
func TestFaultLogged(t *testing.T) {
	bustest.NeedQEMU(t)
	plan, err := ParsePlan([]string{"x=qemu:edu,iommu=on", "y=qemu:edu"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 100)
	sys, err := NewSystem(t.Context(), Config{Plan: plan, Drivers: []*pci.Driver{edu.Driver}, Log: slog.New(slog.NewTextHandler(lineWriter(lines), nil))})
	if err != nil {
		t.Fatal(err)
	}
	r, err := sys.bound()[0].dev.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	for off, v := range map[bus.Off]uint32{0x80: 0x7ff0000, 0x88: 0x40000, 0x90: 16} {
		r.Write32(off, v)
	}
	r.Write32(0x98, 1)
	for end := time.After(10 * time.Second); ; {
		select {
		case l := <-lines:
			if !strings.Contains(l, "level=ERROR") {
				continue
			}
			if !strings.Contains(l, " x: DMA read from 0x7ff0000: ") {
				t.Errorf("the log has %q, want a DMA fault of x", l)
			}
		case <-end:
			t.Fatal("the fault was not logged within 10 s")
		}
		break
	}
	if err := sys.bound()[1].dev.Err(); err != nil {
		t.Errorf("Err() of the other device = %v, want nil", err)
	}
	if err := sys.Close(); err != nil {
		t.Errorf("Close = %v, want nil: the fault was told", err)
	}
	close(lines)
	for l := range lines {
		if strings.Contains(l, "level=ERROR") {
			t.Errorf("the log has %q too", l)
		}
	}
}

type lineWriter chan string

func (w lineWriter) Write(b []byte) (int, error) {
	w <- string(b)
	return len(b), nil
}
