package host

import (
	"bytes"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/profile"
)

// The lines are those of a 6.12 kernel with two CPUs: a blank follows each count, and one stands before
// the controller.
func TestInterruptLines(t *testing.T) {
	q, err := bus.NewIRQ(bus.MSIX, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	h := bus.Handle(q, "eth0-tx-0", func(uint64) {})
	defer h.Close()
	table := irqTable{cpus: 2, digits: minDigits, rows: []irqRow{
		{number: 101, chip: "PCI-MSIX-1000:00:03.0", hwirq: 1, flow: "edge", handler: h},
		{number: 102, chip: "IO-APIC", hwirq: 23, flow: "fasteoi", handler: h},
	}}
	var w bytes.Buffer
	table.header(&w)
	table.show(&w)
	want := "           CPU0       CPU1       \n" +
		"101:          0          0  PCI-MSIX-1000:00:03.0   1-edge      eth0-tx-0\n" +
		"102:          0          0   IO-APIC  23-fasteoi   eth0-tx-0\n"
	if w.String() != want {
		t.Errorf("/proc/interrupts shows\n%swant\n%s", w.String(), want)
	}
}

// The same device's lines in each profile, as its kernel prints them.
func TestInterruptProfiles(t *testing.T) {
	at := pci.Addr{Domain: 0, Bus: 3, Dev: 4, Fn: 1}
	for _, c := range []struct {
		profile string
		mode    bus.IRQMode
		n       int
		want    string
	}{
		{"6.12", bus.MSIX, 2, "101:          0  PCI-MSIX-0000:03:04.1   2-edge      eth0\n"},
		{"6.12", bus.MSI, 0, "101:          0  PCI-MSI-0000:03:04.1   0-edge      eth0\n"},
		{"6.12", bus.INTx, 23, "101:          0   IO-APIC  23-edge      eth0\n"},
		{"6.1", bus.MSIX, 2, "101:          0   PCI-MSI 1640450-edge      eth0\n"},
		{"6.1", bus.MSI, 0, "101:          0   PCI-MSI 1640448-edge      eth0\n"},
		{"6.1", bus.INTx, 23, "101:          0   IO-APIC  23-edge      eth0\n"},
	} {
		prof, err := profile.Find(c.profile)
		if err != nil {
			t.Fatal(err)
		}
		q, err := bus.NewIRQ(c.mode, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		h := bus.Handle(q, "eth0", func(uint64) {})
		row := irqRow{number: 101, flow: "edge", handler: h}
		row.chip, row.hwirq = controller(prof, c.mode, &pci.Function{Addr: at}, c.n)
		var w bytes.Buffer
		(&irqTable{cpus: 1, digits: minDigits, rows: []irqRow{row}}).show(&w)
		if w.String() != c.want {
			t.Errorf("%s %s: %q, want %q", c.profile, c.mode, w.String(), c.want)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestFlatten(t *testing.T) {
	a, b := usagef("a"), exitError(1)
	for _, err := range flatten(nil) {
		t.Errorf("flatten(nil) has %v", err)
	}
	if got := flatten(a); len(got) != 1 || got[0] != a {
		t.Errorf("flatten(a) = %v", got)
	}
	if got := flatten(joined{a, joined{b, a}}); len(got) != 3 {
		t.Errorf("flatten of a tree = %v, want three", got)
	}
}

// joined is what errors.Join makes, several deep.
type joined []error

func (j joined) Error() string   { return "several\nerrors" }
func (j joined) Unwrap() []error { return j }
