package fault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/pci"
)

// Registers of edu, for the tests.
const (
	regID    bus.Off = 0x00 // 0x010000ed
	regLive  bus.Off = 0x04 // reads as the complement of what was written
	regRaise bus.Off = 0x60
	regAck   bus.Off = 0x64

	eduID = 0x010000ed
)

var eduTable = []bus.Register{
	{Name: "ID", Off: regID, Access: bus.RO}, {Name: "LIVE", Off: regLive}, {Name: "RAISE", Off: regRaise, Access: bus.WO}, {Name: "ACK", Off: regAck, Access: bus.WO},
}

// wrap is an edu with a plan around it, and its registers: the first access.
func wrap(t *testing.T, spec string) (*fault.Device, bus.Region) {
	t.Helper()
	bustest.NoLeaks(t)
	_, in := openSim(t)
	var plan fault.Plan
	if spec != "" {
		var err error
		if plan, err = fault.Parse(spec); err != nil {
			t.Fatal(err)
		}
	}
	plan.Registers = eduTable
	if err := plan.Check(); err != nil {
		t.Fatal(err)
	}
	d := fault.Wrap(in, plan)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	return d, r
}

func TestReads(t *testing.T) {
	for spec, want := range map[string][4]uint32{
		"":                          {eduID, eduID, eduID, eduID},
		"3:ones":                    {eduID, 0xffffffff, eduID, eduID},
		"ID#3:zero":                 {eduID, eduID, 0, eduID},
		"ID#2:flip:0":               {eduID, eduID ^ 1, eduID, eduID},
		"ID#2:flip:31":              {eduID, eduID ^ 1<<31, eduID, eduID},
		"ID#2:flip:32":              {eduID, eduID, eduID, eduID}, // it has no such bit
		"ID#2:stuck:0":              {eduID, eduID ^ 1, eduID ^ 1, eduID ^ 1},
		"BAR0+0x2#2:stuck:8":        {eduID, eduID ^ 1<<8, eduID ^ 1<<8, eduID ^ 1<<8}, // the same register
		"ID#2:stuck:0+ID#3:flip:0":  {eduID, eduID ^ 1, eduID, eduID ^ 1},
		"ID#2:stuck:0+ID#3:stuck:4": {eduID, eduID ^ 1, eduID ^ 0x11, eduID ^ 0x11},
		"3:ones+ID#4:zero":          {eduID, 0xffffffff, eduID, 0},
		"ID#2:gone":                 {eduID, 0xffffffff, 0xffffffff, 0xffffffff},
		"ID#2:lostwrite":            {eduID, eduID, eduID, eduID},
	} {
		_, r := wrap(t, spec)
		var got [4]uint32
		for i := range got {
			got[i] = r.Read32(regID)
		}
		if got != want {
			t.Errorf("%s: ID reads %#x, want %#x", spec, got, want)
		}
		if v := r.Read32(regLive); strings.Contains(spec, "gone") != (v == 0xffffffff) {
			t.Errorf("%s: another register reads %#x", spec, v)
		}
	}
}

func TestLostWrite(t *testing.T) {
	d, r := wrap(t, "LIVE#3:lostwrite+cfg+0x4#1:lostwrite")
	r.Write32(regLive, 1)
	a := r.Read32(regLive)
	r.Write32(regLive, 2)
	b := r.Read32(regLive)
	r.Write32(regLive, 3)
	if c := r.Read32(regLive); a != ^uint32(1) || b != ^uint32(1) || c != ^uint32(3) {
		t.Errorf("LIVE reads %#x, %#x, %#x, want %#x, the same, %#x", a, b, c, ^uint32(1), ^uint32(3))
	}
	cfg := d.Config()
	cfg.Write16(pci.CfgCommand, uint16(pci.CmdMem|pci.CmdMaster))
	if v := pci.Command(cfg.Read16(pci.CfgCommand)); v&pci.CmdMaster != 0 {
		t.Errorf("Command = %s after a lost write, want no Master", v)
	}
}

