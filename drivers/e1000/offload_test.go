package e1000

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/frame"
	"github.com/ring3dev/ring3/netdev"
)

// still is a model whose transmitter does nothing, and a pool of large buffers.
func still(t testing.TB, id uint16, options map[string]string) (*nic, *dma.Pool) {
	t.Helper()
	m := newModel(id)
	n := probeModel(t, m, options)
	m.mu.Lock()
	m.idle = true
	m.mu.Unlock()
	pool, err := netdev.NewTxPool(n.Tx(0), 4, netdev.MaxGSO)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.Close()
		n.tx[0].Reap()
		pool.Close()
	})
	return n, pool
}

// tcpFrame is a TCP frame with payload bytes, and the Meta that has it segmented.
func tcpFrame(t testing.TB, v6 bool, payload, mss int) ([]byte, dma.Meta) {
	t.Helper()
	s := frame.Spec{SrcIP: netip.MustParseAddr("10.0.0.1"), DstIP: netip.MustParseAddr("10.0.0.2"), TTL: 64, Payload: make([]byte, payload)}
	m := dma.Meta{Flags: dma.NeedsCsum | dma.GSO4}
	if v6 {
		s.SrcIP, s.DstIP = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
		m.Flags = dma.NeedsCsum | dma.GSO6
	}
	f, err := frame.BuildTCP(s, frame.TCP{Flags: frame.ACK})
	if err != nil {
		t.Fatal(err)
	}
	m.CsumStart, m.CsumOffset, m.HdrLen, m.GSOSize = uint16(f.L4), tcpSumAt, uint16(f.Payload), uint16(mss)
	return f.Bytes, m
}

func load(pool *dma.Pool, f []byte, m dma.Meta) *dma.Buf {
	b := pool.Get()
	b.Data = b.Mem[:len(f)]
	copy(b.Data, f)
	b.Meta = m
	return b
}

// words are the first k descriptors of the ring, two words each.
func words(n *nic, k int) []string {
	var s []string
	for i := range k {
		d := n.tx[0].ring[i*descSize:]
		s = append(s, fmt.Sprintf("%#x %#x", binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint64(d[8:])))
	}
	return s
}

// TestSegmentDescriptors compares the descriptors of segmented frames with the layouts of 3.3.6
// and 3.3.7, and the headers with what 3.5 wants.
func TestSegmentDescriptors(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		n, pool := still(t, device82574, nil)
		f, meta := tcpFrame(t, v6, 20000, 1000)
		b := load(pool, f, meta)
		if k := n.tx[0].Burst([]*dma.Buf{b}); k != 1 {
			t.Fatalf("Burst = %d, want 1", k)
		}
		a, total := uint64(b.Addr), len(f)
		// IPCSS 14, IPCSO 24, IPCSE 33, TUCSS 34, TUCSO 50; MSS 1000, HDRLEN 54, TCP|IP|TSE|DEXT, PAYLEN 20000.
		want := []string{"0x32220021180e 0x3e8360027004e20"}
		data := uint64(txIXSM|txTXSM) | 0x26100000 // IXSM|TXSM, DEXT|TSE|IFCS, data
		if v6 {
			// No IPv4 checksum: IPCSS 14, TUCSS 54, TUCSO 70; HDRLEN 74, no IP.
			want = []string{"0x46360000000e 0x3e84a0025004e20"}
			data = uint64(txTXSM) | 0x26100000
		}
		for off := 0; off < total; off += maxData {
			k := min(maxData, total-off)
			w := data | uint64(k)
			if off+k == total {
				w |= uint64(txEOP | txRS)
			}
			want = append(want, fmt.Sprintf("%#x %#x", a+uint64(off), w))
		}
		if got := words(n, len(want)); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("v6=%t: descriptors\n%q, want\n%q", v6, got, want)
		}
		if got := n.tx[0].c.used(); got != len(want) {
			t.Errorf("v6=%t: %d descriptors, want %d", v6, got, len(want))
		}
		ip := b.Data[headerLen:]
		if v6 && (ip[4]|ip[5] != 0) || !v6 && (ip[2]|ip[3]|ip[10]|ip[11] != 0) {
			t.Errorf("v6=%t: lengths and checksum are left: % x", v6, ip[:20])
		}
		if got := binary.BigEndian.Uint16(b.Data[meta.CsumStart+tcpSumAt:]); !v6 && got != 0x1409 {
			t.Errorf("pseudo header's sum %#x, want 0x1409", got) // 0a00+0001+0a00+0002+0006
		}
		if got := n.tx[0].sent; got != 21 {
			t.Errorf("v6=%t: %d frames counted for the wire, want 21", v6, got)
		}
	}
}

