package qemutest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
)

// reports lets a function and all ports above it send errors, and its root port interrupt.
func reports(t *testing.T, f *pci.Function) (root bus.Config, aer bus.Off) {
	t.Helper()
	for ; f != nil; f = f.Parent {
		c := f.Config
		pci.SetCommand(c, pci.CmdSERR|pci.CmdMaster, 0)
		e, ok := pci.FindExpress(c)
		if !ok {
			t.Fatalf("%s: no Express capability", f.Addr)
		}
		c.Write16(e.At+pci.ExpDevCtl, c.Read16(e.At+pci.ExpDevCtl)|pci.DevCtlErrors)
		if f.IsBridge() {
			c.Write16(pci.CfgBridgeCtl, c.Read16(pci.CfgBridgeCtl)|pci.BridgeSERR)
		}
		at, ok := pci.FindExtCap(c, pci.ExtCapAER)
		if !ok {
			t.Fatalf("%s: no AER capability", f.Addr)
		}
		if f.Parent == nil {
			c.Write32(at+pci.AERRootCmd, pci.RootCmdAll)
			root, aer = c, at
		}
	}
	return root, aer
}

// Errors of ports and of a virtio adapter reach the root port: its status, the source, the header, the interrupt.
func TestInjectError(t *testing.T) {
	bustest.NoLeaks(t)
	m := Machine(t, qemu.Config{Devices: append([]qemu.DeviceSpec{
		{Name: "rp2", Model: "pcie-root-port"},
		{Name: "v0", Model: "virtio-net-pci", Bus: "rp2", Props: []string{"aer=on", "disable-legacy=on"}},
	}, switchPorts...)})
	const compTime = 1 << 14
	header := [4]uint32{0x11223344, 0x55667788, 0x99aabbcc, 0xddeeff00}
	for _, tt := range []struct {
		name, port string
		mode       bus.IRQMode
		n          int
	}{
		{"rp0", "rp0", bus.MSIX, 1}, {"rp1", "rp1", bus.MSI, 2}, {"sw0", "rp1", bus.MSI, 2}, {"dn1", "rp1", bus.MSI, 2}, {"rp2", "rp2", bus.MSIX, 1}, {"v0", "rp2", bus.MSIX, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := m.Function(tt.name)
			if err != nil {
				t.Fatal(err)
			}
			port := Device(t, m, tt.port)
			q, err := port.EnableIRQs(tt.mode, tt.n)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = port.DisableIRQs() }()
			root, at := reports(t, f)
			vector := int(root.Read32(at+pci.AERRootSta) & pci.RootStaMessage >> pci.RootStaMsgAt)
			if vector != tt.n-1 {
				t.Errorf("the root port's errors are on vector %d, want %d", vector, tt.n-1)
			}
			for i := range 20 {
				if err := m.InjectError(tt.name, pci.AERError{Uncorrectable: compTime, Header: header}); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				_, err := q[vector].Wait(ctx)
				cancel()
				if err != nil {
					t.Fatalf("error %d: no interrupt: %v", i, err)
				}
				own, _ := pci.FindExtCap(f.Config, pci.ExtCapAER)
				if sta := root.Read32(at + pci.AERRootSta); sta&0x7f != pci.RootStaUnc|pci.RootStaNonFatal {
					t.Errorf("Root Error Status = %#x, want 0x24", sta)
				}
				if src := root.Read32(at+pci.AERErrSrc) >> 16; src != uint32(f.Addr.Bus)<<8|uint32(f.Addr.Devfn()) {
					t.Errorf("source = %#x, want %s", src, f.Addr)
				}
				if sta := f.Config.Read32(own + pci.AERUncSta); sta != compTime {
					t.Errorf("status = %#x, want %#x", sta, compTime)
				}
				for w, want := range header {
					if got := f.Config.Read32(own + pci.AERHeader + bus.Off(4*w)); got != want {
						t.Errorf("header word %d = %#x, want %#x", w, got, want)
					}
				}
				f.Config.Write32(own+pci.AERUncSta, compTime)
				root.Write32(at+pci.AERRootSta, root.Read32(at+pci.AERRootSta))
			}
		})
	}
}

