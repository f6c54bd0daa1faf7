package bench_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"testing"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/aer"
	"github.com/ring3dev/ring3/drivers/portbus/bwctrl"
	"github.com/ring3dev/ring3/drivers/portbus/dpc"
	"github.com/ring3dev/ring3/drivers/portbus/pciehp"
	"github.com/ring3dev/ring3/drivers/portbus/pme"
	"github.com/ring3dev/ring3/drivers/portbus/vc"
	"github.com/ring3dev/ring3/host"
	"github.com/ring3dev/ring3/internal/bench"
)

// measured runs `ring3 bench` as short as it can be, and gives its rows.
func measured(t *testing.T, only string) (rows []bench.Row) {
	t.Helper()
	p := host.Program{
		Drivers:  []*pci.Driver{e1000.Driver},
		Services: []*portbus.ServiceDriver{&pme.Driver, &aer.Driver, pciehp.Driver(pciehp.Options{}), &dpc.Driver, &bwctrl.Driver, &vc.Driver},
		Bench:    bench.Command,
	}
	var out, errs bytes.Buffer
	if code := p.Run(t.Context(), []string{"bench", "--json", "--pairs", "1", "--time", "1ms", "--only", only}, nil, &out, &errs); code != 0 {
		t.Fatalf("bench --only %q: exit status %d: %s", only, code, errs.String())
	}
	for d := json.NewDecoder(&out); ; {
		var r bench.Row
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			return rows
		} else if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, r)
	}
}

// TestPortRows: each row of port services is measured, also in its shortest form.
func TestPortRows(t *testing.T) {
	for _, tt := range []struct {
		name, only string
		qemu       bool
		want       []string // besides those of quantiles
	}{
		{"irq", "^port-irq .* sim", false, []string{"AER sim", "PME sim", "HP sim", "BW sim", "DPC sim", "DPC sim released"}},
		{"irq on QEMU", "^port-irq (AER qemu|monitor)", true, []string{"AER qemu", "AER qemu recovered", "monitor alone"}},
		{"plug", "^plug sim", false, []string{"sim noticed", "sim link", "sim enumerated", "sim driver", "sim first frame"}},
		{"plug on QEMU", "^plug qemu", true, []string{"qemu noticed", "qemu link", "qemu enumerated", "qemu driver", "qemu first frame"}},
		{"config", "^config sim", false, []string{"sim read32", "sim read32 trace", "sim read32 fault", "sim read32 aerinject", "sim write16", "sim write16 trace", "sim write16 fault", "sim write16 aerinject"}},
		{"config on QEMU", "^config qemu", true, []string{"qemu read32", "qemu read32 trace", "qemu write16", "qemu write16 aerinject"}},
		{"enumeration", "^enum sim", false, []string{"sim functions=1", "sim functions=32", "sim functions=256", "sim functions=256 accesses", "sim 256th behind its port", "sim 256th anywhere"}},
		{"enumeration on QEMU", "^enum qemu functions=(1|32)$", true, []string{"qemu functions=1", "qemu functions=32"}}, // 256 take it half a minute
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := exec.LookPath(qemu.Binary); tt.qemu && err != nil {
				t.Skip(err)
			}
			bustest.NoLeaks(t)
			rows := measured(t, tt.only)
			for _, name := range tt.want {
				i := slices.IndexFunc(rows, func(r bench.Row) bool { return r.Case == name || r.Case == name+" p50" })
				if i < 0 {
					t.Errorf("bench --only %q: no row %s", tt.only, name)
				} else if rows[i].Value <= 0 {
					t.Errorf("row %s = %g %s, want more than 0", name, rows[i].Value, rows[i].Unit)
				}
			}
		})
	}
}
