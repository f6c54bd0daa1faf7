package fabric

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

const (
	phy = efSerial
	em  = efErrMgmt
)

// reg is a register as it should be: what it has after power-up and which bits of it can be written.
type reg struct {
	off         rapidio.Off
	reset, bits uint32
}

// checkReg writes each bit alone, as 1 and as 0.
func checkReg(t *testing.T, what string, r reg, read func(rapidio.Off) uint32, write func(rapidio.Off, uint32)) {
	t.Helper()
	if got := read(r.off); got != r.reset {
		t.Errorf("%s at %#x after power-up: %#x, want %#x", what, r.off, got, r.reset)
	}
	for b := range 32 {
		for _, v := range []uint32{1 << b, ^uint32(1 << b)} {
			write(r.off, v)
			if got, want := read(r.off), r.reset&^r.bits|v&r.bits; got != want {
				t.Errorf("%s at %#x after writing %#x: %#x, want %#x", what, r.off, v, got, want)
			}
		}
	}
	write(r.off, r.reset)
}

func TestEndpointRegisters(t *testing.T) {
	f := newFabric(t, "endpoints: [{name: a}, {name: b}]\nlinks: [{ends: [a, b], width: 4, rate: 10G}]")
	a := attach(t, f, "a")
	for _, r := range []reg{
		{rapidio.RegDeviceID, 0x00015233, 0}, {rapidio.RegDeviceInfo, 1, 0}, {rapidio.RegAsmID, 0x00015233, 0}, {rapidio.RegAsmInfo, 0x00010100, 0},
		{rapidio.RegPEF, 0x20f80009, 0}, {rapidio.RegSwitchPort, 0, 0}, {rapidio.RegSrcOps, 0xc04, 0}, {rapidio.RegDstOps, 0xc04, 0},
		{rapidio.RegRTLimit, 0, 0}, {rapidio.RegMbox, 0, 0}, {rapidio.RegDoorbell, 0, 0}, {rapidio.RegPELL, 1, 0},
		{rapidio.RegLCSBase0, 0, 0x7fffffff}, {rapidio.RegLCSBase1, 0, 0xffffffff}, {rapidio.RegBaseDeviceID, 0x00ff0000, 0x00ff0000},
		{rapidio.RegComponentTag, 0, 0xffffffff}, {rapidio.RegRouteDestID, 0, 0}, {rapidio.RegRoutePort, 0, 0}, {rapidio.RegRouteDefault, 0, 0},
		{0x20, 0, 0}, {0x6c + 0x20, 0, 0}, {0xfc, 0, 0},
		{phy, 0x30000001, 0}, {phy + 4, 0, 0}, {phy + rapidio.PHYLinkTimeout, 33333 << 8, 0xffffff00}, {phy + rapidio.PHYRespTimeout, 33333 << 8, 0xffffff00},
		{phy + rapidio.PHYGenControl, 0, 0xe0000000}, {phy + rapidio.PHYPortLinkReq, 0, 7}, {phy + rapidio.PHYPortLinkResp, 0, 0},
		{phy + rapidio.PHYPortAckID, 0, 0}, {phy + 0x4c, 0, 0}, {phy + rapidio.PHYPortControl2, 0x30300000, 0},
		{phy + rapidio.PHYPortErrStat, rapidio.PortUninit, 0}, {phy + rapidio.PHYPortControl, 0xc0600001, ctlRW},
		{phy + 0x60, 0, 0}, {phy + 0x60 + rapidio.PHYPortControl - 0x40, 0, 0},
		{em, 7, 0}, {em + rapidio.EMLogDetect, 0, 0}, {em + rapidio.EMLogEnable, 0x05000001, 0x05000001}, {em + emCapDeviceID, 0, 0},
		{em + rapidio.EMPortWriteTgt, 0, 0x00ff0000}, {em + emTTL, 0, 0xffff0000},
		{em + rapidio.EMPortDetect, 0, 0}, {em + rapidio.EMPortRateEn, 0x80000000, 0x80000000}, {em + 0x80, 0, 0},
		{rapidio.RegImplementation, 0, 0}, {tsiTable, 0, 0}, {rapidio.ConfigSize - 4, 0, 0},
	} {
		checkReg(t, "endpoint", r, a.local, a.setLocal)
	}
	b := attach(t, f, "b")
	a.setID(1)
	b.setID(2)
	if got, want := a.local(phy+rapidio.PHYPortErrStat), rapidio.PortOK; got != want {
		t.Errorf("ERR_STAT with a link: %#x, want %#x", got, want)
	}
	if got := a.read(0x55, 3, rapidio.RegBaseDeviceID); got != 2<<16 {
		t.Errorf("BASE_DID of the other end: %#x, want 0x20000", got)
	}
	if got, want := b.local(phy+rapidio.PHYPortControl), uint32(0xc0600001|2<<27); got != want {
		t.Errorf("CTL with a link of 4 lanes: %#x, want %#x", got, want)
	}
}

