package scan

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// faulty is a master port of which config accesses fail.
type faulty struct {
	*fabric.Mport

	mu   sync.Mutex
	n    int                        // accesses so far
	fail func(n int) (err error)    // of which access n fails; nil: none
	lie  func(v *uint32, a access1) // changes what is read; nil: nothing
	did  func(a access1)            // is told of what was written; nil: nobody
}

// access1 is an access, as lie sees it.
type access1 struct {
	dest rapidio.DestID
	hop  uint8
	off  rapidio.Off
}

func (f *faulty) next() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	if f.fail == nil {
		return nil
	}
	return f.fail(f.n)
}

// lies changes what is read from now on.
func (f *faulty) lies(lie func(*uint32, access1)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lie = lie
}

// set starts counting from 0, with other faults.
func (f *faulty) set(fail func(int) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n, f.fail = 0, fail
}

func (f *faulty) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

func (f *faulty) LocalRead(ctx context.Context, off rapidio.Off, w rapidio.Width) (uint32, error) {
	if err := f.next(); err != nil {
		return 0, err
	}
	return f.Mport.LocalRead(ctx, off, w)
}

func (f *faulty) LocalWrite(ctx context.Context, off rapidio.Off, w rapidio.Width, v uint32) error {
	if err := f.next(); err != nil {
		return err
	}
	return f.Mport.LocalWrite(ctx, off, w, v)
}

func (f *faulty) Read(ctx context.Context, dest rapidio.DestID, hop uint8, off rapidio.Off, w rapidio.Width) (uint32, error) {
	if err := f.next(); err != nil {
		return 0, err
	}
	v, err := f.Mport.Read(ctx, dest, hop, off, w)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && f.lie != nil {
		f.lie(&v, access1{dest, hop, off})
	}
	return v, err
}

func (f *faulty) Write(ctx context.Context, dest rapidio.DestID, hop uint8, off rapidio.Off, w rapidio.Width, v uint32) error {
	if err := f.next(); err != nil {
		return err
	}
	err := f.Mport.Write(ctx, dest, hop, off, w, v)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && f.did != nil {
		f.did(access1{dest, hop, off})
	}
	return err
}

// smallTree is three switches, two of them linked twice, and four endpoints.
func smallTree() *topology {
	y := &topology{}
	y.sw("sw0", 4, "standard")
	y.sw("sw1", 4, "tsi500")
	y.sw("sw2", 3, "standard")
	y.pe("pe0", "pe1", "pe2", "pe3")
	y.link("pe0", "sw0:0")
	y.link("sw0:1", "sw1:0")
	y.link("sw0:2", "sw1:1")
	y.link("sw0:3", "sw2:2")
	y.link("pe1", "sw1:2")
	y.link("pe2", "sw2:0")
	y.link("pe3", "sw1:3")
	return y
}

// trial is the small tree with a host whose accesses can fail.
func trial(t *testing.T) (*fabric.Fabric, *peer, *faulty) {
	t.Helper()
	f := newFabric(t, smallTree().String())
	for _, n := range []string{"pe1", "pe2", "pe3"} {
		m, err := f.Mport(n)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
	}
	inner, err := f.Mport("pe0")
	if err != nil {
		t.Fatal(err)
	}
	ops := &faulty{Mport: inner}
	o := quick
	o.Settle = time.Hour // nothing but scans makes accesses
	return f, joinOps(t, inner, ops, 0, o), ops
}

// whole checks that a host knows all of the small tree, that its tables lead everywhere, and that nothing is locked.
func whole(t *testing.T, host *peer, what string) {
	t.Helper()
	if n := len(host.bus.Devices()); n != 6 {
		t.Fatalf("%s: devices %s, want 3 switches and 3 endpoints\n%s", what, host.seen(), host.log)
	}
	if got := host.endpoints(); got != "1 2 3" {
		t.Errorf("%s: IDs %s, want 1 2 3", what, got)
	}
	ctx := context.Background()
	for _, d := range host.bus.Devices() {
		if v, err := d.Read32(ctx, rapidio.RegComponentTag); err != nil || v != d.Tag {
			t.Errorf("%s: component tag of %s = %#x, %v", what, d.Name(), v, err)
		}
		if !d.IsSwitch() {
			if done, err := d.Read32(ctx, d.PHY+rapidio.PHYGenControl); err != nil || done != rapidio.GenMaster|rapidio.GenDiscovered {
				t.Errorf("%s: Port General Control of %s = %#x, %v", what, d.Name(), done, err)
			}
		}
	}
	unlocked(t, host)
}

// TestFaults lets access k of an enumeration fail, for each k: alone, without a response, and with all that follow. A scan ends, with an error or
// without; the next one that meets no faults gives the whole net. So does one of a net that was known before.
func TestFaults(t *testing.T) {
	refused := fmt.Errorf("injected: %w", rapidio.ErrResponse)
	lost := fmt.Errorf("injected: %w", rapidio.ErrNoReply)
	_, host, ops := trial(t)
	ops.set(nil)
	host.mustScan()
	total := ops.count()
	t.Logf("enumeration takes %d accesses", total)
	if total < 100 {
		t.Fatalf("only %d accesses", total)
	}
	for _, c := range []struct {
		name  string
		step  int  // from one k to the next
		again bool // the net is known when it happens
		fail  func(k, n int) error
	}{
		{"lost", 5, false, func(k, n int) error { return when(n == k, lost) }},
		{"refused", 1, false, func(k, n int) error { return when(n >= k && n < k+tries, refused) }},
		{"dead", 1, false, func(k, n int) error { return when(n >= k, refused) }},
		{"refused again", 3, true, func(k, n int) error { return when(n >= k && n < k+tries, refused) }},
		{"dead again", 3, true, func(k, n int) error { return when(n >= k, refused) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			for k := 1; k <= total; k += c.step {
				fault(t, c.again, k, func(n int) error { return c.fail(k, n) })
			}
		})
	}
}

