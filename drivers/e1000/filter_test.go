package e1000

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/netdev"
)

var (
	_ netdev.RxModer = (*nic)(nil)
	_ netdev.Pauser  = (*nic)(nil)
)

// passes says whether the filters of a model let a group pass, as the datasheet has it.
func (m *model) passes(g group) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range raPairs {
		low, high := m.reg[regRAL(i)/4], m.reg[regRAH(i)/4]
		if high&rahAV != 0 && low == binary.LittleEndian.Uint32(g[0:4]) && uint16(high) == binary.LittleEndian.Uint16(g[4:6]) {
			return true
		}
	}
	h := (uint32(g[5])<<8 | uint32(g[4])) >> 4 & 0xfff // bits 47:36
	return m.reg[regMTA(int(h>>5))/4]&(1<<(h&31)) != 0
}

// groupsOf makes groups first to last-1.
func groupsOf(first, last int) (out []net.HardwareAddr) {
	for i := first; i < last; i++ {
		out = append(out, net.HardwareAddr{1, 0, 0x5e, byte(i * 7), byte(i * 31), byte(i)})
	}
	return out
}

// TestFiltersUndisturbed changes from each set of groups to each other one, and looks after each write
// of the driver whether all that are in both pass.
func TestFiltersUndisturbed(t *testing.T) {
	sets := [][]net.HardwareAddr{nil, groupsOf(0, 1), groupsOf(0, 15), groupsOf(0, 40), groupsOf(10, 30), groupsOf(5, 20), groupsOf(39, 40)}
	m := newModel(device82574)
	n := probeModel(t, m, nil)
	w := &watcher{Region: n.regs}
	n.regs = w
	for _, from := range sets {
		for _, to := range sets {
			w.check = nil
			if err := n.SetRxMode(context.Background(), netdev.RxMode{Multicast: from}); err != nil {
				t.Fatal(err)
			}
			w.check = func(off bus.Off) {
				if off == regRCTL {
					t.Errorf("RCTL is written")
				}
				for _, a := range from {
					if slices.ContainsFunc(to, func(b net.HardwareAddr) bool { return group(a) == group(b) }) && !m.passes(group(a)) {
						t.Errorf("from %d to %d groups: after a write to %#x %s does not pass", len(from), len(to), off, a)
					}
				}
			}
			if err := n.SetRxMode(context.Background(), netdev.RxMode{Multicast: append(to, to...)}); err != nil {
				t.Fatal(err)
			}
			for _, a := range to {
				if !m.passes(group(a)) {
					t.Errorf("%s of %d groups does not pass", a, len(to))
				}
			}
			if len(to) < raPairs && m.passes(group{1, 0, 0, 0, 0, 99}) {
				t.Errorf("with %d groups another one passes", len(to))
			}
			if !m.passes(group(n.mac)) {
				t.Error("the station's address is gone")
			}
		}
	}
	w.check = nil
	writes := w.writes
	if err := n.SetRxMode(context.Background(), netdev.RxMode{Multicast: sets[len(sets)-1]}); err != nil || w.writes != writes {
		t.Errorf("the same again takes %d writes, %v, want 0", w.writes-writes, err)
	}
}

// watcher tells of each write.
type watcher struct {
	bus.Region
	check  func(bus.Off)
	writes int
}

func (w *watcher) Write32(off bus.Off, v uint32) {
	w.Region.Write32(off, v)
	w.writes++
	if w.check != nil {
		w.check(off)
	}
}

func TestFiltersErrors(t *testing.T) {
	n := probeModel(t, newModel(device82574), nil)
	ctx := context.Background()
	for _, a := range []net.HardwareAddr{{2, 0, 0, 0, 0, 1}, {1, 0}, nil, {1, 2, 3, 4, 5, 6, 7, 8}} {
		if err := n.SetRxMode(ctx, netdev.RxMode{Promisc: true, Multicast: []net.HardwareAddr{a}}); !errors.Is(err, unix.EINVAL) {
			t.Errorf("SetRxMode(%s) = %v, want EINVAL", a, err)
		}
	}
	if got := n.RxMode(); got.Promisc {
		t.Errorf("a wrong address changed the mode to %+v", got)
	}
	n.Close()
	for what, err := range map[string]error{
		"SetRxMode": n.SetRxMode(ctx, netdev.RxMode{}), "SetPause": n.SetPause(ctx, netdev.Pause{Rx: true}), "SetCoalesce": n.SetCoalesce(ctx, netdev.Coalesce{}),
	} {
		if !errors.Is(err, bus.ErrClosed) {
			t.Errorf("%s after Close = %v, want %v", what, err, bus.ErrClosed)
		}
	}
}