func TestDeny(t *testing.T) {
	d, _ := wrap(t, "Region#2:deny+Alloc#1:deny+Map#1:deny+EnableIRQs#1:deny+DisableIRQs#1:deny+Reset#1:deny")
	_, region := d.Region(0)
	_, alloc := d.DMA().Alloc(bus.DMARequest{Size: 4096})
	_, mapped := d.DMA().Map(make([]byte, 4096), bus.DMARequest{Size: 4096})
	_, enable := d.EnableIRQs(bus.MSI, 1)
	for what, err := range map[string]error{"Region": region, "Alloc": alloc, "Map": mapped, "EnableIRQs": enable, "DisableIRQs": d.DisableIRQs(), "Reset": d.Reset(t.Context())} {
		if !errors.Is(err, bus.ErrBusy) || !strings.HasPrefix(err.Error(), d.Address()+": ") || !strings.Contains(err.Error(), what+"#") {
			t.Errorf("%s = %v, want denied, with address and fault", what, err)
		}
	}
	if d.Err() != nil {
		t.Errorf("Err = %v, want nil", d.Err())
	}
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 4096, Mask: 1<<28 - 1})
	if err != nil {
		t.Fatalf("a second Alloc = %v", err)
	}
	if held := d.Held(); len(held) != 1 || !strings.Contains(held[0], "4096 bytes") {
		t.Errorf("Held = %q, want the memory", held)
	}
	m.Free()
	if held := d.Held(); len(held) != 0 {
		t.Errorf("Held = %q after Free, want nothing", held)
	}
}

// settle bounds the wait for what is certain to come; quiet is how long nothing more may.
const (
	settle = 20 * time.Second
	quiet  = 10 * time.Millisecond
)

// delivered is how many interrupts the wrapper has had from the device.
func delivered(d *fault.Device) (n int) {
	for _, a := range d.Log() {
		if a.Op == fault.Interrupt {
			n++
		}
	}
	return n
}

// fired raises an interrupt for each of want, and is how often the driver's vector fired by then, at first as often
// as is wanted. The next is not raised before the last one was delivered, whether lost or not, since several may
// be one delivery. How many Waits a driver needs for them is the scheduler's matter.
func fired(t *testing.T, d *fault.Device, r bus.Region, mode bus.IRQMode, want []int) []int {
	t.Helper()
	pci.SetCommand(d.Config(), pci.CmdMem|pci.CmdMaster, 0)
	qs, err := d.EnableIRQs(mode, 1)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	wait := func(patience time.Duration) bool {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		more, err := qs[0].Wait(ctx)
		n += int(more)
		r.Write32(regAck, 1)
		qs[0].Unmask()
		return err == nil
	}
	var got []int
	for i := range want {
		r.Write32(regRaise, 1)
		for until := time.Now().Add(settle); d.Err() == nil && delivered(d) <= i; time.Sleep(time.Millisecond) {
			if time.Now().After(until) {
				t.Fatalf("interrupt %d was not delivered within %v", i+1, settle)
			}
		}
		for n < want[i] && wait(settle) {
		}
		wait(quiet)
		got = append(got, n)
	}
	return got
}

func TestInterrupts(t *testing.T) {
	for _, c := range []struct {
		spec  string
		want  []int         // interrupts after the first, the second and the third that are raised
		least time.Duration // that it takes
	}{
		{"", []int{1, 2, 3}, 0},
		{"irq0#2:irq-lost", []int{1, 1, 2}, 0},
		{"irq0#3:irq-late:30", []int{1, 2, 3}, 30 * time.Millisecond},
		{"irq0#3:irq-late:60000", []int{1, 2, 2}, 0},
		{"irq0#1:irq-again", []int{2, 3, 4}, time.Millisecond},
		{"irq0#1:irq-storm:50", []int{50, 51, 52}, 49 * 50 * time.Microsecond},
		{"irq0#2:gone", []int{1, 1, 1}, 0},
		{"irq1#1:irq-lost", []int{1, 2, 3}, 0},
	} {
		for _, mode := range []bus.IRQMode{bus.MSI, bus.INTx} {
			d, r := wrap(t, c.spec)
			begun := time.Now()
			if got := fired(t, d, r, mode, c.want); !slices.Equal(got, c.want) {
				t.Errorf("%s, %s: %d interrupts, want %d", c.spec, mode, got, c.want)
			}
			if took := time.Since(begun); took < c.least {
				t.Errorf("%s, %s: all within %v, want %v at least", c.spec, mode, took, c.least)
			}
		}
	}
}

