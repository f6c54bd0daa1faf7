package sim_test

import (
	"context"
	"encoding/binary"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
)

// Registers that these tests use (SDM 13.4, 82574L 10.2).
const (
	rCTRL   bus.Off = 0x0000
	rSTATUS bus.Off = 0x0008
	rEECD   bus.Off = 0x0010
	rEERD   bus.Off = 0x0014
	rEXT    bus.Off = 0x0018
	rMDIC   bus.Off = 0x0020
	rFCAL   bus.Off = 0x0028
	rFCAH   bus.Off = 0x002c
	rFCT    bus.Off = 0x0030
	rICR    bus.Off = 0x00c0
	rITR    bus.Off = 0x00c4
	rICS    bus.Off = 0x00c8
	rIMS    bus.Off = 0x00d0
	rIMC    bus.Off = 0x00d8
	rEIAC   bus.Off = 0x00dc
	rIAM    bus.Off = 0x00e0
	rIVAR   bus.Off = 0x00e4
	rEITR   bus.Off = 0x00e8
	rRCTL   bus.Off = 0x0100
	rFCTTV  bus.Off = 0x0170
	rTCTL   bus.Off = 0x0400
	rPBA    bus.Off = 0x1000
	rFCRTL  bus.Off = 0x2160
	rFCRTH  bus.Off = 0x2168
	rRX     bus.Off = 0x2800 // base low, high, length, head at 0x10, tail at 0x18
	rRDTR   bus.Off = 0x2820
	rRADV   bus.Off = 0x282c
	rTX     bus.Off = 0x3800
	rTIDV   bus.Off = 0x3820
	rTADV   bus.Off = 0x382c
	rMPC    bus.Off = 0x4010
	rXONRX  bus.Off = 0x4048
	rXONTX  bus.Off = 0x404c
	rXOFFRX bus.Off = 0x4050
	rXOFFTX bus.Off = 0x4054
	rGPRC   bus.Off = 0x4074
	rGPTC   bus.Off = 0x4080
	rGORCL  bus.Off = 0x4088
	rROC    bus.Off = 0x40ac
	rRXCSUM bus.Off = 0x5000
	rRFCTL  bus.Off = 0x5008
	rMTA    bus.Off = 0x5200
	rRAL    bus.Off = 0x5400
	rVFTA   bus.Off = 0x5600
	rMRQC   bus.Off = 0x5818
	rRETA   bus.Off = 0x5c00
	rRSSRK  bus.Off = 0x5c80

	fBAM   = 1 << 15 // of RCTL
	fUPE   = 1 << 3
	fMPE   = 1 << 4
	fLPE   = 1 << 5
	fSECRC = 1 << 26
	fEN    = 1 << 1
	fVME   = 1 << 30 // of CTRL
)

// nic drives a controller with its bare hands: rings of 64 descriptors, a buffer of 16 KiB for
// each.
type nic struct {
	t       *testing.T
	dev     bus.Device
	r       bus.Region
	mac     [6]byte
	rings   *bus.Memory // receive 0, receive 1, transmit 0, transmit 1
	bufs    *bus.Memory // as many as receive descriptors
	out     *bus.Memory
	txTail  [2]uint32
	rxNext  [2]uint32
	used    int // of out
	pcie    bool
	emu     bool // QEMU
	machine *sim.Machine
}

const (
	nicRing = 64
	nicBuf  = 16 << 10
)

