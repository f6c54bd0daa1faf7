package e1000

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// wrongOptions are values that no chip, or not this one, takes.
var wrongOptions = []struct {
	device     uint16
	key, value string
}{
	{device82574, "bus", "usb"}, {device82574, "bus", ""}, {device82574, "bus", "MSI"},
	{device82540, "bus", "msi"}, {device82540, "bus", "msix"}, {device82545, "bus", "msi"}, {device82545, "bus", "msix"},
	{device82574, "ring", "65"}, {device82574, "mac", "01:00:00:00:00:00"}, {device82540, "queues", "2"}, {device82574, "queues", "3"},
	{device82574, "itr", "2"}, {device82574, "itr", "99"}, {device82540, "itr", "100001"}, {device82574, "itr", "fast"}, {device82574, "itr", ""},
	{device82574, "weight", "0"}, {device82574, "weight", "65"}, {device82574, "weight", "-1"}, {device82574, "weight", "x"},
}

// TestWrongOptions: a wrong value is wrong usage, in one line that names it.
func TestWrongOptions(t *testing.T) {
	for _, c := range wrongOptions {
		_, err := Driver.Probe(context.Background(), newModel(c.device), env(map[string]string{c.key: c.value}))
		if !errors.Is(err, pci.ErrOption) || !strings.Contains(err.Error(), "option "+c.key+"="+c.value) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Probe of %#x with %s=%s = %v, want one line that wraps %v", c.device, c.key, c.value, err, pci.ErrOption)
		}
	}
}

// TestBusOption: the mode that was asked for, or an error; never another.
func TestBusOption(t *testing.T) {
	for _, c := range []struct {
		device uint16
		value  string
		want   bus.IRQMode
		err    error
	}{
		{device82574, "", bus.MSIX, nil}, {device82574, "msix", bus.MSIX, nil}, {device82574, "intx", bus.INTx, nil},
		{device82574, "msi", 0, bus.ErrNotSupported}, // the model has none
		{device82540, "", bus.INTx, nil}, {device82540, "intx", bus.INTx, nil}, {device82545, "intx", bus.INTx, nil},
	} {
		o := map[string]string{}
		if c.value != "" {
			o["bus"] = c.value
		}
		inst, err := Driver.Probe(context.Background(), newModel(c.device), env(o))
		if !errors.Is(err, c.err) {
			t.Errorf("Probe of %#x with bus=%s = %v, want %v", c.device, c.value, err, c.err)
		}
		if err != nil {
			continue
		}
		if got := inst.(*nic).irq.mode; got != c.want {
			t.Errorf("%#x with bus=%s interrupts by %s, want %s", c.device, c.value, got, c.want)
		}
		if err := inst.Close(); err != nil {
			t.Error(err)
		}
	}
}
