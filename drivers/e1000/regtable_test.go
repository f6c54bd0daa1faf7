package e1000

import (
	"encoding/binary"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// tableOf is the register table of a device ID.
func tableOf(t *testing.T, device uint16) []bus.Register {
	t.Helper()
	table := Driver.Registers(pci.FunctionID{Vendor: vendorIntel, Device: device})
	if len(table) == 0 {
		t.Fatalf("Registers of %#x is empty", device)
	}
	return table
}

// find is the register at an offset.
func find(table []bus.Register, off bus.Off) *bus.Register {
	for i := range table {
		if _, ok := table[i].Find(0, off); ok {
			return &table[i]
		}
	}
	return nil
}

// TestRegistersApart: no two registers of a chip's table share a byte or a name, and all lie in the
// region.
func TestRegistersApart(t *testing.T) {
	for name, id := range chips {
		owner, names := map[bus.Off]string{}, map[string]bool{}
		for _, r := range tableOf(t, id) {
			if names[r.Name] {
				t.Errorf("%s: %s stands twice in the table", name, r.Name)
			}
			names[r.Name] = true
			for i := range max(r.Count, 1) {
				at := r.At(i)
				if at%4 != 0 || at+4 > regSpace {
					t.Errorf("%s: %s at %#x", name, r.Label(i), at)
				}
				if other := owner[at]; other != "" {
					t.Errorf("%s: %s and %s are both at %#x", name, r.Label(i), other, at)
				}
				owner[at] = r.Label(i)
			}
		}
	}
	if got := Driver.Registers(pci.FunctionID{Vendor: vendorIntel, Device: 0x1234}); got != nil {
		t.Errorf("Registers of a foreign chip = %d entries, want nil", len(got))
	}
}

// TestRegistersComplete: every offset that regs.go names is in a table.
func TestRegistersComplete(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "regs.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ast.Inspect(f, func(node ast.Node) bool {
		v, ok := node.(*ast.ValueSpec)
		if !ok || len(v.Values) != 1 || !strings.HasPrefix(v.Names[0].Name, "reg") {
			return true
		}
		lit, ok := v.Values[0].(*ast.BasicLit)
		if !ok || lit.Kind != token.INT {
			return true
		}
		off, err := strconv.ParseUint(lit.Value, 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		n++
		if find(tableOf(t, device82574), bus.Off(off)) == nil && find(tableOf(t, device82540), bus.Off(off)) == nil {
			t.Errorf("%s (%s) is in no table", v.Names[0].Name, lit.Value)
		}
		return true
	})
	if n < 30 {
		t.Errorf("%d registers found in regs.go, want all", n)
	}
}

// recorder collects the offsets that a driver touches.
type recorder struct {
	modelRegion
	seen map[bus.Off]bool
}

func (r recorder) Read32(o bus.Off) uint32 {
	r.m.mu.Lock()
	r.seen[o] = true
	r.m.mu.Unlock()
	return r.modelRegion.Read32(o)
}

func (r recorder) Write32(o bus.Off, v uint32) {
	r.m.mu.Lock()
	r.seen[o] = true
	r.m.mu.Unlock()
	r.modelRegion.Write32(o, v)
}

// recorded is a model whose register accesses are collected.
type recorded struct {
	*model
	seen map[bus.Off]bool
}

func (m recorded) Region(int) (bus.Region, error) { return recorder{modelRegion{m.model}, m.seen}, nil }

// TestRegistersUsed: whatever the driver touches in its life has a name on that chip.
func TestRegistersUsed(t *testing.T) {
	for name, id := range chips {
		m := recorded{newModel(id), map[bus.Off]bool{}}
		o := map[string]string{"ring": "64"}
		if id == device82574 {
			o["queues"] = "2"
		}
		inst, err := Driver.Probe(t.Context(), m, env(o))
		if err != nil {
			t.Fatal(err)
		}
		life(t, m.model, inst.(*nic))
		if err := inst.Close(); err != nil {
			t.Error(err)
		}
		table := tableOf(t, id)
		for off := range m.seen {
			if find(table, off) == nil {
				t.Errorf("%s: register %#x is used and has no name", name, off)
			}
		}
		if len(m.seen) < 100 {
			t.Errorf("%s: %d registers seen, want all of a life", name, len(m.seen))
		}
	}
}

// TestRegistersAccess: what clears or commands when it is read is not for dumps, and the
// doorbells know their rings.
func TestRegistersAccess(t *testing.T) {
	for name, id := range chips {
		table := tableOf(t, id)
		for _, off := range []bus.Off{regICR, regICS, regIMC, regGPRC, regGORCH, regCRCERRS} {
			if r := find(table, off); r == nil || r.Access.Dumpable() {
				t.Errorf("%s: register %#x may be dumped", name, off)
			}
		}
		for _, off := range []bus.Off{regTDT(0), regRDT(0)} {
			r := find(table, off)
			if r == nil || r.Ring == nil || r.Ring.Desc == nil {
				t.Fatalf("%s: register %#x is no doorbell", name, off)
			}
			for _, want := range []struct {
				off  bus.Off
				name string
			}{{r.Ring.Low, "BAL"}, {r.Ring.High, "BAH"}, {r.Ring.Len, "LEN"}} {
				if got := find(table, want.off); got == nil || got.Name != r.Name[:2]+want.name {
					t.Errorf("%s: %s's ring is at %v, want %s%s", name, r.Name, got, r.Name[:2], want.name)
				}
			}
		}
		if got := find(table, regCTRL).Format(uint64(ctrlFD | ctrlSLU)); got != "FD|SLU" {
			t.Errorf("%s: CTRL = %s, want FD|SLU", name, got)
		}
		if r := find(table, regRAL(3)); r == nil || r.Label(3) != "RAL[3]" {
			t.Errorf("%s: RAL(3) is %v", name, r)
		}
	}
}

func TestDescribe(t *testing.T) {
	desc := func(a, b uint64) []byte {
		d := make([]byte, descSize)
		binary.LittleEndian.PutUint64(d, a)
		binary.LittleEndian.PutUint64(d[8:], b)
		return d
	}
	for _, c := range []struct{ got, want string }{
		{describeTx(desc(0x1000, uint64(txEOP|txIFCS|txRS)|60)), "0x1000+60 EOP|IFCS|RS"},
		{describeTx(desc(0x0e00|0x21<<16|32<<40|34<<32, 1<<29|1<<26|1<<24|1400<<48|54<<40|5000)), "context ip 0,14,33 tcp 34,32,0 mss 1400 hdr 54 pay 5000 TCP|TSE|DEXT"},
		{describeTx(desc(0x2000, 1<<29|1<<20|1<<24|1<<41|1<<40|200)), "data 0x2000+200 EOP|DEXT|IXSM|TXSM"},
		{describeTx(desc(0x2000, 1<<29|1<<20|1<<30|0x64<<48|200)), "data 0x2000+200 DEXT|VLE vlan 0x64"},
		{describeTx([]byte{1, 2}), "01 02"},
		{describeRx(desc(0x3000, 0)), "0x3000"}, {describeRx(desc(0x3000, 5)), "0x3000 0x5"}, {describeRx(nil), ""},
	} {
		if c.got != c.want {
			t.Errorf("a descriptor reads %q, want %q", c.got, c.want)
		}
	}
}