func fault(t *testing.T, again bool, k int, fail func(int) error) {
	_, host, ops := trial(t)
	defer host.close()
	what := fmt.Sprintf("access %d", k)
	if again {
		host.mustScan()
	}
	ops.set(fail)
	err := host.tryScan()
	if err == nil && ops.count() >= k && fail(k+tries) != nil {
		t.Errorf("%s and all that follow: no error", what)
	}
	if err != nil && strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: an error of several lines: %v", what, err)
	}
	ops.set(nil)
	if err := host.tryScan(); err != nil {
		t.Errorf("%s: the scan after it: %v", what, err)
	}
	whole(t, host, what)
}

func when(is bool, err error) error {
	if is {
		return err
	}
	return nil
}

// TestFaultKeeps checks that what does not answer a single time, while it was known, stays what it was where only its response was lost.
func TestFaultKeeps(t *testing.T) {
	_, host, ops := trial(t)
	host.mustScan()
	before := host.bus.Devices()
	ops.set(func(n int) error { return when(n%5 == 0, rapidio.ErrNoReply) })
	host.mustScan()
	ops.set(nil)
	for i, d := range host.bus.Devices() {
		if d != before[i] {
			t.Errorf("with one of five responses lost, %s became another device", d.Name())
		}
	}
	whole(t, host, "with one of five responses lost")
}

// TestLiar has a switch that claims many ports, with a link at each, and always a new device behind.
func TestLiar(t *testing.T) {
	f := newFabric(t, star(2, "standard").String())
	inner, err := f.Mport("pe0")
	if err != nil {
		t.Fatal(err)
	}
	liar := &lies{regs: map[rapidio.Off]uint32{}}
	ops := &lyingPort{Mport: inner, lies: liar}
	host := joinOps(t, inner, ops, 0, quick)
	err = host.tryScan()
	n := liar.n.Load()
	t.Logf("%v after %d accesses, %d devices", err, n, len(host.bus.Devices()))
	if n > 4*smallBudget {
		t.Errorf("%d accesses, want a bounded number", n)
	}
	if log := host.log.String(); strings.Count(log, "WARN") == 0 || strings.Count(log, "WARN") > maxSaid {
		t.Errorf("%d warnings:\n%.2000s", strings.Count(log, "WARN"), log)
	}
}

// lies are registers of no device: all that is read says "a switch with 255 ports, all linked", free, new.
type lies struct {
	n    atomic.Int32 // accesses; the scanner goes on by itself when Scan is over
	regs map[rapidio.Off]uint32
}

type lyingPort struct {
	*fabric.Mport
	*lies
}

func (l *lyingPort) Read(_ context.Context, _ rapidio.DestID, _ uint8, off rapidio.Off, _ rapidio.Width) (uint32, error) {
	l.n.Add(1)
	switch off {
	case rapidio.RegDeviceID:
		return 0x00020001, nil
	case rapidio.RegAsmInfo:
		return 0x100, nil
	case rapidio.RegPEF:
		return uint32(rapidio.PEFSwitch | rapidio.PEFStdRoute | rapidio.PEFExtValid), nil
	case rapidio.RegSwitchPort:
		return 0xff00, nil
	case 0x100:
		return rapidio.EFSerialSwitchRec, nil
	case rapidio.RegHostLock:
		v, ok := l.regs[off]
		delete(l.regs, off) // the next device is another one
		if !ok {
			return rapidio.LockFree, nil
		}
		return v, nil
	case rapidio.RegComponentTag:
		v := l.regs[off]
		delete(l.regs, off)
		return v, nil
	}
	return rapidio.PortOK | rapidio.PortInputEn | rapidio.PortOutputEn, nil
}

func (l *lyingPort) Write(_ context.Context, _ rapidio.DestID, _ uint8, off rapidio.Off, _ rapidio.Width, v uint32) error {
	l.n.Add(1)
	l.regs[off] = v
	return nil
}

// TestStubborn checks that registers that do not hold or make no sense do not hang an enumeration.
func TestStubborn(t *testing.T) {
	for _, c := range []struct {
		name string
		lie  func(v *uint32, a access1)
		want string
	}{
		{"lock", func(v *uint32, a access1) {
			if a.off == rapidio.RegHostLock {
				*v = rapidio.LockFree
			}
		}, "the lock register does not take an ID"},
		{"tag", func(v *uint32, a access1) {
			if a.off == rapidio.RegComponentTag {
				*v = 0
			}
		}, "cannot be told from others"},
		{"no ports", func(v *uint32, a access1) {
			if a.off == rapidio.RegSwitchPort {
				*v = 0
			}
		}, "ports"},
		{"port", func(v *uint32, a access1) {
			if a.off == rapidio.RegSwitchPort {
				*v |= 0xff
			}
		}, "ports that was reached by its port 255"},
		{"identity", func(v *uint32, a access1) {
			if a.off == rapidio.RegDeviceID {
				*v = 0xffffffff
			}
		}, "which nobody has"},
		{"tables", func(v *uint32, a access1) {
			if a.off == rapidio.RegPEF {
				*v &^= uint32(rapidio.PEFStdRoute)
			}
		}, "no standard routing tables"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, host, ops := trial(t)
			ops.lies(c.lie)
			if err := host.tryScan(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Scan = %v, want %q", err, c.want)
			}
			ops.lies(nil)
			host.mustScan()
			whole(t, host, "after "+c.name)
		})
	}
}
