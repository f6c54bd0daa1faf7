package host

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/cpuset"
	"github.com/ring3dev/ring3/internal/profile"
	"github.com/ring3dev/ring3/procfs"
)

// irqTable numbers the interrupt handlers of a system as a kernel would: /proc/interrupts
// and /proc/irq. Safe for concurrent use.
type irqTable struct {
	prof   *profile.Profile
	cpus   int // columns
	digits int // width of a number
	first  int // our first number
	procfs *procfs.Dir

	mu      sync.Mutex // guards what follows
	rows    []irqRow   // by number
	numbers map[irqKey]int
}

// irqKey is what keeps its number as long as its device stays: a vector.
type irqKey struct {
	device string
	vector int
}

// irqRow is one interrupt number.
type irqRow struct {
	owner   *boundDevice
	number  int
	chip    string // "PCI-MSIX-1000:00:03.0", "IO-APIC"
	hwirq   uint64
	flow    string // "edge", "fasteoi"
	handler *bus.Handler
}

// irqRoom rounds up where our numbers start, so that the kernel may still get a few.
const irqRoom = 100

// newIRQTable numbers handlers as the profile's kernel would, from first on; 0: where the kernel's end.
func newIRQTable(prof *profile.Profile, facts Facts, first int) (*irqTable, error) {
	online, err := cpuset.Online()
	if err != nil {
		return nil, fmt.Errorf("numbering interrupts: %w", err)
	}
	if first == 0 {
		first = firstIRQ()
	}
	return &irqTable{prof: prof, cpus: cpuset.Max(online) + 1, digits: facts.IRQDigits, first: first,
		procfs: &procfs.Dir{}, numbers: map[irqKey]int{}}, nil
}

// firstIRQ is the first number that leaves the kernel room.
func firstIRQ() int { return (kernelIRQs()/irqRoom + 1) * irqRoom }

// number is the number of a device's vector: the one that it has, or the lowest that is free.
func (t *irqTable) number(device string, vector int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := irqKey{device, vector}
	if n, ok := t.numbers[k]; ok {
		return n
	}
	taken := map[int]bool{}
	for _, n := range t.numbers {
		taken[n] = true
	}
	n := t.first
	for taken[n] {
		n++
	}
	t.numbers[k] = n
	return n
}

// add shows the handlers of a device that got its driver.
func (t *irqTable) add(b *boundDevice) {
	u, ok := b.inst.(pci.IRQUser)
	if !ok {
		return
	}
	for _, h := range u.IRQHandlers() {
		q := h.IRQ()
		n := q.Number()
		if n == 0 {
			n = t.number(b.spec.Name, q.Vector())
		}
		row := irqRow{owner: b, number: n, flow: "edge", handler: h}
		row.chip, row.hwirq = controller(t.prof, q.Mode(), b.fn, q.HWIRQ())
		if q.Mode() == bus.INTx {
			row.flow = "fasteoi"
		}
		t.mu.Lock()
		t.rows = append(t.rows, row)
		slices.SortStableFunc(t.rows, func(a, b irqRow) int { return cmp.Compare(a.number, b.number) })
		t.mu.Unlock()
		t.procfs.Put(strconv.Itoa(n), t.dirOf(row))
	}
}

// remove takes those of a device away that lost its driver.
func (t *irqTable) remove(b *boundDevice) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows = slices.DeleteFunc(t.rows, func(r irqRow) bool {
		mine := r.owner.spec.Name == b.spec.Name
		if mine {
			t.procfs.Remove(strconv.Itoa(r.number))
		}
		return mine
	})
}

// forget frees the numbers of a device that is gone.
func (t *irqTable) forget(b *boundDevice) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.numbers, func(k irqKey, _ int) bool { return k.device == b.spec.Name })
}

// snapshot is the rows as they are now.
func (t *irqTable) snapshot() []irqRow {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.rows)
}

// controller is what a profile's kernel calls the interrupt controller of a function's vector, and the number that the
// vector has there.
func controller(prof *profile.Profile, mode bus.IRQMode, f *pci.Function, n int) (name string, hwirq uint64) {
	if mode == bus.INTx {
		return "IO-APIC", uint64(n)
	}
	if f == nil { // platform-msi.c's
		return "platform-MSI", uint64(n)
	}
	a := f.Addr
	hwirq = prof.HWIRQ(a.Domain, uint16(a.Bus)<<8|uint16(a.Devfn()), n)
	switch {
	case !prof.MSIPerDevice:
		return "PCI-MSI", hwirq
	case mode == bus.MSIX:
		return "PCI-MSIX-" + a.String(), hwirq
	}
	return "PCI-MSI-" + a.String(), hwirq
}

// rowsOf are the rows of a device.
func (t *irqTable) rowsOf(b *boundDevice) []irqRow {
	var rows []irqRow
	for _, r := range t.snapshot() {
		if r.owner.spec.Name == b.spec.Name {
			rows = append(rows, r)
		}
	}
	return rows
}