// TestChunks: the 8254x takes four segments a descriptor at most.
func TestChunks(t *testing.T) {
	n, pool := still(t, device82540, nil)
	f, meta := tcpFrame(t, false, 10000, 500)
	n.tx[0].Burst([]*dma.Buf{load(pool, f, meta)})
	if got, want := n.tx[0].c.used(), 1+(len(f)+1999)/2000; got != want {
		t.Errorf("%d descriptors, want %d", got, want)
	}
	six, meta := tcpFrame(t, true, 10000, 500)
	n.tx[0].Burst([]*dma.Buf{load(pool, six, meta)})
	if got := n.Stats().TxErrors; got != 1 {
		t.Errorf("%d errors for IPv6 on a chip that segments IPv4 only, want 1", got)
	}
}

// TestContext: a context is written where the device does not know it: once in a row for one queue,
// each time where two share it.
func TestContext(t *testing.T) {
	for queues, want := range map[string]int{"1": 1 + 3 + 1 + 2, "2": 2*3 + 1 + 2} {
		n, pool := still(t, device82574, map[string]string{"queues": queues})
		f, meta := tcpFrame(t, false, 100, 0)
		meta.Flags = dma.NeedsCsum
		plain := load(pool, f, dma.Meta{})
		summed := load(pool, f, meta)
		summed.Retain(3)
		other := load(pool, f, meta)
		other.Meta.CsumOffset = udpSumAt
		if k := n.tx[0].Burst([]*dma.Buf{summed, summed, plain, summed, other}); k != 5 {
			t.Fatalf("Burst = %d, want 5", k)
		}
		if got := n.tx[0].c.used(); got != want {
			t.Errorf("%s queues: %d descriptors, want %d", queues, got, want)
		}
		summed.Free()
	}
}

