package sim_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
)

// wild are registers that do something.
var wild = []bus.Off{
	rCTRL, rEECD, rEERD, rEXT, rMDIC, rFCAL, rFCAH, rFCT, 0x38, rICR, rITR, rICS, rIMS, rIMC, rEIAC, rIAM, rIVAR, rEITR,
	rRCTL, rRCTL, rFCTTV, rTCTL, rTCTL, rPBA, rFCRTL, rFCRTH, rRDTR, rRADV, rTIDV, rTADV, rRXCSUM, rRFCTL, rMRQC, rRETA, rRAL, rRAL + 4,
	rRX, rRX + 4, rRX + 8, rRX + 0x10, rRX + 0x18, rRX + 0x18, rRX + 0x108, rRX + 0x118,
	rTX, rTX + 4, rTX + 8, rTX + 0x10, rTX + 0x18, rTX + 0x18, rTX + 0x18, rTX + 0x100, rTX + 0x108, rTX + 0x118,
}

// FuzzE1000 writes registers and descriptors without any sense: nothing panics, nothing lasts,
// nothing is written where no memory is.
func FuzzE1000(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 32 {
		b := make([]byte, 200+i*20)
		for k := range b {
			b[k] = byte(rnd.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) { storm(t, in) })
}

// storm takes its orders from in: one byte what, and what that needs.
func storm(t *testing.T, in []byte) {
	if len(in) == 0 {
		return
	}
	model := allChips[int(in[0])%len(allChips)]
	m, err := sim.Start(t.Context(), sim.Config{Clock: sim.Stepped, Wires: [][2]string{{"a", "b"}}, Devices: []sim.DeviceSpec{{Name: "a", Model: model}, {Name: "b", Model: model}}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	const size = 16 << 10
	var regs [2]bus.Region
	var mem, guard [2]*bus.Memory
	var freed [2][]byte // guard's bytes
	for i, name := range []string{"a", "b"} {
		d, err := m.Device(name)
		if err != nil {
			t.Fatal(err)
		}
		regs[i], _ = d.Region(0)
		for _, x := range []**bus.Memory{&mem[i], &guard[i]} {
			if *x, err = d.DMA().Alloc(bus.DMARequest{Size: size}); err != nil {
				t.Fatal(err)
			}
		}
		freed[i] = guard[i].Bytes
		guard[i].Free()
		pci.SetCommand(d.Config(), pci.CmdMem|pci.CmdMaster, 0)
		for q := range bus.Off(2) { // rings in memory, to begin with
			for _, base := range []bus.Off{rRX + 0x100*q, rTX + 0x100*q} {
				regs[i].Write32(base, uint32(mem[i].IOVA))
				regs[i].Write32(base+8, 2048)
			}
		}
		regs[i].Write32(rRCTL, fEN|fUPE|fMPE|fBAM|fLPE)
		regs[i].Write32(rTCTL, 1<<1|1<<3)
	}
	clean := make([]byte, size)
	start := time.Now()
	in = in[1:]
	for steps := 0; len(in) >= 8 && steps < 300; steps++ {
		op, x, at, v := in[0], int(in[0]&1), int(binary.LittleEndian.Uint16(in[1:])), binary.LittleEndian.Uint32(in[3:])
		in = in[7:]
		switch op >> 1 & 7 {
		case 0, 1, 2:
			off := wild[at%len(wild)]
			if off == rCTRL && op&0xf0 != 0 {
				v &^= 1<<26 | 1<<2 // not that often
			}
			regs[x].Write32(off, v)
		case 3:
			regs[x].Write32(bus.Off(at)*4&0x1fffc, v)
		case 4: // a descriptor whose address is in memory
			d := mem[x].Bytes[at%(size/16)*16:][:16]
			binary.LittleEndian.PutUint64(d, uint64(mem[x].IOVA)+uint64(v%size))
			binary.LittleEndian.PutUint64(d[8:], uint64(v)<<24|uint64(at)&0x3fff)
		case 5: // a doorbell, with what was there before
			regs[x].Write32([]bus.Off{rTX + 0x18, rRX + 0x18, rTX + 0x118, rRX + 0x118}[at&3], v&127)
		case 6:
			binary.LittleEndian.PutUint32(mem[x].Bytes[at%(size/4)*4:], v)
		case 7:
			regs[x].Read32(bus.Off(at) * 4 & 0x1fffc)
			m.Advance(time.Duration(v&0xffff) * time.Microsecond)
			if v>>30 == 0 {
				_ = m.SetLink("a", v>>29&1 == 0)
			}
		}
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("it took %s", d)
	}
	for i := range freed {
		if !bytes.Equal(freed[i], clean) {
			t.Error("memory that was freed was written")
		}
		mem[i].Free()
	}
}

func TestE1000Storm(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, 7*300+1)
	for range 200 {
		for k := range b {
			b[k] = byte(rnd.Uint32())
		}
		storm(t, b)
	}
}
