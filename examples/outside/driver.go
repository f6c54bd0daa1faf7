package testdev

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"sync"
	"syscall"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/sysfs"
)

// Driver serves QEMU's pci-testdev. The instance is a *Device.
var Driver = &pci.Driver{
	Name: "testdev",
	IDs:  []pci.ID{{Vendor: 0x1b36, Device: 0x0005}},
	// The version of ring3's driver interface that this was written for, as a literal: a ring3
	// with another one then says so, instead of failing in some other way.
	API:       1,
	Options:   map[string]string{"writes": fmt.Sprintf("writes of each test, 1 to %d; %d unless given", maxWrites, defaultWrites)},
	Registers: func(pci.FunctionID) []bus.Register { return registers() },
	Probe: func(_ context.Context, dev bus.Device, env pci.Env) (pci.Instance, error) {
		return open(dev, env)
	},
}

const (
	defaultWrites = 16
	maxWrites     = 10000
)

// Device is a pci-testdev in service. Safe for concurrent use.
type Device struct {
	dev     bus.Device
	regions []bus.Region

	mu      sync.Mutex // guards what follows, and the device: one test at a time
	closed  bool
	writes  int
	results []Result
}

// Result is what became of a test.
type Result struct {
	Kind    bus.RegionKind // the region it ran in
	Number  int
	Name    string // the device's word for it
	Writes  int
	Counted uint32 // of the writes, by the device
}

func (r Result) String() string {
	return fmt.Sprintf("%-3s %d %-24s %d of %d counted", r.Kind, r.Number, r.Name, r.Counted, r.Writes)
}

// open brings a device up.
func open(dev bus.Device, env pci.Env) (*Device, error) {
	d := &Device{dev: dev}
	writes, err := parseWrites(env.Options["writes"])
	if err != nil {
		return nil, d.errorf("option writes=%s: want 1 to %d: %w", env.Options["writes"], maxWrites, pci.ErrOption)
	}
	for _, want := range []struct {
		index int
		kind  bus.RegionKind
	}{{regionMem, bus.RegionMem}, {regionIO, bus.RegionIO}} {
		r, err := dev.Region(want.index)
		if err != nil {
			return nil, d.errorf("registers: %w", err)
		}
		if i := r.Info(); i.Kind != want.kind || i.Size < regSpace {
			return nil, d.errorf("registers: region %d is %s, %#x bytes, want %s, at least %#x: %w", want.index, i.Kind, i.Size, want.kind, regSpace, bus.ErrProtocol)
		}
		d.regions = append(d.regions, r)
	}
	pci.SetCommand(dev.Config(), pci.CmdMem|pci.CmdIO, 0)
	if err := d.Run(writes); err != nil {
		return nil, err
	}
	env.Log.Info(fmt.Sprintf("%d tests", len(d.results)))
	return d, nil
}

// parseWrites reads a number of writes; "" is the default.
func parseWrites(s string) (int, error) {
	if s == "" {
		return defaultWrites, nil
	}
	n, err := strconv.Atoi(s)
	if err == nil && (n < 1 || n > maxWrites) {
		err = strconv.ErrRange
	}
	return n, err
}

func (d *Device) errorf(format string, args ...any) error {
	return fmt.Errorf(d.dev.Address()+" testdev: "+format, args...)
}

// Run runs all tests with this many writes each.
func (d *Device) Run(writes int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return d.errorf("running the tests: %w", bus.ErrClosed)
	}
	var results []Result
	for _, r := range d.regions {
		n := 0
		for ; n < maxTests; n++ {
			res, ok, err := d.test(r, n, writes)
			if err != nil {
				return d.errorf("test %d in %s: %w", n, r.Info().Kind, err)
			}
			if !ok {
				break
			}
			results = append(results, res)
		}
		if n == 0 {
			return d.errorf("tests in %s: WIDTH of test 0 says that there are none: %w", r.Info().Kind, bus.ErrProtocol)
		}
	}
	// A device that died read as all-ones, which is no result.
	if err := d.dev.Err(); err != nil {
		return d.errorf("running the tests: %w", err)
	}
	d.writes, d.results = writes, results
	return nil
}

// test runs one test. ok is false where the region has none of that number.
func (d *Device) test(r bus.Region, number, writes int) (res Result, ok bool, err error) {
	r.Write8(regTest, uint8(number))
	defer r.Write8(regTest, noTest)
	// Each is read once: what the device says is checked, and then that is used.
	width, off, data := r.Read8(regWidth), bus.Off(r.Read32(regOffset)), r.Read32(regData)
	var write func()
	switch width {
	case 1:
		write = func() { r.Write8(off, uint8(data)) }
	case 2:
		write = func() { r.Write16(off, uint16(data)) }
	case 4:
		write = func() { r.Write32(off, data) }
	default:
		return res, false, d.dev.Err()
	}
	if size := bus.Off(r.Info().Size); off < regSpace || off > size-bus.Off(width) || off%bus.Off(width) != 0 {
		return res, false, fmt.Errorf("OFFSET is %#x, want it aligned to %d, from %#x to the region's end at %#x: %w", off, width, regSpace, size, bus.ErrProtocol)
	}
	for range writes {
		write()
	}
	res = Result{Kind: r.Info().Kind, Number: number, Name: name(r), Writes: writes, Counted: r.Read32(regCount)}
	if res.Counted > uint32(writes) {
		return res, false, fmt.Errorf("COUNT is %d after %d writes: %w", res.Counted, writes, bus.ErrProtocol)
	}
	return res, true, nil
}

// name reads a test's name, up to what is no printable letter.
func name(r bus.Region) string {
	var b []byte
	for i := range bus.Off(maxName) {
		c := r.Read8(regName + i)
		if c <= ' ' || c >= 0x7f {
			break
		}
		b = append(b, c)
	}
	return string(b)
}

// Results is what the last Run found.
func (d *Device) Results() []Result {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]Result(nil), d.results...)
}

// Attrs are the device's own files in /sys.
func (d *Device) Attrs() map[string]*sysfs.File {
	tests := func(w *bytes.Buffer) error {
		for _, r := range d.Results() {
			fmt.Fprintln(w, r)
		}
		return nil
	}
	show := func(w *bytes.Buffer) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		fmt.Fprintln(w, d.writes)
		return nil
	}
	store := func(_ context.Context, p []byte) (int, error) {
		n, err := sysfs.ParseUint(string(p), maxWrites)
		if err == nil && n == 0 {
			err = syscall.ERANGE
		}
		if err == nil {
			err = d.Run(int(n))
		}
		if err != nil {
			return 0, err
		}
		return len(p), nil
	}
	return map[string]*sysfs.File{
		"tests":  sysfs.Attr(0o444, tests, nil),
		"writes": sysfs.Attr(0o644, show, store),
	}
}

// Close takes the device out of service.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return nil
}
