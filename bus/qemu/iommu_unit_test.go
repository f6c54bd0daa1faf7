package qemu

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/iova"
)

// translate walks the tables as the IOMMU does.
func translate(ram []byte, top, iova uint64) (phys, perm uint64) {
	perm = pteRead | pteWrite
	for level := levels; ; level-- {
		e := binary.LittleEndian.Uint64(ram[top+8*uint64(index(iova, level)):])
		if perm &= e; perm == 0 {
			return 0, 0
		}
		at := e &^ 0xfff
		if level == 1 || e&pteLarge != 0 {
			size := uint64(pageSize) << (9 * (level - 1))
			return at + iova&(size-1), perm
		}
		top = at
	}
}

// testRAM is RAM without a machine.
func testRAM(t *testing.T, size int) *ram {
	t.Helper()
	f, err := memfd("test", int64(size))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := newRAM(int(f.Fd()), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.close() })
	return r
}

// TestTables maps and unmaps at random and compares with what a walk finds.
func TestTables(t *testing.T) {
	r := testRAM(t, 64<<20)
	pool := tables{ram: r}
	top, err := pool.take()
	if err != nil {
		t.Fatal(err)
	}
	d := &domain{id: 2, tables: &pool, large: true, top: &table{at: top}}
	type piece struct{ iova, phys, size, perm uint64 }
	var live []piece
	addrs := newIOVAs()
	rnd := rand.New(rand.NewPCG(3, 4))
	check := func(p piece, mapped bool) {
		t.Helper()
		for _, off := range []uint64{0, 1, pageSize, p.size / 2, p.size - 1} {
			if off >= p.size {
				continue
			}
			phys, perm := translate(r.bytes, top, p.iova+off)
			if mapped && (phys != p.phys+off || perm != p.perm) || !mapped && perm != 0 {
				t.Fatalf("%#x+%#x leads to %#x, permission %d, mapped %v, want %#x, %d", p.iova, off, phys, perm, mapped, p.phys+off, p.perm)
			}
		}
		for _, out := range []uint64{p.iova - 1, p.iova + p.size} {
			if phys, perm := translate(r.bytes, top, out); perm != 0 && phys == p.phys+(out-p.iova) {
				t.Fatalf("%#x outside %#x is mapped too", out, p.iova)
			}
		}
	}
	for range 3000 {
		if len(live) > 20 || len(live) > 0 && rnd.IntN(2) == 0 {
			i := rnd.IntN(len(live))
			p := live[i]
			check(p, true)
			for _, at := range d.leave(p.iova, p.size) {
				pool.give(at)
			}
			check(p, false)
			addrs.Put(iova.Span{Base: p.iova, End: p.iova + p.size + pageSize})
			live = append(live[:i], live[i+1:]...)
			continue
		}
		q := bus.DMARequest{Size: 1 + rnd.IntN(100<<10)}
		p := piece{perm: 1 + rnd.Uint64N(3), phys: rnd.Uint64N(1<<20) << 12}
		switch rnd.IntN(3) {
		case 0:
			q.Size, p.phys = 1+rnd.IntN(9<<20), p.phys&^(largePage-1)
		case 1:
			q.Mask = 1<<28 - 1
		}
		v, ok := takeIOVA(addrs, q, p.phys)
		if !ok {
			t.Fatalf("take(%+v) found nothing", q)
		}
		p.iova, p.size = v.Base, v.Size()-pageSize
		if err := d.enter(p.iova, p.phys, p.size, p.perm, nil); err != nil {
			t.Fatal(err)
		}
		check(p, true)
		live = append(live, p)
	}
	for _, p := range live {
		for _, at := range d.leave(p.iova, p.size) {
			pool.give(at)
		}
		addrs.Put(iova.Span{Base: p.iova, End: p.iova + p.size + pageSize})
	}
	if d.top.used != 0 || len(pool.free) != len(pool.chunks)*chunkPages-1 {
		t.Errorf("after unmapping all: %d entries, %d of %d tables free, want 0 and all but the top", d.top.used, len(pool.free), len(pool.chunks)*chunkPages)
	}
	if f := addrs.Free(); len(f) != 2 {
		t.Errorf("free addresses after giving all back = %v, want two spans", f)
	}
	pool.close()
	if r.inUse != 0 {
		t.Errorf("%d pieces of RAM in use after close, want 0", r.inUse)
	}
}