func TestLargeRegisters(t *testing.T) {
	f := newFabric(t, "ids: 16\nswitches: [{name: s, ports: 3}]\nendpoints: [{name: a, serial: false, mailboxes: false}]\nlinks: [[a, 's:1']]")
	a := attach(t, f, "a")
	for _, r := range []reg{
		{rapidio.RegPEF, 0x20080019, 0}, {rapidio.RegAsmInfo, 0x00013000, 0}, {rapidio.RegSrcOps, 0x404, 0}, {rapidio.RegBaseDeviceID, 0x00ffffff, 0x00ffffff},
		{phy, 0, 0}, {phy + rapidio.PHYPortControl, 0, 0}, {phy + rapidio.PHYGenControl, 0, 0}, {em + rapidio.EMPortWriteTgt, 0, 0xffff8000},
	} {
		checkReg(t, "16-bit endpoint", r, a.local, a.setLocal)
	}
	read := func(off rapidio.Off) uint32 { return a.read(0, 0, off) }
	write := func(off rapidio.Off, v uint32) { a.write(0, 0, off, v) }
	for _, r := range []reg{
		{rapidio.RegDeviceID, 0x00025233, 0}, {rapidio.RegPEF, 0x10000119, 0}, {rapidio.RegSwitchPort, 0x0301, 0}, {rapidio.RegSrcOps, 4, 0}, {rapidio.RegDstOps, 0, 0},
		{rapidio.RegRTLimit, 0xffff, 0}, {rapidio.RegBaseDeviceID, 0, 0}, {rapidio.RegPELL, 0, 0}, {rapidio.RegMbox, 0, 0}, {rapidio.RegComponentTag, 0, 0xffffffff},
		{rapidio.RegRouteDestID, 0, 0xffff}, {rapidio.RegRoutePort, 0xff, 0xff}, {rapidio.RegRouteDefault, 0xff, 0xff},
		{phy, 0x30000009, 0}, {phy + rapidio.PHYRespTimeout, 0, 0}, {phy + rapidio.PHYGenControl, 0, 0x20000000},
		{phy + 0x40 + rapidio.PHYPortControl, 0x00600001, ctlRW}, {phy + 0x60 + rapidio.PHYPortControl, 0, 0},
		{em + 0x80 + rapidio.EMPortRateEn, 0x80000000, 0x80000000}, {tsiTable, 0, 0},
	} {
		checkReg(t, "switch", r, read, write)
	}
}

