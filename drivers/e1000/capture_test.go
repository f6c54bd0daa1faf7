package e1000_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/netdev"
)

// udp builds an IPv4 frame of n bytes in all.
func udp(t testing.TB, from, to netdev.Device, seq uint32, n int) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: from.MAC(), DstMAC: to.MAC(), EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{Version: 4, TTL: 32, Protocol: layers.IPProtocolUDP, Id: uint16(seq), SrcIP: net.IPv4(198, 18, 0, 1), DstIP: net.IPv4(198, 18, 0, 42)}
	u := &layers.UDP{SrcPort: 9, DstPort: layers.UDPPort(1000 + seq)}
	if err := u.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, n-42)
	binary.BigEndian.PutUint32(p, seq)
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, u, gopacket.Payload(p)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestCapture sends IPv4 frames and decodes what QEMU saw on the wire, at the sender's end.
func TestCapture(t *testing.T) {
	for _, model := range models {
		t.Run(model, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "eth0.pcap"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			m := machineOf(t, qemu.Config{
				Devices: []qemu.DeviceSpec{{Name: "eth0", Model: model, Capture: f}, {Name: "eth1", Model: model}},
				Wires:   [][2]string{{"eth0", "eth1"}},
			})
			o := map[string]string{"ring": "64"}
			a := bind(t, m, "eth0", map[string]string{"ring": "64", "mac": "02:00:00:00:00:aa"}, nil)
			instB := bind(t, m, "eth1", o, nil)
			b, closeB := instB.(netdev.Device), instB.Close
			from := a.(netdev.Device)
			if err := netdev.Wire(from, b); err != nil {
				t.Fatal(err)
			}
			sink, err := netdev.NewSink(b)
			if err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			pool, err := from.Tx(0).NewPool(64)
			if err != nil {
				t.Fatal(err)
			}
			const frames = 200
			var sent [][]byte
			for i := range frames {
				frame := udp(t, from, b, uint32(i), 60+i*7%1455)
				sent = append(sent, frame)
				x := pool.Get()
				for x == nil {
					from.Tx(0).Reap()
					x = pool.Get()
				}
				x.Data = x.Mem[:copy(x.Mem, frame)]
				for from.Tx(0).Burst([]*dma.Buf{x}) == 0 {
					time.Sleep(10 * time.Microsecond)
				}
			}
			if err := from.Tx(0).Drain(context.Background()); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(10 * time.Second); sink.Frames() < frames; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d frames received, want %d", sink.Frames(), frames)
				}
			}
			pool.Close()
			if err := errors.Join(a.Close(), sink.Close(), closeB(), m.Close()); err != nil {
				t.Fatal(err)
			}
			compare(t, f, from, b, sent)
		})
	}
}

// compare decodes a capture.
func compare(t *testing.T, f *os.File, from, to netdev.Device, sent [][]byte) {
	t.Helper()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	// A header of 24 bytes, then for each frame 16 bytes, of which the third word is its length.
	const fileHeader, frameHeader, magic = 24, 16, 0xa1b2c3d4
	if len(raw) < fileHeader || binary.LittleEndian.Uint32(raw) != magic {
		t.Fatalf("%d bytes of capture, no pcap header", len(raw))
	}
	raw = raw[fileHeader:]
	for i := 0; ; i++ {
		if len(raw) == 0 {
			if i != len(sent) {
				t.Errorf("%d frames captured, want %d", i, len(sent))
			}
			return
		}
		if len(raw) < frameHeader || i >= len(sent) {
			t.Fatalf("frame %d of %d: %d bytes left", i, len(sent), len(raw))
		}
		n := int(binary.LittleEndian.Uint32(raw[8:]))
		if len(raw) < frameHeader+n {
			t.Fatalf("frame %d of %d bytes: %d left", i, n, len(raw))
		}
		data := raw[frameHeader:][:n]
		raw = raw[frameHeader+n:]
		if !bytes.Equal(data, sent[i]) {
			t.Fatalf("frame %d: % x, want % x", i, data, sent[i])
		}
		p := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.Default)
		if e := p.ErrorLayer(); e != nil {
			t.Fatalf("frame %d does not decode: %v", i, e.Error())
		}
		eth := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
		u, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if !ok || eth.SrcMAC.String() != from.MAC().String() || eth.DstMAC.String() != to.MAC().String() {
			t.Fatalf("frame %d: %s", i, p)
		}
		if int(u.DstPort) != 1000+i || binary.BigEndian.Uint32(u.Payload) != uint32(i) {
			t.Errorf("frame %d: to port %d, sequence %d", i, u.DstPort, binary.BigEndian.Uint32(u.Payload))
		}
	}
}

// TestMachineDies: QEMU is killed under traffic. Queues stop, waiters learn why, and
// closing works.
func TestMachineDies(t *testing.T) {
	for _, model := range models {
		t.Run(model, func(t *testing.T) {
			m := machine(t, model, 1)
			n := bind(t, m, "eth0", map[string]string{"ring": "64"}, nil)
			d := n.(netdev.Device)
			pool, err := d.Tx(0).NewPool(256)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			waited := make(chan error, 1)
			go func() { waited <- netdev.Poll(context.Background(), d.Rx(0), func([]*dma.Buf) {}) }()
			p, err := os.FindProcess(m.PID())
			if err != nil {
				t.Fatal(err)
			}
			var killed bool
			for i, end := 0, time.Now().Add(10*time.Second); d.Err() == nil; i++ {
				if i > 1000 && !killed {
					killed = true
					if err := p.Kill(); err != nil {
						t.Fatal(err)
					}
				}
				if time.Now().After(end) {
					t.Fatal("the device lives on without QEMU")
				}
				if x := pool.Get(); x != nil {
					x.Data = x.Mem[:60]
					copy(x.Data, "\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02\x88\xb5")
					if d.Tx(0).Burst([]*dma.Buf{x}) == 0 {
						x.Free()
					}
				}
				d.Tx(0).Reap()
			}
			if err := d.Err(); !errors.Is(err, bus.ErrGone) {
				t.Errorf("Err = %v, want %v", err, bus.ErrGone)
			}
			<-d.Done()
			select {
			case err := <-waited:
				if !errors.Is(err, bus.ErrGone) {
					t.Errorf("Poll = %v, want %v", err, bus.ErrGone)
				}
			case <-time.After(20 * time.Second):
				t.Error("Poll did not end")
			}
			var bufs [1]*dma.Buf
			if k := d.Tx(0).Burst(bufs[:0]) + d.Rx(0).Burst(bufs[:]); k != 0 {
				t.Errorf("Burst on a dead device = %d, want 0", k)
			}
			if err := d.Tx(0).Drain(context.Background()); err != nil && !errors.Is(err, bus.ErrGone) {
				t.Errorf("Drain = %v, want %v or nothing in flight", err, bus.ErrGone)
			}
			d.Stats()
			if err := n.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
			d.Tx(0).Reap()
		})
	}
}