// firstOf is the number that sysfs' file irq shows for a device, or 0.
func (t *irqTable) firstOf(b *boundDevice) int {
	for _, r := range t.rowsOf(b) {
		return r.number
	}
	return 0
}

// messages are the numbers of a device that are message-signalled.
func (t *irqTable) messages(b *boundDevice) map[int]bus.IRQMode {
	m := map[int]bus.IRQMode{}
	for _, r := range t.rowsOf(b) {
		if mode := r.handler.IRQ().Mode(); mode != bus.INTx {
			m[r.number] = mode
		}
	}
	return m
}

// describe is the interrupts of a device for `ring3 ls`: "MSI-X 3".
func (t *irqTable) describe(b *boundDevice) string {
	rows := t.rowsOf(b)
	if len(rows) == 0 {
		return ""
	}
	return fmt.Sprintf("%s %d", rows[0].handler.IRQ().Mode(), len(rows))
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
	fmt.Fprintf(w, "%*s", t.digits+8, "")
	for c := range t.cpus {
		fmt.Fprintf(w, "CPU%-8d", c)
	}
	w.WriteByte('\n')
}

// kernelDigits is the width that the kernel gives a number: 3, or more where it has 1000
// and more of them. Its header is indented by that and 8.
func kernelDigits() int {
	b, _ := os.ReadFile("/proc/interrupts")
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return max(minDigits, len(line)-len(bytes.TrimLeft(line, " "))-8)
}

const minDigits = 3

// show appends our lines, in the kernel's format (kernel/irq/proc.c of 6.1 and 6.12).
func (t *irqTable) show(w *bytes.Buffer) {
	for _, r := range t.snapshot() {
		if r.handler.Name() == "" {
			continue // nobody asked for it
		}
		fmt.Fprintf(w, "%*d:", t.digits, r.number)
		counts := r.handler.Counts()
		for i := range t.cpus {
			n := uint64(0)
			if i < len(counts) {
				n = counts[i]
			}
			fmt.Fprintf(w, " %10d", n)
		}
		fmt.Fprintf(w, "  %8s %*d-%-8s  %s\n", r.chip, t.digits, r.hwirq, r.flow, r.handler.Name())
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

// merged is the kernel's /proc/interrupts with our lines after it. Those of a kernel interface with one of our names
// are left out: who looks for that name, to move its interrupts, means ours.
func (t *irqTable) merged() *procfs.File {
	return procfs.New(0o444, func(w *bytes.Buffer) error {
		b, err := os.ReadFile("/proc/interrupts")
		if err != nil {
			t.header(w)
		}
		for line := range strings.Lines(string(b)) {
			if !t.hides(line) {
				w.WriteString(line)
			}
		}
		t.show(w)
		return nil
	}, nil)
}

// hides tells whether a line of the kernel's is of an interface with one of our names: "eth0", "eth0-rx-0".
func (t *irqTable) hides(line string) bool {
	for _, word := range strings.Fields(line) {
		word = strings.TrimSuffix(word, ",") // one of several that share a number
		for _, r := range t.snapshot() {
			if name := r.owner.spec.Name; r.owner.net != nil && (word == name || strings.HasPrefix(word, name+"-")) {
				return true
			}
		}
	}
	return false
}

// dir is /proc/irq: a directory a number.
func (t *irqTable) dir() *procfs.Dir { return t.procfs }

func (t *irqTable) dirOf(r irqRow) *procfs.Dir {
	n := &procfs.Dir{}
	n.Put("smp_affinity", t.affinity(r, cpuset.FormatMask, cpuset.ParseMask))
	n.Put("smp_affinity_list", t.affinity(r, cpuset.FormatList, cpuset.ParseList))
	n.Put("effective_affinity", t.affinity(r, cpuset.FormatMask, nil))
	n.Put("effective_affinity_list", t.affinity(r, cpuset.FormatList, nil))
	n.Put("node", procfs.New(0o444, func(w *bytes.Buffer) error {
		w.WriteString("0\n")
		return nil
	}, nil))
	for name := range strings.SplitSeq(r.handler.Name(), ", ") {
		if name != "" {
			n.Put(strings.ReplaceAll(name, "/", "!"), &procfs.Dir{})
		}
	}
	return n
}

// affinity is a file with the CPUs of a row's handler, in one of the kernel's notations.
// Writing it moves it; parse nil makes it read-only.
func (t *irqTable) affinity(r irqRow, format func(unix.CPUSet, int) string, parse func(string) (unix.CPUSet, error)) *procfs.File {
	show := func(w *bytes.Buffer) error {
		set := r.handler.Affinity()
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
		if err := r.handler.SetAffinity(&set); err != nil {
			return 0, err
		}
		return len(p), nil
	})
}