func TestHostLock(t *testing.T) {
	f := newFabric(t, star(1, ""))
	a := attach(t, f, "pe0")
	for _, c := range []struct{ write, want uint32 }{
		{0xffff, 0xffff}, {5, 5}, {6, 5}, {0xffff, 5}, {0x10005, 0xffff}, {6, 6}, {6, 0xffff}, {0, 0}, {1, 0}, {0, 0xffff},
	} {
		a.write(0, 0, rapidio.RegHostLock, c.write)
		if got := a.read(0, 0, rapidio.RegHostLock); got != c.want {
			t.Errorf("lock after writing %#x: %#x, want %#x", c.write, got, c.want)
		}
	}
	ctx := context.Background()
	a.Write(ctx, 0, 0, rapidio.RegHostLock+3, 1, 7)
	if got := a.read(0, 0, rapidio.RegHostLock); got != 0xffff {
		t.Errorf("lock after writing one byte of it: %#x, want 0xffff", got)
	}
	a.Write(ctx, 0, 0, rapidio.RegHostLock+2, 2, 7)
	if got := a.read(0, 0, rapidio.RegHostLock); got != 7 {
		t.Errorf("lock after writing its half: %#x, want 7", got)
	}
}

func TestWidths(t *testing.T) {
	f := newFabric(t, star(1, ""))
	a := attach(t, f, "pe0")
	ctx := context.Background()
	const tag = rapidio.RegComponentTag
	a.write(0, 0, tag, 0x01020304)
	for _, c := range []struct {
		off  rapidio.Off
		w    rapidio.Width
		want uint32
	}{{tag, 1, 1}, {tag + 1, 1, 2}, {tag + 2, 1, 3}, {tag + 3, 1, 4}, {tag, 2, 0x102}, {tag + 2, 2, 0x304}, {tag, 4, 0x01020304}} {
		if v, err := a.Read(ctx, 0, 0, c.off, c.w); v != c.want || err != nil {
			t.Errorf("read of %d bytes at %#x = %#x, %v, want %#x", c.w, c.off, v, err, c.want)
		}
	}
	a.Write(ctx, 0, 0, tag+1, 1, 0xffaa)
	a.Write(ctx, 0, 0, tag+2, 2, 0xbbcc)
	if got := a.read(0, 0, tag); got != 0x01aabbcc {
		t.Errorf("tag after narrow writes: %#x, want 0x01aabbcc", got)
	}
	for _, c := range []struct {
		off rapidio.Off
		w   rapidio.Width
	}{{tag + 1, 2}, {tag + 2, 4}, {tag, 3}, {tag, 8}, {tag, 0}, {rapidio.ConfigSize, 4}} {
		if _, err := a.Read(ctx, 0, 0, c.off, c.w); !errors.Is(err, rapidio.ErrRange) {
			t.Errorf("read of %d bytes at %#x: %v, want %v", c.w, c.off, err, rapidio.ErrRange)
		}
	}
}

func TestMailboxState(t *testing.T) {
	_, ports := starred(t, 2, "")
	box, err := ports[1].OpenInbox(2, 2)
	if err != nil {
		t.Fatal(err)
	}
	state := func() uint32 { return ports[0].read(1, 1, rapidio.RegMbox) }
	if got := state(); got != 0x00008000 {
		t.Errorf("Mailbox CSR with mailbox 2 open: %#x, want 0x8000", got)
	}
	out := ports[0].outbox(2)
	for range 2 {
		out.Add([]rapidio.Message{{Peer: 1, Mbox: 2, Data: []byte{1}}})
		if st := result1(t, out); st != rapidio.Done {
			t.Fatalf("message: %v", st)
		}
	}
	if got := state(); got != 0x0000c000 {
		t.Errorf("Mailbox CSR with mailbox 2 full: %#x, want 0xc000", got)
	}
	receive(t, box)
	if got := state(); got != 0x00008000 {
		t.Errorf("Mailbox CSR with room again: %#x, want 0x8000", got)
	}
	box.Close()
	if got := state(); got != 0 {
		t.Errorf("Mailbox CSR after closing: %#x, want 0", got)
	}
	ports[1].OpenDoorbells(true)
	if got := ports[0].read(1, 1, rapidio.RegDoorbell); got != 0x80000000 {
		t.Errorf("doorbells open: %#x, want 0x80000000", got)
	}
}

