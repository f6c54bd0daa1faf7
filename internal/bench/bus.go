package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
)

// Registers of QEMU's edu device that are used here (docs/specs/edu).
const (
	eduLive  bus.Off = 0x04
	eduRaise bus.Off = 0x60
	eduAck   bus.Off = 0x64
)

// edu starts a machine with an edu device.
func edu(ctx context.Context, o *Options) (*qemu.Machine, bus.Device, bus.Region, error) {
	m, err := qemu.Start(ctx, qemu.Config{Log: o.Log, Devices: []qemu.DeviceSpec{{Name: "edu0", Model: "edu"}}})
	if err != nil {
		return nil, nil, nil, err
	}
	d, err := m.Device("edu0")
	if err == nil {
		var r bus.Region
		if r, err = d.Region(0); err == nil {
			pci.SetCommand(d.Config(), pci.CmdMaster, 0)
			return m, d, r, nil
		}
	}
	return nil, nil, nil, errors.Join(err, m.Close())
}

// access measures a register read, and a posted write among many.
func access(ctx context.Context, o *Options, emit func(Row) error) error {
	if !o.wantsAny("mmio", []string{"read", "posted write"}) {
		return nil
	}
	m, _, r, err := edu(ctx, o)
	if err != nil {
		return err
	}
	defer m.Close()
	each := func(name string, f func()) error {
		if !o.wants("mmio", name) {
			return nil
		}
		n := 0
		start := time.Now()
		for ; time.Since(start) < o.Time; n += 64 {
			for range 64 {
				f()
			}
		}
		r.Read32(eduLive) // the posted ones count when they are done
		return emit(Row{Bench: "mmio", Case: name, Value: float64(time.Since(start).Nanoseconds()) / float64(n), Unit: "ns"})
	}
	if err := each("read", func() { r.Read32(eduLive) }); err != nil {
		return err
	}
	return each("posted write", func() { r.Write32(eduLive, 1) })
}

// irq measures the time from the register write that makes the device interrupt to the
// first instruction of the handler.
func irq(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, mode := range []bus.IRQMode{bus.MSI, bus.INTx} {
		name := mode.String()
		if !o.wants("irq", name) {
			continue
		}
		lat, err := irqQEMU(ctx, o, mode)
		if err != nil {
			return err
		}
		for _, q := range []struct {
			name string
			at   float64
		}{{"p50", 0.5}, {"p99", 0.99}, {"max", 1}} {
			if err := emit(Row{Bench: "irq", Case: name + " " + q.name, Value: float64(quantile(lat, q.at).Nanoseconds()) / 1000, Unit: "us"}); err != nil {
				return err
			}
		}
	}
	return nil
}

func irqQEMU(ctx context.Context, o *Options, mode bus.IRQMode) ([]time.Duration, error) {
	m, d, r, err := edu(ctx, o)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	return irqCase(ctx, d, r, mode)
}

// irqCase makes an edu device interrupt again and again, and returns the sorted latencies.
func irqCase(ctx context.Context, d bus.Device, r bus.Region, mode bus.IRQMode) ([]time.Duration, error) {
	q, err := d.EnableIRQs(mode, 1)
	if err != nil {
		return nil, err
	}
	at := make(chan time.Time, 1)
	h := bus.Handle(q[0], "edu0", func(uint64) {
		t := time.Now()
		r.Write32(eduAck, 1) // before the next raise, which it would swallow
		q[0].Unmask()
		at <- t
	})
	defer h.Close()
	var lat []time.Duration
	for range 2000 {
		start := time.Now()
		r.Write32(eduRaise, 1)
		select {
		case t := <-at:
			lat = append(lat, t.Sub(start))
		case <-time.After(5 * time.Second):
			return nil, fmt.Errorf("bench: irq %s: no interrupt within 5s: %w", mode, bus.ErrTimeout)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	slices.Sort(lat)
	return lat, nil
}

// start measures how long the default devices take to come up.
func start(ctx context.Context, o *Options, emit func(Row) error) error {
	if o.FirstFrame == nil || !o.wantsAny("start", []string{"ready", "first frame"}) {
		return nil
	}
	var ready, first []float64
	for range max(5, o.Pairs) {
		r, f, err := o.FirstFrame(ctx)
		if err != nil {
			return err
		}
		ready = append(ready, float64(r.Microseconds())/1000)
		first = append(first, float64(f.Microseconds())/1000)
	}
	if err := emit(Row{Bench: "start", Case: "ready", Value: median(ready), Unit: "ms"}); err != nil {
		return err
	}
	return emit(Row{Bench: "start", Case: "first frame", Value: median(first), Unit: "ms"})
}

// mem measures the peak memory of `ring3 up` with the default devices under traffic. What
// is mapped of QEMU's RAM and was touched counts.
func mem(ctx context.Context, o *Options, emit func(Row) error) error {
	if !o.wants("mem", "peak") {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	name := fmt.Sprintf("bench%d", os.Getpid())
	up := exec.CommandContext(ctx, self, "up", "--supervise=off", "-i", name)
	up.Cancel = func() error { return up.Process.Signal(unix.SIGTERM) }
	up.Stderr = o.Stderr
	out, err := up.StdoutPipe()
	if err != nil {
		return err
	}
	if err := up.Start(); err != nil {
		return err
	}
	stop := func() error {
		_ = up.Process.Signal(unix.SIGTERM)
		return up.Wait()
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "is ready") {
	}
	for _, c := range [][2]string{{"kpktgend_0", "add_device eth0"}, {"eth0", "count 200000"}, {"eth0", "burst 32"}, {"pgctrl", "start"}} {
		b, err := exec.CommandContext(ctx, self, "set", "-i", name, "/proc/net/pktgen/"+c[0], c[1]).CombinedOutput()
		if err != nil {
			return errors.Join(fmt.Errorf("bench: mem: %s: %s", c[1], strings.TrimSpace(string(b))), stop())
		}
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", up.Process.Pid))
	if err = errors.Join(err, stop()); err != nil {
		return err
	}
	for _, l := range strings.Split(string(b), "\n") {
		if f := strings.Fields(l); len(f) == 3 && f[0] == "VmHWM:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				return err
			}
			return emit(Row{Bench: "mem", Case: "peak", Value: kib / 1024, Unit: "MiB"})
		}
	}
	return errors.New("bench: mem: no VmHWM in /proc/PID/status")
}