func TestGarbage(t *testing.T) {
	fill := func(spec string) (small, big, in []byte) {
		d, r := wrap(t, spec)
		ask := func(size int, dir bus.Direction) *bus.Memory {
			m, err := d.DMA().Alloc(bus.DMARequest{Size: size, Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(m.Free)
			return m
		}
		a, b, c := ask(4096, bus.Bidirectional), ask(1<<20, bus.FromDevice), ask(4096, bus.ToDevice)
		r.Read32(regID)
		return a.Bytes, b.Bytes, c.Bytes
	}
	small, big, in := fill("ID#1:garbage")
	if bytes.Equal(small, make([]byte, len(small))) {
		t.Error("the ring is as it was")
	}
	if !bytes.Equal(big, make([]byte, len(big))) || !bytes.Equal(in, make([]byte, len(in))) {
		t.Error("garbage beside a ring in what is none, or in what the device cannot write")
	}
	if again, _, _ := fill("ID#1:garbage"); !bytes.Equal(small, again) {
		t.Error("garbage is not the same the second time")
	}
	if other, _, _ := fill("ID#1:garbage:1"); bytes.Equal(small, other) {
		t.Error("garbage is the same with another seed")
	}
}

// Memory of a dead device stays the driver's, and its waiters end.
func TestGone(t *testing.T) {
	d, r := wrap(t, "LIVE#1:gone")
	pci.SetCommand(d.Config(), pci.CmdMem|pci.CmdMaster, 0)
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 4096})
	if err != nil {
		t.Fatal(err)
	}
	qs, err := d.EnableIRQs(bus.MSI, 1)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := qs[0].Wait(context.Background())
		ended <- err
	}()
	r.Write32(regLive, 1)
	<-d.Done()
	if err := <-ended; !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Wait = %v, want ErrClosed", err)
	}
	if err := d.Err(); !errors.Is(err, bus.ErrGone) || !strings.Contains(err.Error(), "LIVE#1:gone") {
		t.Errorf("Err = %v, want ErrGone and the fault", err)
	}
	if n := d.IRQVectors(bus.MSI); n != 0 {
		t.Errorf("IRQVectors = %d, want 0", n)
	}
	m.Bytes[0] = 1
	m.Free()
	if err := d.DisableIRQs(); err != nil {
		t.Errorf("DisableIRQs of a dead device = %v, want nil", err)
	}
	if held := d.Held(); len(held) != 0 {
		t.Errorf("Held = %q, want nothing", held)
	}
	if v := pci.Command(d.Unwrap().Config().Read16(pci.CfgCommand)); v&pci.CmdMaster != 0 {
		t.Errorf("Command inside = %s: the dead device could still write memory", v)
	}
}