func TestLinkMaintenance(t *testing.T) {
	_, ports := starred(t, 2, "")
	a := ports[0]
	port := phy + rapidio.PHYPortStride // of the switch, to pe1
	a.write(0, 0, port+rapidio.PHYPortLinkReq, linkReqStatus)
	if got := a.read(0, 0, port+rapidio.PHYPortLinkResp); got != 0x80000010 {
		t.Errorf("link response: %#x, want 0x80000010", got)
	}
	if got := a.read(0, 0, port+rapidio.PHYPortLinkResp); got != 0x10 {
		t.Errorf("link response read again: %#x, want 0x10", got)
	}
	a.write(1, 1, rapidio.RegComponentTag, 77)
	for _, cmd := range []uint32{3, 3, 3, 4, 3, 3, 3} {
		a.write(0, 0, port+rapidio.PHYPortLinkReq, cmd)
	}
	if got := a.read(1, 1, rapidio.RegComponentTag); got != 77 {
		t.Errorf("tag after three resets twice: %d, want 77", got)
	}
	a.write(0, 0, port+rapidio.PHYPortLinkReq, 3)
	if got := a.read(1, 1, rapidio.RegComponentTag); got != 0 {
		t.Errorf("tag after the fourth reset in a row: %d, want 0", got)
	}
	ports[1].Close()
	a.write(0, 0, port+rapidio.PHYPortLinkReq, linkReqStatus)
	if got := a.read(0, 0, port+rapidio.PHYPortLinkResp); got != 0 {
		t.Errorf("link response without a link: %#x, want 0", got)
	}
}

func TestPortControl(t *testing.T) {
	_, ports := starred(t, 2, "")
	a := ports[0]
	ports[1].inbox(8)
	out := a.outbox(2)
	ctl := phy + rapidio.PHYPortStride + rapidio.PHYPortControl
	readable := func() bool {
		_, err := a.Read(context.Background(), 1, 1, 0, 4)
		return err == nil
	}
	for _, c := range []struct {
		what         string
		v            uint32
		message, cfg bool
	}{
		{"enabled", ctlReset, true, true},
		{"no output", rapidio.PortInputEn, false, true},
		{"no input", rapidio.PortOutputEn, false, true},
		{"lockout", ctlReset | rapidio.PortLockout, false, false},
		{"disabled", ctlReset | ctlDisable, false, false},
		{"enabled again", ctlReset, true, true},
	} {
		a.write(0, 0, ctl, c.v)
		if got := send(t, out, 1, []byte{1}) == rapidio.Done; got != c.message {
			t.Errorf("%s: message passes %v, want %v", c.what, got, c.message)
		}
		if got := readable(); got != c.cfg {
			t.Errorf("%s: maintenance passes %v, want %v", c.what, got, c.cfg)
		}
	}
	stat := phy + rapidio.PHYPortStride + rapidio.PHYPortErrStat
	if got := a.read(0, 0, stat); got&statOutDropped == 0 {
		t.Errorf("ERR_STAT after packets were thrown away: %#x, want bit 26", got)
	}
	a.write(0, 0, stat, ^statOutDropped)
	if got := a.read(0, 0, stat); got&statOutDropped == 0 {
		t.Errorf("ERR_STAT after writing 0 to bit 26: %#x", got)
	}
	a.write(0, 0, stat, statOutDropped)
	if got := a.read(0, 0, stat); got != rapidio.PortOK {
		t.Errorf("ERR_STAT after clearing: %#x, want %#x", got, rapidio.PortOK)
	}
}