// What QEMU does not route is refused, and nothing happens.
func TestInjectErrorRefused(t *testing.T) {
	m := Machine(t, qemu.Config{Devices: []qemu.DeviceSpec{
		{Name: "rp0", Model: "pcie-root-port"}, {Name: "eth0", Model: "e1000e", Bus: "rp0"}, {Name: "d0", Model: "edu"}, {Name: "v0", Model: "virtio-net-pci"},
	}})
	for _, tt := range []struct {
		name string
		e    pci.AERError
		want string
	}{
		{"rp0", pci.AERError{}, "no error bit"},
		{"rp0", pci.AERError{Correctable: 1}, "correctable"},
		{"rp0", pci.AERError{Uncorrectable: 1 << 14, Correctable: 1 << 6}, "correctable"},
		{"rp0", pci.AERError{Uncorrectable: 3 << 14}, "one error at a time"},
		{"rp0", pci.AERError{Uncorrectable: 1 << 30}, "does not know"},
		{"eth0", pci.AERError{Uncorrectable: 1 << 14}, "does not route errors of model e1000e"},
		{"d0", pci.AERError{Uncorrectable: 1 << 14}, "no Advanced Error Reporting"},
		{"v0", pci.AERError{Uncorrectable: 1 << 14}, "no Advanced Error Reporting"},
	} {
		err := m.InjectError(tt.name, tt.e)
		if !errors.Is(err, bus.ErrNotSupported) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("InjectError(%s, %+v) = %v, want %q and ErrNotSupported", tt.name, tt.e, err, tt.want)
		}
		f, err := m.Function(tt.name)
		if err != nil {
			t.Fatal(err)
		}
		if at, ok := pci.FindExtCap(f.Config, pci.ExtCapAER); ok {
			if u, c := f.Config.Read32(at+pci.AERUncSta), f.Config.Read32(at+pci.AERCorSta); u != 0 || c != 0 {
				t.Errorf("%s: status %#x, %#x after a refusal, want 0", tt.name, u, c)
			}
		}
	}
	if err := m.InjectError("nobody", pci.AERError{Uncorrectable: 1 << 14}); err == nil {
		t.Error("an error of nobody was injected")
	}
}

// Interrupts survive a reset of the bus that a device stands on, with what was saved before.
func TestSaveState(t *testing.T) {
	m := Machine(t, qemu.Config{Devices: []qemu.DeviceSpec{{Name: "rp0", Model: "pcie-root-port"}, {Name: "eth0", Model: "e1000e", Bus: "rp0"}}})
	dev := Device(t, m, "eth0")
	port, err := m.Function("rp0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := dev.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	q, err := dev.EnableIRQs(bus.MSIX, 5)
	if err != nil {
		t.Fatal(err)
	}
	pci.SetCommand(dev.Config(), pci.CmdMaster, 0)
	const regICR, regICS, regIMS, regIVAR = 0xc0, 0xc8, 0xd0, 0xe4 // 82574 datasheet, 10.2.4
	fires := func(what string) {
		t.Helper()
		r.Write32(regIVAR, 1<<31|(8|4)<<16) // other causes: vector 4
		r.Write32(regIMS, 1<<24)
		r.Write32(regICS, 1<<24)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := q[4].Wait(ctx); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		r.Write32(regICR, 1<<24)
	}
	fires("before")
	before := make([]uint32, 64)
	for i := range before {
		before[i] = dev.Config().Read32(bus.Off(4 * i))
	}
	aer, _ := pci.FindExtCap(dev.Config(), pci.ExtCapAER)
	severity := dev.Config().Read32(aer+pci.AERUncSev) ^ 1<<14
	dev.Config().Write32(aer+pci.AERUncSev, severity)
	for range 2 {
		restore := bus.SaveState(dev)
		c := port.Config
		c.Write16(pci.CfgBridgeCtl, c.Read16(pci.CfgBridgeCtl)|pci.BridgeReset)
		c.Write16(pci.CfgBridgeCtl, c.Read16(pci.CfgBridgeCtl)&^pci.BridgeReset)
		if got := dev.Config().Read32(pci.CfgBAR0); got == before[pci.CfgBAR0/4] {
			t.Fatal("a bus reset left BAR 0 alone: nothing is tested")
		}
		if err := restore(); err != nil {
			t.Fatal(err)
		}
		for i, want := range before {
			if got := dev.Config().Read32(bus.Off(4 * i)); got != want {
				t.Errorf("config %#x = %#x after restoring, want %#x", 4*i, got, want)
			}
		}
		if got := dev.Config().Read32(aer + pci.AERUncSev); got != severity {
			t.Errorf("Uncorrectable Error Severity = %#x after restoring, want %#x", got, severity)
		}
		fires("after a bus reset")
	}
	if err := dev.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	fires("after Reset")
	// D3 and back.
	restore := bus.SaveState(dev)
	at, _ := pci.FindCap(dev.Config(), pci.CapPM)
	dev.Config().Write16(at+pci.PMCtl, 3)
	dev.Config().Write16(at+pci.PMCtl, 0)
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	fires("after D3")
	// In D3 it stays where restore brings it out.
	restore = bus.SaveState(dev)
	dev.Config().Write16(at+pci.PMCtl, 3)
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	fires("out of D3")
}
