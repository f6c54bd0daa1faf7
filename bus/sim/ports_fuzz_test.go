package sim

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// FuzzPorts writes anything to the config spaces of a tree of ports, and does anything to their slots: nothing panics or hangs, whatever bus numbers
// are made to say.
func FuzzPorts(f *testing.F) {
	for seed := range uint64(12) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		props := [][]string{nil, {"dpc=on", "vc=3", "pme=on", "bw=on", "mrl=on", "vectors=4"}, {"intx=on", "cmd=1ms", "button=off"}, {"msi=4", "dpc=on", "power=off"}}[seed%4]
		m := tree(t, props...)
		for range 3000 {
			abusePorts(t, m, rnd)
		}
		for a := range 256 {
			m.Config(pci.Addr{Domain: m.domain, Bus: uint8(a)}).Read32(0)
		}
		for _, f := range m.Topology().Functions {
			if f.Parent == nil {
				f.Config.Write16(pci.CfgBridgeCtl, 0)
			}
		}
		if _, err := m.Rescan(nil); err != nil {
			t.Log(err)
		}
	})
}

func abusePorts(t *testing.T, m *Machine, rnd *rand.Rand) {
	ports := []string{"rp0", "dn0", "dn1", "rp1", "up0"}
	name := ports[rnd.IntN(len(ports))]
	which := append(ports, "eth0", "card", "edu0")[rnd.IntN(len(ports)+3)]
	v := rnd.Uint32() & rnd.Uint32()
	var err error
	switch n := rnd.IntN(40); {
	case n < 24:
		fns := m.Topology().Functions
		c := fns[rnd.IntN(len(fns))].Config
		off := bus.Off(rnd.IntN(0x300))
		if e, ok := pci.FindExpress(c); ok && rnd.IntN(2) == 0 {
			off = e.At + bus.Off(rnd.IntN(pci.ExpSize))
		}
		switch rnd.IntN(3) {
		case 0:
			c.Write8(off, uint8(v))
		case 1:
			c.Write16(off&^1, uint16(v))
		case 2:
			c.Write32(off&^3, v)
		}
		c.Read32(off &^ 3)
	case n < 26:
		err = m.Plug(t.Context(), DeviceSpec{Name: "card", Model: []string{"e1000e", "edu", "upstream"}[rnd.IntN(3)], Bus: name})
	case n < 27:
		err = m.Eject(which)
	case n < 28:
		err = m.PressButton(name)
	case n < 29:
		err = m.OpenLatch(name, v&1 != 0)
	case n < 30:
		err = m.PowerFault(name)
	case n < 31:
		err = m.SetPortLink(name, v&1 != 0)
	case n < 33:
		err = m.InjectError(which, pci.AERError{Uncorrectable: v & aerUnc, Correctable: rnd.Uint32() & aerCor})
	case n < 34:
		err = m.SignalPME(which)
	case n < 35:
		err = m.TriggerDPC(name, v&dpcPIO, [4]uint32{v})
	case n < 36:
		err = m.SetLinkSpeed(name, uint8(v&7), uint8(v>>8&3), v>>16&1 != 0)
	case n < 37:
		_, err = m.Rescan(nil)
	case n < 38:
		fns := m.Topology().Functions
		if f := fns[rnd.IntN(len(fns))]; f.Parent != nil {
			m.Forget(f)
		}
	case n < 39 && rnd.IntN(4) == 0:
		if which == "card" || which == "eth0" {
			err = m.Unplug(which)
		}
	default:
		m.Advance(time.Duration(rnd.IntN(int(2 * time.Millisecond))))
	}
	_ = err // each is allowed to refuse
}