// TestSmallSums: what is padded, or neither TCP nor UDP, is summed by the driver.
func TestSmallSums(t *testing.T) {
	m := newModel(device82574)
	n := probeModel(t, m, nil)
	pool, err := n.tx[0].NewPool(4)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	f, meta := tcpFrame(t, false, 0, 0)
	want := append([]byte(nil), f...)
	meta.Flags = dma.NeedsCsum
	binary.BigEndian.PutUint16(f[50:], sum(protoTCP+20, f[26:34]))
	n.tx[0].Burst([]*dma.Buf{load(pool, f, meta)})
	odd := bytes.Repeat([]byte{1}, 65)
	odd[20], odd[21] = 0, 0
	n.tx[0].Burst([]*dma.Buf{load(pool, odd, dma.Meta{Flags: dma.NeedsCsum, CsumStart: 18, CsumOffset: 2})})
	if len(m.wire) != 2 || !bytes.Equal(m.wire[0][:54], want) {
		t.Fatalf("sent %d frames, % x\nwant % x", len(m.wire), m.wire[0], want)
	}
	if got := frame.Sum(m.wire[1][18:]); got != 0 {
		t.Errorf("the sum over the sent frame is %#x, want 0", got)
	}
	// UDP's sum is never 0, which would mean none.
	zero := make([]byte, 64)
	zero[34], zero[35] = 0xff, 0xff
	n.tx[0].Burst([]*dma.Buf{load(pool, zero[:50], dma.Meta{Flags: dma.NeedsCsum, CsumStart: 34, CsumOffset: udpSumAt})})
	if got := m.wire[2][40:42]; got[0] != 0xff || got[1] != 0xff {
		t.Errorf("UDP checksum % x, want ff ff", got)
	}
	if err := n.tx[0].Drain(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestSumOnce: a frame that the driver summed and that then had to wait for room, or that is sent
// again, keeps its checksum.
func TestSumOnce(t *testing.T) {
	m := newModel(device82574)
	n := probeModel(t, m, nil)
	pool, err := n.tx[0].NewPool(4)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	f, meta := tcpFrame(t, false, 0, 1000) // one segment, shorter than the wire takes
	want := bytes.Clone(f)
	binary.BigEndian.PutUint16(f[50:], sum(protoTCP+20, f[26:34]))
	tcp := meta
	tcp.Flags = dma.NeedsCsum
	credit := 1
	n.tx[0].SetCredit(func(uint64) int { return credit })
	bufs := []*dma.Buf{load(pool, f, tcp), load(pool, f, tcp)}
	if k := n.tx[0].Burst(bufs); k != 1 {
		t.Fatalf("Burst with credit for one = %d, want 1", k)
	}
	bufs[1].Retain(1)
	for range 2 {
		if k := n.tx[0].Burst(bufs[1:]); k != 1 {
			t.Fatalf("Burst of the other = %d, want 1", k)
		}
	}
	for i, got := range m.wire {
		if !bytes.Equal(got[:54], want) {
			t.Errorf("frame %d: % x\nwant % x", i, got[:54], want)
		}
	}
	if len(m.wire) != 3 {
		t.Errorf("%d frames were sent, want 3", len(m.wire))
	}
	if err := n.tx[0].Drain(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestCreditInSegments: a frame waits until the far end has room for what it is cut into, and one that
// makes more than there ever is goes when everything is free.
func TestCreditInSegments(t *testing.T) {
	n, pool := still(t, device82574, map[string]string{"ring": "64"})
	credit := 20
	q := &n.tx[0]
	q.SetCredit(func(uint64) int { return credit })
	f, meta := tcpFrame(t, false, 20000, 1000) // 21 at most
	b := load(pool, f, meta)
	if k := q.Burst([]*dma.Buf{b}); k != 0 {
		t.Errorf("Burst with credit for 20 = %d, want 0", k)
	}
	q.SetMaxSegs(20)
	if k := q.Burst([]*dma.Buf{b}); k != 1 {
		t.Errorf("Burst with all the credit there is = %d, want 1", k)
	}
	if got := n.Stats().TxBusies; got != 1 {
		t.Errorf("TxBusies = %d, want 1", got)
	}
}

// TestPacketsOfSegments: the queue's counter has the frames that were sent, not the credit that they took.
func TestPacketsOfSegments(t *testing.T) {
	for _, c := range []struct{ payload, want int }{{20000, 20}, {20001, 21}, {1001, 2}} {
		n, pool := still(t, device82574, nil)
		f, meta := tcpFrame(t, false, c.payload, 1000)
		n.tx[0].Burst([]*dma.Buf{load(pool, f, meta)})
		list, _, _ := n.queueCounters()
		if list[0].Name != "tx_queue_0_packets" || list[0].Value != uint64(c.want) {
			t.Errorf("payload %d: %v, want %d packets", c.payload, list[0], c.want)
		}
	}
}

func TestSettle(t *testing.T) {
	const (
		csum, tso, tso6 = netdev.TxCsum, netdev.TxTSO4, netdev.TxTSO6
		rx, tx          = netdev.RxVLAN, netdev.TxVLAN
	)
	for _, c := range []struct{ was, want, is netdev.Feature }{
		{0, 0, 0}, {0, csum, csum}, {0, tso, 0}, {csum | tso | tso6, tso | tso6, 0}, {0, csum | tso, csum | tso},
		{0, rx, rx | tx}, {0, tx, rx | tx}, {rx | tx, rx, 0}, {rx | tx, tx, 0}, {rx | tx, rx | tx, rx | tx}, {rx | tx, 0, 0},
	} {
		if got := settle(c.was, c.want); got != c.is {
			t.Errorf("settle(%s, %s) = %s, want %s", c.was, c.want, got, c.is)
		}
	}
}

// TestFeatures: what the registers say, and what cannot be.
func TestFeatures(t *testing.T) {
	for name, id := range chips {
		m := newModel(id)
		n := probeModel(t, m, nil)
		available, on := n.Features()
		if on != available&^vlanFeatures {
			t.Errorf("%s: %s are on, want all but VLAN of %s", name, on, available)
		}
		if err := n.SetFeatures(t.Context(), netdev.RxHash); err == nil {
			t.Errorf("%s: SetFeatures(%s) with one queue = nil", name, netdev.RxHash)
		}
		for _, c := range []struct {
			f   netdev.Feature
			sum rxcsum
			vme ctrl
		}{{0, 0, 0}, {netdev.RxCsum, rxcsumIPOFL | rxcsumTUOFL, 0}, {vlanFeatures, 0, ctrlVME}} {
			if err := n.SetFeatures(t.Context(), c.f); err != nil {
				t.Errorf("%s: SetFeatures(%s) = %v", name, c.f, err)
			}
			m.mu.Lock()
			if got := rxcsum(m.reg[regRXCSUM/4]) &^ rxcsumV6OFL; got != c.sum {
				t.Errorf("%s: RXCSUM with %s = %s, want %s", name, c.f, got, c.sum)
			}
			if got := ctrl(m.reg[regCTRL/4]) & ctrlVME; got != c.vme {
				t.Errorf("%s: CTRL.VME with %s = %s, want %s", name, c.f, got, c.vme)
			}
			m.mu.Unlock()
		}
	}
}

// TestExtended moves every bit of an extended descriptor's second word.
func TestExtended(t *testing.T) {
	var all rxStat
	for i := range 64 {
		got := extended(1 << i)
		want := rxStat(0)
		switch {
		case i < 8:
			want = 1 << (i + 32) // status
		case i >= 24 && i < 32:
			want = 1 << (i + 16) // errors
		case i < 32:
			want = 1 << (i + 8) // the rest of both, in the place of the checksum
		case i < 48:
			want = 1 << (i - 32) // length
		default:
			want = 1 << i // tag
		}
		if got != want {
			t.Errorf("extended(1<<%d) = %#x, want %#x", i, uint64(got), uint64(want))
		}
		all |= got
	}
	if all != ^rxStat(0) {
		t.Errorf("all bits give %#x", uint64(all))
	}
}

func TestRxMeta(t *testing.T) {
	for _, c := range []struct {
		v     rxStat
		flags dma.MetaFlags
		vlan  uint16
	}{
		{rxDD | rxEOP, 0, 0}, {rxTUCS, dma.CsumGood, 0}, {rxTUCS | rxIPCS, dma.CsumGood, 0}, {rxIPCS, 0, 0}, {rxTUCS | rxTUE, 0, 0}, {rxTUCS | rxIPCS | rxIPE, 0, 0},
		{rxTUCS | rxIXSM, 0, 0}, {rxVP | 0xabcd<<48, dma.VLAN, 0xabcd}, {0xabcd << 48, 0, 0}, {rxVP | rxTUCS, dma.VLAN | dma.CsumGood, 0},
	} {
		if flags, vlan := c.v.meta(); flags != c.flags || vlan != c.vlan {
			t.Errorf("(%s).meta() = %d, %#x, want %d, %#x", c.v, flags, vlan, c.flags, c.vlan)
		}
	}
}
