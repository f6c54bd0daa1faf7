package host

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/cpuset"
	"github.com/ring3dev/ring3/procfs"
)

// irqTable numbers the interrupt handlers of a system as a kernel would: /proc/interrupts
// and /proc/irq.
type irqTable struct {
	rows []irqRow
	cpus int // columns
}

// irqRow is one interrupt number. Functions that share a line share a number.
type irqRow struct {
	number   int
	chip     string // "PCI-MSIX-1000:00:03.0", "IO-APIC"
	hwirq    int
	flow     string // "edge", "fasteoi"
	handlers []*bus.Handler
}

// irqRoom rounds up where our numbers start, so that the kernel may still get a few.
const irqRoom = 100

// newIRQTable numbers the handlers of all bound devices, in order.
func newIRQTable(bound []*boundDevice) (*irqTable, error) {
	online, err := cpuset.Online()
	if err != nil {
		return nil, fmt.Errorf("numbering interrupts: %w", err)
	}
	t := &irqTable{cpus: cpuset.Max(online) + 1}
	next := (kernelIRQs()/irqRoom + 1) * irqRoom
	for _, b := range bound {
		u, ok := b.inst.(pci.IRQUser)
		if !ok {
			continue
		}
		for _, h := range u.IRQHandlers() {
			q := h.IRQ()
			row := irqRow{number: next, hwirq: q.Vector(), flow: "edge", handlers: []*bus.Handler{h}}
			switch q.Mode() {
			case bus.MSIX:
				row.chip = "PCI-MSIX-" + b.dev.Address()
			case bus.MSI:
				row.chip = "PCI-MSI-" + b.dev.Address()
			case bus.INTx:
				row.chip, row.flow = "IO-APIC", "fasteoi"
				row.hwirq = int(b.dev.Config().Read8(pci.CfgIRQPin)) + 15
			}
			t.rows = append(t.rows, row)
			next++
		}
	}
	return t, nil
}

// numberOf is the number that sysfs' file irq shows for a device: its first one, or 0.
func (t *irqTable) numberOf(b *boundDevice) int {
	u, ok := b.inst.(pci.IRQUser)
	if !ok {
		return 0
	}
	for _, h := range u.IRQHandlers() {
		for _, r := range t.rows {
			for _, have := range r.handlers {
				if have == h {
					return r.number
				}
			}
		}
	}
	return 0
}

// describe is the interrupts of a device for `ring3 ls`: "MSI-X 3".
func (t *irqTable) describe(b *boundDevice) string {
	u, ok := b.inst.(pci.IRQUser)
	if !ok || len(u.IRQHandlers()) == 0 {
		return ""
	}
	h := u.IRQHandlers()
	return fmt.Sprintf("%s %d", h[0].IRQ().Mode(), len(h))
}

// kernelIRQs is the kernel's highest interrupt number.
func kernelIRQs() int {
	highest := 0
	names, _ := os.ReadDir("/proc/irq")
	for _, e := range names {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			highest = max(highest, n)
		}
	}
	b, _ := os.ReadFile("/proc/interrupts")
	for _, m := range interruptLine.FindAllSubmatch(b, -1) {
		if n, err := strconv.Atoi(string(m[1])); err == nil {
			highest = max(highest, n)
		}
	}
	return highest
}

var interruptLine = regexp.MustCompile(`(?m)^ *([0-9]{1,6}):`)

// header is the first line of /proc/interrupts.
func (t *irqTable) header(w *bytes.Buffer) {
	fmt.Fprintf(w, "%*s", irqDigits+8, "")
	for c := range t.cpus {
		fmt.Fprintf(w, "CPU%-8d", c)
	}
	w.WriteByte('\n')
}

// irqDigits is the width of an interrupt number, for fewer than 1000 of them.
const irqDigits = 3

// show appends our lines, in the kernel's format (kernel/irq/proc.c of 6.12).
func (t *irqTable) show(w *bytes.Buffer) {
	for _, r := range t.rows {
		fmt.Fprintf(w, "%*d:", irqDigits, r.number)
		counts := make([]uint64, t.cpus)
		var names []string
		for _, h := range r.handlers {
			for i, n := range h.Counts() {
				if i < len(counts) {
					counts[i] += n
				}
			}
			names = append(names, h.Name())
		}
		for _, n := range counts {
			fmt.Fprintf(w, " %10d", n)
		}
		fmt.Fprintf(w, " %8s %*d-%-8s  %s\n", r.chip, irqDigits, r.hwirq, r.flow, strings.Join(names, ", "))
	}
}

// own is /proc/interrupts of this system alone.
func (t *irqTable) own() *procfs.File {
	return procfs.New(0o444, func(w *bytes.Buffer) error {
		t.header(w)
		t.show(w)
		return nil
	}, nil)
}

// merged is the kernel's /proc/interrupts with our lines after it.
func (t *irqTable) merged() *procfs.File {
	return procfs.New(0o444, func(w *bytes.Buffer) error {
		b, err := os.ReadFile("/proc/interrupts")
		if err != nil {
			t.header(w)
		}
		w.Write(b)
		t.show(w)
		return nil
	}, nil)
}

// dir is /proc/irq: a directory a number.
func (t *irqTable) dir() *procfs.Dir {
	d := &procfs.Dir{}
	for _, r := range t.rows {
		n := d.MkdirAll(strconv.Itoa(r.number))
		n.Put("smp_affinity", t.affinity(r, cpuset.FormatMask, cpuset.ParseMask))
		n.Put("smp_affinity_list", t.affinity(r, cpuset.FormatList, cpuset.ParseList))
		n.Put("effective_affinity", t.affinity(r, cpuset.FormatMask, nil))
		n.Put("effective_affinity_list", t.affinity(r, cpuset.FormatList, nil))
		n.Put("node", procfs.New(0o444, func(w *bytes.Buffer) error {
			w.WriteString("0\n")
			return nil
		}, nil))
		for _, h := range r.handlers {
			n.Put(strings.ReplaceAll(h.Name(), "/", "!"), &procfs.Dir{})
		}
	}
	return d
}

// affinity is a file with the CPUs of a row's handlers, in one of the kernel's notations.
// Writing it moves them; parse nil makes it read-only.
func (t *irqTable) affinity(r irqRow, format func(unix.CPUSet, int) string, parse func(string) (unix.CPUSet, error)) *procfs.File {
	show := func(w *bytes.Buffer) error {
		set := r.handlers[0].Affinity()
		if set == nil {
			all, err := cpuset.Online()
			if err != nil {
				return err
			}
			set = &all
		}
		w.WriteString(format(*set, t.cpus))
		w.WriteByte('\n')
		return nil
	}
	if parse == nil {
		return procfs.New(0o444, show, nil)
	}
	return procfs.New(0o644, show, func(_ context.Context, p []byte) (int, error) {
		set, err := parse(string(p))
		if err != nil {
			return 0, err
		}
		for _, h := range r.handlers {
			if err := h.SetAffinity(&set); err != nil {
				return 0, err
			}
		}
		return len(p), nil
	})
}