// pairOf makes two wired controllers on a backend, "sim" or "qemu". Time stands still on sim.
func pairOf(t *testing.T, backend, model string, props ...string) (a, b *nic) {
	t.Helper()
	var device func(string) (bus.Device, error)
	var machine *sim.Machine
	wires := [][2]string{{"eth0", "eth1"}}
	if backend == "qemu" {
		bustest.NeedQEMU(t)
		m, err := qemu.Start(context.Background(), qemu.Config{Wires: wires, Devices: []qemu.DeviceSpec{{Name: "eth0", Model: model}, {Name: "eth1", Model: model}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		device = m.Device
	} else {
		m, err := sim.Start(context.Background(), sim.Config{Wires: wires, Clock: sim.Stepped, Devices: []sim.DeviceSpec{{Name: "eth0", Model: model, Props: props}, {Name: "eth1", Model: model}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Close(); err != nil {
				t.Errorf("Machine.Close = %v", err)
			}
		})
		device, machine = m.Device, m
	}
	var n [2]*nic
	for i := range n {
		d, err := device("eth" + strconv.Itoa(i))
		if err != nil {
			t.Fatal(err)
		}
		n[i] = &nic{t: t, dev: d, pcie: model == "e1000e", emu: backend == "qemu", machine: machine}
		if n[i].r, err = d.Region(0); err != nil {
			t.Fatal(err)
		}
		for _, m := range []struct {
			p    **bus.Memory
			size int
		}{{&n[i].rings, 4 * nicRing * 16}, {&n[i].bufs, 2 * nicRing * nicBuf}, {&n[i].out, 1 << 20}} {
			if *m.p, err = d.DMA().Alloc(bus.DMARequest{Size: m.size}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { (*m.p).Free() })
		}
		t.Cleanup(func() { n[i].r.Write32(rRCTL, 0); n[i].r.Read32(rSTATUS) })
		pci.SetCommand(d.Config(), pci.CmdMem|pci.CmdMaster, 0)
		binary.LittleEndian.PutUint32(n[i].mac[0:], n[i].r.Read32(rRAL))
		binary.LittleEndian.PutUint16(n[i].mac[4:], uint16(n[i].r.Read32(rRAL+4)))
	}
	return n[0], n[1]
}

// up starts both directions of all queues. RCTL gets more than EN; nothing, where the test only
// sends.
func (n *nic) up(rctl uint32) {
	n.t.Helper()
	n.r.Write32(rIMC, 0xffffffff)
	for q := range 2 {
		if q == 1 && !n.pcie {
			break
		}
		for i, base := range []bus.Off{rRX, rTX} {
			base += 0x100 * bus.Off(q)
			at := n.rings.IOVA + bus.IOVA((2*i+q)*nicRing*16)
			n.r.Write32(base, uint32(at))
			n.r.Write32(base+4, uint32(at>>32))
			n.r.Write32(base+8, nicRing*16)
			n.r.Write32(base+0x10, 0)
			n.r.Write32(base+0x18, 0)
		}
		n.txTail[q], n.rxNext[q] = 0, 0
	}
	n.r.Write32(rTCTL, 1<<1|1<<3)
	n.r.Write32(rCTRL, n.r.Read32(rCTRL)|1<<6)
	n.r.Write32(rRCTL, rctl|fEN)
	if n.emu && !n.pcie && rctl != 0 {
		n.r.Read32(rSTATUS)
		time.Sleep(1100 * time.Millisecond) // it is deaf so long
	}
	n.post(0, nicRing-1)
	if n.pcie {
		n.post(1, nicRing-1)
	}
}

// post gives the first k descriptors of a ring that was just set up.
func (n *nic) post(q, k int) {
	for i := range k {
		d := n.rings.Bytes[(q*nicRing+i)*16:][:16]
		binary.LittleEndian.PutUint64(d, uint64(n.bufs.IOVA)+uint64((q*nicRing+i)*nicBuf))
		binary.LittleEndian.PutUint64(d[8:], 0)
	}
	n.r.Write32(rRX+0x100*bus.Off(q)+0x18, uint32(k))
}

// put copies bytes to where the device can send them from.
func (n *nic) put(b []byte) uint64 {
	at := n.used
	n.used += (len(b) + 15) &^ 15
	copy(n.out.Bytes[at:], b)
	return uint64(n.out.IOVA) + uint64(at)
}

// Second words of transmit descriptors.
const (
	tEOP  = 1 << 24
	tIFCS = 1 << 25
	tTSE  = 1 << 26
	tRS   = 1 << 27
	tDEXT = 1 << 29
	tVLE  = 1 << 30
	tIDE  = 1 << 31
	tData = tDEXT | 1<<20
	tIXSM = 1 << 40
	tTXSM = 1 << 41
)

// tx sends descriptors on a queue, the last one with RS, and waits for it.
func (n *nic) tx(q int, descs ...[2]uint64) {
	n.t.Helper()
	d := n.rings.Bytes[(2+q)*nicRing*16:]
	for i, x := range descs {
		if i == len(descs)-1 {
			x[1] |= tRS
		}
		at := n.txTail[q] % nicRing * 16
		binary.LittleEndian.PutUint64(d[at:], x[0])
		binary.LittleEndian.PutUint64(d[at+8:], x[1])
		n.txTail[q] = (n.txTail[q] + 1) % nicRing
	}
	n.r.Write32(rTX+0x100*bus.Off(q)+0x18, n.txTail[q])
	for range 1000 {
		if n.r.Read32(rTX+0x100*bus.Off(q)+0x10) == n.txTail[q] {
			return
		}
		time.Sleep(time.Millisecond)
	}
	n.t.Fatalf("TDH = %d, want %d", n.r.Read32(rTX+0x100*bus.Off(q)+0x10), n.txTail[q])
}

// send sends a frame as it is.
func (n *nic) send(f []byte) {
	n.t.Helper()
	n.used = 0
	n.tx(0, [2]uint64{n.put(f), uint64(len(f)) | tEOP | tIFCS})
}

// got is a received frame and its last descriptor.
type got struct {
	f         []byte
	low, high uint64
	descs     int
}

// rx takes what was received in a queue.
func (n *nic) rx(q, bufSize int) (frames []got) {
	n.t.Helper()
	n.r.Read32(rSTATUS)
	ext := n.pcie && n.r.Read32(rRFCTL)&(1<<15) != 0
	var g got
	for n.rxNext[q] < nicRing {
		i := q*nicRing + int(n.rxNext[q])
		d := n.rings.Bytes[i*16:]
		g.low, g.high = binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint64(d[8:])
		status, size := g.high>>32, g.high&0xffff
		if ext {
			status, size = g.high&0xffff, g.high>>32&0xffff
		}
		if status&1 == 0 {
			break
		}
		n.rxNext[q]++
		if int(size) > bufSize {
			n.t.Fatalf("descriptor %d: %d bytes in a buffer of %d", i, size, bufSize)
		}
		g.f = append(g.f, n.bufs.Bytes[i*nicBuf:][:size]...)
		g.descs++
		if status&2 != 0 {
			frames = append(frames, g)
			g = got{}
		}
	}
	if g.descs > 0 {
		n.t.Errorf("queue %d: %d descriptors without an end", q, g.descs)
	}
	return frames
}

// one is the frame that was received.
func (n *nic) one() got {
	n.t.Helper()
	f := n.rx(0, nicBuf)
	if len(f) != 1 {
		n.t.Fatalf("%d frames received, want 1", len(f))
	}
	return f[0]
}

// firedWithin waits no longer than d for an interrupt, and says how often it came.
func firedWithin(t *testing.T, q *bus.IRQ, d time.Duration) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	k, err := q.Wait(ctx)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	return k
}

// raw is a frame of n bytes that is nothing but Ethernet.
func raw(from, to *nic, n int) []byte {
	f := make([]byte, n)
	copy(f, to.mac[:])
	copy(f[6:], from.mac[:])
	f[12], f[13] = 0x88, 0xb5
	for i := 14; i < n; i++ {
		f[i] = byte(i * 7)
	}
	return f
}

// packet builds a frame of layers, checksums and lengths put in.
func packet(t *testing.T, from, to *nic, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: from.mac[:], DstMAC: to.mac[:], EthernetType: layers.EthernetTypeIPv4}
	net := gopacket.NetworkLayer(nil)
	for i, x := range l {
		switch x := x.(type) {
		case *layers.IPv4:
			x.Version, x.TTL = 4, 64
			net = x
		case *layers.IPv6:
			x.Version, x.HopLimit = 6, 64
			net = x
			if i == 0 {
				eth.EthernetType = layers.EthernetTypeIPv6
			}
		case *layers.Dot1Q:
			eth.EthernetType = layers.EthernetTypeDot1Q
		case *layers.TCP:
			_ = x.SetNetworkLayerForChecksum(net)
		case *layers.UDP:
			_ = x.SetNetworkLayerForChecksum(net)
		}
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append([]gopacket.SerializableLayer{eth}, l...)...); err != nil {
		t.Fatal(err)
	}
	f := b.Bytes()
	for len(f) < 60 {
		f = append(f, 0)
	}
	return f
}

func put64(b []byte, v uint64) { binary.LittleEndian.PutUint64(b, v) }
