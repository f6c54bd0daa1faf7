package sim

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// FuzzMachine does anything to two wired devices, or to one: nothing panics or hangs.
func FuzzMachine(f *testing.F) {
	for seed := range uint64(3 * len(models())) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		x := models()[seed%uint64(len(models()))]
		if x.port {
			return // FuzzPorts has those
		}
		c := Config{Devices: []DeviceSpec{{Name: "a", Model: x.name}}, Clock: Stepped}
		if x.net {
			c.Devices = append(c.Devices, DeviceSpec{Name: "b", Model: x.name})
			c.Wires = [][2]string{{"a", "b"}}
		}
		m, err := Start(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		for i := range 4000 {
			abuse(t, m, m.devices[i%len(m.devices)], rnd)
		}
	})
}

// abuse does one thing.
func abuse(t *testing.T, m *Machine, d *device, rnd *rand.Rand) {
	value := func() uint64 {
		switch v := rnd.Uint64(); v % 5 {
		case 0:
			return 1 << (v >> 8 % 64)
		case 1:
			return ^uint64(0)
		case 2:
			return v >> 8 % 4096
		case 3:
			return lowIOVA + v>>8%(8*pageSize)
		default:
			return v
		}
	}
	width := 1 << rnd.IntN(4)
	switch n := rnd.IntN(100); {
	case n < 10:
		c := config{d}
		off := bus.Off(rnd.IntN(0x120)) &^ bus.Off(width-1)
		if width == 8 || off >= pci.CfgBAR0 && off < pci.CfgBAR0+24 {
			return // what is not placed cannot be abused
		}
		c.write(off, uint32(value()), width)
		c.read(off, width)
	case n < 85:
		infos := d.Regions()
		info := infos[rnd.IntN(len(infos))]
		off := bus.Off(rnd.Uint64N(info.Size)) &^ bus.Off(width-1)
		if rnd.IntN(2) == 0 {
			off = bus.Off(rnd.Uint64N(min(info.Size, 0x6000))) &^ 3
			width = 4
		}
		r := region{d: d, w: d.regions[info.Index], info: info}
		r.write(off, value(), width)
		r.read(off, width)
	case n < 90:
		pci.SetCommand(d.Config(), pci.CmdMem|pci.CmdIO|pci.CmdMaster, 0)
	case n < 93:
		mode := []bus.IRQMode{bus.INTx, bus.MSI, bus.MSIX}[rnd.IntN(3)]
		if _, err := d.EnableIRQs(mode, 1+rnd.IntN(5)); err != nil {
			_ = d.DisableIRQs()
		}
	case n < 96:
		q := bus.DMARequest{Size: 1 + rnd.IntN(2*pageSize)}
		if x, err := d.DMA().Alloc(q); err == nil {
			for i := range x.Bytes {
				x.Bytes[i] = byte(rnd.Uint32())
			}
			if len(d.memory.all) > 8 {
				x.Free()
			} else {
				t.Cleanup(x.Free)
			}
		}
	default:
		m.Advance(time.Duration(rnd.IntN(int(2 * time.Millisecond))))
	}
}
