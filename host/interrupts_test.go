package host

import (
	"bytes"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

// The lines are those of a 6.12 kernel with two CPUs.
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
		"101:          0          0 PCI-MSIX-1000:00:03.0   1-edge      eth0-tx-0\n" +
		"102:          0          0  IO-APIC  23-fasteoi   eth0-tx-0\n"
	if w.String() != want {
		t.Errorf("/proc/interrupts shows\n%swant\n%s", w.String(), want)
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