func TestLaneSpeed(t *testing.T) {
	for _, c := range []struct {
		rate  int64
		width int
		want  int
	}{{0, 1, 5}, {1000, 1, 1}, {1_000_000_000, 1, 1}, {1_000_000_001, 1, 2}, {10_000_000_000, 4, 3}, {20_000_000_000, 4, 5}, {1 << 40, 1, 5}} {
		if got := laneSpeed(c.rate, c.width); got != c.want {
			t.Errorf("laneSpeed(%d, %d) = %d, want %d", c.rate, c.width, got, c.want)
		}
	}
}

// FuzzConfig does arbitrary maintenance transactions in a net of both kinds of switches: no panic, and every answer is one. What is
// read only stays.
func FuzzConfig(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, uint64(1))
	f.Add([]byte{0xff, 0, 0, 0x70, 4, 0, 0, 0, 0, 0, 0, 0}, uint64(2))
	topo, err := Parse("fuzz.yaml", []byte("switches: [{name: s, ports: 4}, {name: z, ports: 4, kind: tsi500}]\n"+
		"endpoints: [{name: a}, {name: b}, {name: c, serial: false}]\n"+
		"links: [[a, 's:0'], [b, 's:1'], ['s:2', 'z:2'], ['s:3', 'z:1'], [c, 'z:0']]"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		fab := New(topo, Options{})
		var ports []*Port
		for _, name := range []string{"a", "b", "c"} {
			p, err := fab.Attach(name, quietSink{})
			if err != nil {
				t.Fatal(err)
			}
			ports = append(ports, p)
		}
		rng := rand.New(rand.NewPCG(seed, 0))
		interesting := []rapidio.Off{0x60, 0x68, 0x6c, 0x70, 0x74, 0x78, phy + 0x3c, phy + 0x40, phy + 0x58, phy + 0x5c, phy + 0x7c, phy + 0x9c,
			em + 8, em + 0x28, em + 0x40, tsiTable, tsiTable + tsiStride}
		for ; len(in) >= 8; in = in[8:] {
			m := Maint{Dest: rapidio.DestID(in[0]), Hop: in[1] & 7, Off: rapidio.Off(in[2])<<16 | rapidio.Off(in[3])<<8 | rapidio.Off(in[4]),
				Width: rapidio.Width(in[5] & 7), Write: in[5]&8 != 0, Local: in[5]&0x30 == 0, Value: rng.Uint32() >> (in[6] & 31)}
			if in[5]&0x40 != 0 {
				m.Off, m.Width = interesting[int(in[4])%len(interesting)], 4
			}
			p := ports[int(in[7])%len(ports)]
			if v, s := p.Maint(&m); s != rapidio.Done && s != rapidio.Error || s == rapidio.Error && v != 0 {
				t.Fatalf("Maint(%+v) = %#x, %v", m, v, s)
			}
			p.Doorbell(0, m.Dest, 1)
			p.Message(0, &rapidio.Message{Peer: m.Dest, Data: in[:1]})
			p.PortWrite(m.Dest, in[:4])
			p.Flush()
		}
		for i, want := range []uint32{0x00015233, 0x00015233, 0x00015233} {
			if v, _ := ports[i].Maint(&Maint{Local: true, Width: 4}); v != want {
				t.Errorf("device ID of port %d: %#x, want %#x", i, v, want)
			}
		}
		fab.Switches()
		fab.Nodes()
		for _, p := range ports {
			p.Detach()
		}
	})
}

// quietSink takes everything.
type quietSink struct{}

func (quietSink) Message(*rapidio.Message) rapidio.Status        { return rapidio.Done }
func (quietSink) Doorbell(rapidio.DestID, uint16) rapidio.Status { return rapidio.Done }
func (quietSink) PortWrite([]byte)                               {}
func (quietSink) Complete(uint32, rapidio.Status)                {}
func (quietSink) Response(uint32, uint32, rapidio.Status)        {}
func (quietSink) Flush()                                         {}
func (quietSink) ConfigWritten()                                 {}
func (quietSink) Link(bool)                                      {}
