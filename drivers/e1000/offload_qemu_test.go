package e1000_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	frames "github.com/ring3dev/ring3/internal/frame"
	"github.com/ring3dev/ring3/netdev"
)

// take receives a frame from any queue, and returns a copy, its queue and its Meta.
func take(t *testing.T, d netdev.Device) (f []byte, q int, m dma.Meta) {
	t.Helper()
	var bufs [1]*dma.Buf
	for end := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		for q := range d.Info().RxQueues {
			if d.Rx(q).Burst(bufs[:]) == 1 {
				b := bufs[0]
				f, m = append([]byte(nil), b.Data...), b.Meta
				b.Free()
				d.Rx(q).Burst(nil)
				return f, q, m
			}
		}
		if time.Now().After(end) {
			t.Fatal("no frame within 10 s")
		}
	}
}

// put1 sends one frame.
func put1(t *testing.T, d netdev.Device, f []byte, m dma.Meta) {
	t.Helper()
	pool, err := netdev.NewTxPool(d.Tx(0), 1, netdev.MaxGSO)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	b := pool.Get()
	b.Data, b.Meta = b.Mem[:len(f)], m
	copy(b.Data, f)
	for end := time.Now().Add(10 * time.Second); d.Tx(0).Burst([]*dma.Buf{b}) == 0; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("the frame is not taken within 10 s")
		}
	}
	if err := d.Tx(0).Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestHash compares the hash with the examples of Microsoft's specification of receive side
// scaling, and the queue with its lowest bits.
func TestHash(t *testing.T) {
	o := map[string]string{"queues": "2", "ring": "64"}
	for name, pair := range map[string]func(*testing.T) (a, b netdev.Device){
		"sim": func(t *testing.T) (a, b netdev.Device) {
			m := simMachine(t, "e1000e")
			return simBind(t, m, "eth0", o).(netdev.Device), simBind(t, m, "eth1", o).(netdev.Device)
		},
		"qemu": func(t *testing.T) (a, b netdev.Device) {
			m := machine(t, "e1000e", 2)
			return bind(t, m, "eth0", o, nil).(netdev.Device), bind(t, m, "eth1", o, nil).(netdev.Device)
		},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := pair(t)
			for _, c := range []struct {
				dst, src string
				tcp, ip  uint32
			}{
				{"161.142.100.80:1766", "66.9.149.187:2794", 0x51ccc178, 0x323e8fc2},
				{"65.69.140.83:4739", "199.92.111.2:14230", 0xc626b0ea, 0xd718262a},
				{"12.22.207.184:38024", "24.19.198.95:12898", 0x5c2b394a, 0xd2d0a5de},
				{"[3ffe:2501:200:3::1]:1766", "[3ffe:2501:200:1fff::7]:2794", 0x40207d3d, 0x2cc18cd5},
				{"[ff02::1]:4739", "[3ffe:501:8::260:97ff:fe40:efab]:14230", 0xdde51bbf, 0x0f0c461c},
			} {
				src, dst := netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)
				s := frames.Spec{Dst: [6]byte(to.MAC()), Src: [6]byte(from.MAC()), SrcIP: src.Addr(), DstIP: dst.Addr(), SrcPort: src.Port(), DstPort: dst.Port(), TTL: 9, Payload: make([]byte, 20)}
				tcp, err := frames.BuildTCP(s, frames.TCP{Flags: frames.ACK})
				if err != nil {
					t.Fatal(err)
				}
				udp, err := frames.Build(s)
				if err != nil {
					t.Fatal(err)
				}
				for f, want := range map[*frames.Frame]uint32{&tcp: c.tcp, &udp: c.ip} {
					put1(t, from, f.Bytes, dma.Meta{})
					if _, q, m := take(t, to); m.Hash != want || q != int(want&1) {
						t.Errorf("%s to %s: hash %#x in queue %d, want %#x in %d", c.src, c.dst, m.Hash, q, want, want&1)
					}
				}
			}
		})
	}
}

// TestFragments: what QEMU's 82574L makes of a frame that is to be segmented, which is why that is
// off there at first: before 8.1 IP fragments, which together are the frame, and TCP
// segments since.
func TestFragments(t *testing.T) {
	m := machine(t, "e1000e", 2)
	from, to := bind(t, m, "eth0", nil, nil).(netdev.Device), bind(t, m, "eth1", nil, nil).(netdev.Device)
	o := from.(netdev.Offloader)
	available, on := o.Features()
	if tso := netdev.TxTSO4 | netdev.TxTSO6; available&tso != tso || on&tso != 0 {
		t.Errorf("Features = %s, %s: want segmentation available and off", available, on)
	}
	if err := o.SetFeatures(context.Background(), on|netdev.TxTSO4); err != nil {
		t.Fatal(err)
	}
	s := frames.Spec{Dst: [6]byte(to.MAC()), Src: [6]byte(from.MAC()), SrcIP: netip.MustParseAddr("10.0.0.1"), DstIP: netip.MustParseAddr("10.0.0.2"), TTL: 9, Payload: make([]byte, 5000)}
	for i := range s.Payload {
		s.Payload[i] = byte(i * 13 >> 3)
	}
	f, err := frames.BuildTCP(s, frames.TCP{Flags: frames.ACK})
	if err != nil {
		t.Fatal(err)
	}
	put1(t, from, f.Bytes, dma.Meta{Flags: dma.NeedsCsum | dma.GSO4, CsumStart: uint16(f.L4), CsumOffset: 16, HdrLen: uint16(f.Payload), GSOSize: 1000})
	var ip []byte // what the fragments carry
	for more := true; more; {
		p, _, _ := take(t, to)
		word := binary.BigEndian.Uint16(p[20:])
		if len(ip) == 0 && word&0x2000 == 0 {
			t.Skip("this QEMU makes TCP segments")
		}
		if off := int(word&0x1fff) * 8; off != len(ip) || frames.Sum(p[14:34]) != 0 {
			t.Fatalf("a fragment at %d with header sum %#x, want %d, 0", off, frames.Sum(p[14:34]), len(ip))
		}
		ip = append(ip, p[34:14+binary.BigEndian.Uint16(p[16:])]...)
		more = word&0x2000 != 0
	}
	if !bytes.Equal(ip, f.Bytes[f.L4:]) {
		t.Errorf("the fragments make %d bytes that differ from the frame's %d", len(ip), len(f.Bytes)-f.L4)
	}
}