// TestTablesFull runs out of RAM for tables half way: nothing stays mapped.
func TestTablesFull(t *testing.T) {
	r := testRAM(t, lowRAM+chunkPages*pageSize)
	pool := tables{ram: r}
	top, err := pool.take()
	if err != nil {
		t.Fatal(err)
	}
	d := &domain{id: 2, tables: &pool, top: &table{at: top}}
	const size = 2 * chunkPages * largePage // needs a table for each 2 MiB
	told := 0
	if err := d.enter(1<<32, 0, size, pteRead, func() error { told++; return nil }); !errors.Is(err, unix.ENOMEM) || told != 1 {
		t.Errorf("enter without RAM for tables = %v, want ENOMEM", err)
	}
	if d.top.used != 0 || len(pool.free) != chunkPages-1 {
		t.Errorf("after a failed enter: %d entries, %d tables free, want 0 and %d", d.top.used, len(pool.free), chunkPages-1)
	}
	if err := d.enter(1<<32, 0, 8*pageSize, pteRead, nil); err != nil {
		t.Errorf("enter after one that failed = %v", err)
	}
}

// TestIOVAs checks what is the machine's own of the addresses: the pool has a test of its own.
func TestIOVAs(t *testing.T) {
	addrs := newIOVAs()
	const phys = 64 << 20
	for _, mask := range []uint64{0, 1<<32 - 1, 1<<28 - 1} {
		v, ok := takeIOVA(addrs, bus.DMARequest{Size: 2 * largePage, Mask: mask}, phys)
		if !ok || v.Base%largePage != 0 || v.Base == phys || v.Base < lowRAM || v.Base < 1<<32 && v.End > ecamBase || v.End > 1<<39 {
			t.Errorf("takeIOVA below %#x = %#x to %#x, %v", mask, v.Base, v.End, ok)
		}
	}
}

// TestIOMMUMissing starts QEMUs that have no IOMMU, or another one.
func TestIOMMUMissing(t *testing.T) {
	without := filepath.Join(t.TempDir(), "qemu")
	script := "#!/bin/sh\necho \"qemu-system-x86_64: -device intel-iommu,intremap=off: 'intel-iommu' is not a valid device model name\" >&2\nexit 1\n"
	if err := os.WriteFile(without, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), Config{Binary: without, Devices: []DeviceSpec{{Name: "d", Model: "edu", IOMMU: true}}})
	if err == nil || !strings.Contains(err.Error(), "no usable IOMMU") || !strings.Contains(err.Error(), "leave the option iommu out") || strings.Contains(err.Error(), "\n") {
		t.Errorf("Start with a QEMU without intel-iommu = %v, want one line with the remedy", err)
	}
	for _, regs := range []map[string]string{
		{},
		{"readl 0xfed90000": "0xffffffff"},
		{"readl 0xfed90000": "0x10"}, // without capabilities
	} {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { // answers reads, one at a time
			defer close(ended)
			b := make([]byte, 256)
			for {
				n, err := unix.Read(p[1], b)
				if n <= 0 || err != nil {
					return
				}
				v := regs[strings.TrimSpace(string(b[:n]))]
				if v == "" {
					v = "0x0"
				}
				_, _ = unix.Write(p[1], []byte("OK "+v+"\n"))
			}
		}()
		u := &iommu{m: &Machine{qt: newQtest(p[0], nil, func(err error) { t.Error(err) })}}
		if err := u.identify(); !errors.Is(err, bus.ErrNotSupported) || strings.Contains(err.Error(), "\n") {
			t.Errorf("identify where registers read %v = %v, want ErrNotSupported", regs, err)
		}
		u.m.qt.close()
		<-ended
		unix.Close(p[1])
	}
}