// TestAgreed is table 28B-3 of IEEE 802.3 in full.
func TestAgreed(t *testing.T) {
	both := phyPause | phyAsym
	for _, c := range []struct {
		ours, theirs uint16
		rx, tx       bool
	}{
		{0, both, false, false}, {phyAsym, 0, false, false}, {phyAsym, phyAsym, false, false}, {phyAsym, phyPause, false, false}, {phyAsym, both, false, true},
		{phyPause, 0, false, false}, {phyPause, phyAsym, false, false}, {phyPause, phyPause, true, true}, {phyPause, both, true, true},
		{both, 0, false, false}, {both, phyAsym, true, false}, {both, phyPause, true, true}, {both, both, true, true},
	} {
		if rx, tx := agreed(c.ours, c.theirs); rx != c.rx || tx != c.tx {
			t.Errorf("agreed(%#x, %#x) = %t, %t, want %t, %t", c.ours, c.theirs, rx, tx, c.rx, c.tx)
		}
	}
}

func TestThresholds(t *testing.T) {
	for _, c := range []struct {
		size      uint32
		mtu       int
		low, high uint32
	}{{48 << 10, 1500, 44224, 44232}, {20 << 10, 1500, 18424, 18432}, {20 << 10, 9000, 11448, 11456}, {0, 1500, 0, 0}, {4 << 10, 9000, 0, 0}} {
		if low, high := thresholds(c.size, c.mtu); low != c.low || high != c.high {
			t.Errorf("thresholds(%d, %d) = %d, %d, want %d, %d", c.size, c.mtu, low, high, c.low, c.high)
		}
	}
}

// TestPauseByPHY: what is agreed goes through the PHY, and a PHY that does not answer is an error that
// changes nothing.
func TestPauseByPHY(t *testing.T) {
	m := newModel(device82574)
	n := probeModel(t, m, nil)
	ctx := context.Background()
	m.mu.Lock()
	m.phy[phyPartner] |= phyPause | phyAsym
	m.reg[regPBA/4] = 20
	m.mu.Unlock()
	if err := n.SetPause(ctx, netdev.Pause{Autoneg: true, Tx: true}); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	if m.phy[phyAdvertise]&(phyPause|phyAsym) != phyAsym || m.phy[phyControl]&phyRestart == 0 {
		t.Errorf("PHY control %#x, advertisement %#x, want a restart and ASM_DIR", m.phy[phyControl], m.phy[phyAdvertise])
	}
	if got := ctrl(m.reg[regCTRL/4]) & (ctrlRFCE | ctrlTFCE); got != ctrlTFCE || m.reg[regFCRTH/4] != 18432 || m.reg[regFCRTL/4] != fcrtlXONE|18424 || m.reg[regFCTTV/4] == 0 {
		t.Errorf("CTRL has %s, FCRTH %d, FCRTL %#x, FCTTV %#x", got, m.reg[regFCRTH/4], m.reg[regFCRTL/4], m.reg[regFCTTV/4])
	}
	m.stuck[regMDIC] = 0
	m.mu.Unlock()
	if err := n.SetPause(ctx, netdev.Pause{Autoneg: true, Rx: true}); !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("SetPause with a dead PHY = %v, want %v", err, bus.ErrTimeout)
	}
	m.mu.Lock()
	m.stuck[regMDIC] = uint32(mdicReady | mdicError)
	m.mu.Unlock()
	if err := n.SetPause(ctx, netdev.Pause{Autoneg: true, Rx: true}); !errors.Is(err, bus.ErrProtocol) {
		t.Errorf("SetPause with a PHY that errs = %v, want %v", err, bus.ErrProtocol)
	}
	if got := n.Pause(); got != (netdev.Pause{Autoneg: true, Tx: true}) {
		t.Errorf("Pause = %+v after errors", got)
	}
}

// TestChecksum: a device with a wrong EEPROM is refused, unless the option says otherwise.
func TestChecksum(t *testing.T) {
	for name, id := range chips {
		m := newModel(id)
		m.eeprom[20] ^= 1
		_, err := Driver.Probe(context.Background(), m, env(nil))
		if !errors.Is(err, bus.ErrProtocol) || err.Error() != "1000:00:03.0 e1000: EEPROM: the checksum of 64 words is 0xbabb, want 0xbaba (option eeprom=ignore accepts it): "+bus.ErrProtocol.Error() {
			t.Errorf("%s: Probe with a wrong checksum = %v", name, err)
		}
		n := probeModel(t, m, map[string]string{"eeprom": "ignore"})
		b, err := n.EEPROM(context.Background())
		if err != nil || len(b) != 128 || b[40] != 1 {
			t.Errorf("%s: EEPROM = % x, %v", name, b, err)
		}
	}
	for _, c := range []struct {
		c    chip
		v    eecd
		want int
	}{{chip{}, 0, 64}, {chip{}, eecdSize8254x, 256}, {chip{pcie: true}, eecdSize8254x, 64}, {chip{pcie: true}, put(eecdSize82574, 4), 1024}, {chip{pcie: true}, put(eecdSize82574, 15), 16384}} {
		if got := c.c.eepromSize(c.v); got != c.want {
			t.Errorf("eepromSize(%#x) = %d, want %d", c.v, got, c.want)
		}
	}
}