func TestLogAndOutcomes(t *testing.T) {
	var hits []string
	_, in := openSim(t)
	plan, err := fault.Parse("ID#1:flip:4+ID#2:lostwrite+7:gone+99:ones")
	if err != nil {
		t.Fatal(err)
	}
	plan.Registers = eduTable
	plan.OnHit = func(f fault.Fault, a fault.Access) { hits = append(hits, fmt.Sprintf("%s at %d", f, a.N)) }
	d := fault.Wrap(in, plan)
	defer d.Close()
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	r.Read32(regID)
	r.Read32(regID)
	r.Write32(0x8, 5)
	d.Config().Read16(pci.CfgVendor)
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	r.Write32(regLive, 1)
	want := []string{
		"Region(0)", "read BAR0+0x0 (ID) = 0x10000fd [flip]", "read BAR0+0x0 (ID) = 0x10000ed", "write BAR0+0x8 = 0x5", "read cfg+0x0 = 0x1234",
		"Alloc(100)", "write BAR0+0x4 (LIVE) = 0x1 [gone]",
	}
	log := d.Log()
	for i := range max(len(log), len(want)) {
		if i >= len(log) || i >= len(want) || log[i].String() != want[i] || log[i].N != i+1 {
			t.Errorf("Log = %v, want %v", log, want)
			break
		}
	}
	wantOut := []string{
		"ID#1:flip:4: done at access 2, read BAR0+0x0 (ID)",
		"ID#2:lostwrite: nothing done, access 3 is read BAR0+0x0 (ID)",
		"7:gone: done at access 7, write BAR0+0x4 (LIVE)",
		"99:ones: never reached",
	}
	for i, o := range d.Outcomes() {
		if o.String() != wantOut[i] {
			t.Errorf("Outcomes[%d] = %s, want %s", i, o, wantOut[i])
		}
	}
	if got := fmt.Sprint(hits); got != "[ID#1:flip:4 at 2 7:gone at 7]" {
		t.Errorf("OnHit got %s", got)
	}
	if n := d.Accesses(); n != 7 {
		t.Errorf("Accesses = %d, want 7", n)
	}
}

// What is placed at an address counts as an access, is held, and is refused once the link is dead.
func TestPlace(t *testing.T) {
	d, _ := wrap(t, "Map#2:deny")
	b := make([]byte, 4096)
	p := d.DMA().(bus.Placer)
	release, err := p.Place(bus.Window{IOVA: 0x10000, Size: 4096, Bytes: b})
	if err != nil {
		t.Fatal(err)
	}
	if h := d.Held(); len(h) != 1 {
		t.Errorf("Held = %q, want the memory", h)
	}
	if _, err := p.Place(bus.Window{IOVA: 0x20000, Size: 4096, Bytes: b}); !errors.Is(err, bus.ErrBusy) {
		t.Errorf("the second Place = %v, want it denied", err)
	}
	release()
	if h := d.Held(); len(h) != 0 {
		t.Errorf("Held after release = %q", h)
	}
	d.Kill()
	if _, err := p.Place(bus.Window{IOVA: 0x20000, Size: 4096, Bytes: b}); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Place on a dead link = %v, want ErrGone", err)
	}
}

// Arm: a device in use gets other faults, accesses count anew, and what was to last is over.
func TestArm(t *testing.T) {
	d, r := wrap(t, "")
	good := r.Read32(0)
	arm := func(spec string) []fault.Outcome {
		p, err := fault.Parse(spec)
		if err != nil {
			t.Fatal(err)
		}
		return d.Arm(p.Faults)
	}
	if o := arm("2:ones+3:stuck:0+1:cfg-gone"); len(o) != 0 {
		t.Errorf("Arm = %v of no faults", o)
	}
	for i, want := range []uint32{good, 0xffffffff, good ^ 1, good ^ 1} {
		if v := r.Read32(0); v != want {
			t.Errorf("read %d gives %#x, want %#x", i+1, v, want)
		}
	}
	if d.Accesses() != 4 || len(d.Log()) != 4 {
		t.Errorf("%d accesses since Arm, %d in the log, want 4", d.Accesses(), len(d.Log()))
	}
	o := d.Arm(nil)
	if len(o) != 3 || !o[0].Made || !o[1].Made || !o[2].Made {
		t.Errorf("Arm = %v, want three that were made", o)
	}
	if v, c := r.Read32(0), d.Config().Read16(0); v != good || c == 0xffff {
		t.Errorf("disarmed, a read gives %#x, and of config space %#x", v, c)
	}
}
