package aer_test

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/aer"
	"github.com/ring3dev/ring3/drivers/portbus/internal/portmodel"
)

// inside is an endpoint inside the root complex: its config space, with status registers that ones clear, and a reset that may not be there.
type inside struct {
	bus.Device
	mu    sync.Mutex
	b     [4096]byte
	reset error
}

const insideAER bus.Off = 0x100

func newInside() *inside {
	d := &inside{}
	put := func(o bus.Off, v uint32) { binary.LittleEndian.PutUint32(d.b[o:], v) }
	put(pci.CfgVendor, 0x56781234)
	put(pci.CfgCommand, uint32(pci.StatusCaps)<<16)
	d.b[pci.CfgCapPtr] = 0x40
	put(0x40, pci.CapPCIe|(2|uint32(pci.ExpRootEndpoint)<<4)<<16)
	put(0x40+pci.ExpDevCtl, uint32(pci.DevCtlErrors))
	put(insideAER, pci.ExtCapAER|2<<16)
	return d
}

func (d *inside) Config() bus.Config          { return d }
func (d *inside) Err() error                  { return nil }
func (d *inside) Reset(context.Context) error { return d.reset }
func (d *inside) Size() int                   { return len(d.b) }

func (d *inside) read(o bus.Off, n bus.Off) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.b[o : o+n])
}

func (d *inside) Read8(o bus.Off) uint8   { return d.read(o, 1)[0] }
func (d *inside) Read16(o bus.Off) uint16 { return binary.LittleEndian.Uint16(d.read(o, 2)) }
func (d *inside) Read32(o bus.Off) uint32 { return binary.LittleEndian.Uint32(d.read(o, 4)) }
func (d *inside) Write8(bus.Off, uint8)   {}
func (d *inside) Write16(bus.Off, uint16) {}
func (d *inside) Write32(o bus.Off, v uint32) {
	if o == insideAER+pci.AERUncSta || o == insideAER+pci.AERCorSta {
		d.set(o, d.Read32(o)&^v)
	}
}

func (d *inside) set(o bus.Off, v uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	binary.LittleEndian.PutUint32(d.b[o:], v)
}

// An event collector receives messages of endpoints of its own bus, which recover alone.
func TestCollector(t *testing.T) {
	for _, c := range []struct {
		name  string
		bit   uint32
		reset error
		want  string
	}{
		{"non-fatal", uncTO, nil, "device recovery successful"},
		{"fatal", uncDLP, nil, "has been reset; device recovery successful"},
		{"fatal without reset", uncDLP, bus.ErrNotSupported, "not reset (no FLR support: -25); subordinate device reset failed; device recovery failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bustest.NoLeaks(t)
			b, err := portbus.New(&aer.Driver)
			if err != nil {
				t.Fatal(err)
			}
			m := portmodel.New(portmodel.Spec{Type: pci.ExpCollector, AER: true})
			m.Set32(portmodel.AER, 0xfff00000, 0x300<<20)
			m.Set32(0x300, 0, pci.ExtCapEC|1<<16)
			m.Set32(0x304, 0, 1<<5)
			d := newInside()
			d.reset = c.reset
			calls := &calls{}
			h := &handler{c: calls, name: "rciep", vote: vote{bus.NeedReset, bus.NoVote, bus.Recovered}}
			tree := &portmodel.Tree{}
			tree.Add(&pci.Member{
				Function: &pci.Function{Addr: pci.Addr{Domain: 0x1000, Dev: 5}, ID: pci.ReadID(d), Config: d, AER: &pci.AERStats{}},
				Device:   d, Name: "rciep", Driver: "fake", Use: func(f func(pci.Instance)) { f(h) },
			})
			if _, err := tree.Probe(t, m, b.PortDriver(), ""); err != nil {
				t.Fatal(err)
			}
			d.set(insideAER+pci.AERUncSta, c.bit)
			d.set(insideAER+pci.AERUncSev, uncDLP)
			sta := pci.RootStaUnc | pci.RootStaNonFatal
			if c.bit == uncDLP {
				sta = pci.RootStaUnc | pci.RootStaFatal
			}
			m.Set32(portmodel.AER+pci.AERErrSrc, 0xffffffff, 0x0028<<16)
			m.Set32(portmodel.AER+pci.AERRootSta, 0, sta)
			m.Fire(0)
			var said []string
			for until := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
				said = nil
				for _, l := range tree.Lines() {
					if s, ok := strings.CutPrefix(l, "fake 1000:00:05.0: AER: "); ok {
						said = append(said, s)
					}
				}
				if len(said) > 0 && strings.HasPrefix(said[len(said)-1], "device recovery") || time.Now().After(until) {
					break
				}
			}
			if n := len(said); n > 0 && strings.HasPrefix(said[0], "PCIe Bus Error") {
				said = said[1:]
			}
			if got := strings.Join(said, "; "); got != c.want {
				t.Errorf("messages = %s, want %s\n%s", got, c.want, strings.Join(tree.Lines(), "\n"))
			}
		})
	}
}
