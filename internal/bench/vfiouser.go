package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/vfio/vfiouser"
)

// served is a model of package sim that `ring3 serve` serves, a process of its own.
type served struct {
	cmd *exec.Cmd
	dir *scratch
	dev bus.Device
}

// serve starts a server and connects to it.
func serve(ctx context.Context, log *slog.Logger, model string, o vfiouser.Options) (_ *served, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := new(served)
	if s.dir, err = newScratch(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	socket := filepath.Join(s.dir.path, "socket")
	var said strings.Builder
	s.cmd = exec.Command(self, "serve", "sim:"+model, "--socket", socket, "--crash-records", "0")
	s.cmd.Stderr = &said
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := startElsewhere(s.cmd); err != nil {
		s.cmd = nil
		return nil, err
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "ready") {
	}
	o.Log = log
	if s.dev, err = vfiouser.Dial(ctx, socket, o); err != nil {
		return nil, fmt.Errorf("bench: ring3 serve: %w\n%s", err, said.String())
	}
	return s, nil
}

// startElsewhere starts a program that never runs on the CPU of kpktgend_0, if there is another: a busy
// machine's scheduler may leave both on one for long.
func startElsewhere(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil || all.Count() < 2 {
		return cmd.Start()
	}
	others := all
	for i := range 64 * len(all) {
		if all.IsSet(i) {
			others.Clear(i)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &others); err != nil {
		return cmd.Start()
	}
	err := cmd.Start()
	return errors.Join(err, unix.SchedSetaffinity(0, &all))
}

func (s *served) Device(string) (bus.Device, error) { return s.dev, nil }

func (s *served) Close() error {
	var err error
	if s.dev != nil {
		err = s.dev.Close()
	}
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(unix.SIGTERM)
		err = errors.Join(err, s.cmd.Wait())
	}
	return errors.Join(err, s.dir.remove())
}

// vfioUserWays are how a client reaches the device of another process, by what it leaves out.
var vfioUserWays = []struct {
	name    string
	without vfiouser.Ways
}{
	{"messages", vfiouser.WriteQueue | vfiouser.Doorbells},
	{"queue", 0},
}

// vfioUser compares a device that another process serves with the same one in this process.
func vfioUser(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, f := range []func(context.Context, *Options, func(Row) error) error{vfioUserAccess, vfioUserMapped, vfioUserIRQ, vfioUserTx} {
		if err := f(ctx, o, emit); err != nil {
			return fmt.Errorf("vfio-user: %w", err)
		}
	}
	return nil
}

// simEDU is edu's registers in this process.
func simEDU(ctx context.Context, o *Options) (machine, bus.Region, error) {
	m, err := sim.Start(ctx, sim.Config{Log: o.Log, Devices: []sim.DeviceSpec{{Name: "edu0", Model: "edu"}}})
	if err != nil {
		return nil, nil, err
	}
	r, err := eduRegion(m)
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	return m, r, nil
}

func eduRegion(m machine) (bus.Region, error) {
	d, err := m.Device("edu0")
	if err != nil {
		return nil, err
	}
	pci.SetCommand(d.Config(), pci.CmdMaster, 0)
	return d.Region(0)
}

// vfioUserAccess is a register's read, and a write among many.
func vfioUserAccess(ctx context.Context, o *Options, emit func(Row) error) error {
	const bench = "vfio-user"
	for _, way := range vfioUserWays {
		read, write := "read "+way.name, "posted write "+way.name
		if !o.wantsAny(bench, []string{read, write}) {
			continue
		}
		err := func() error {
			near, here, err := simEDU(ctx, o)
			if err != nil {
				return err
			}
			defer near.Close()
			far, err := serve(ctx, o.Log, "edu", vfiouser.Options{Without: way.without})
			if err != nil {
				return err
			}
			defer far.Close()
			there, err := eduRegion(far)
			if err != nil {
				return err
			}
			if o.wants(bench, read) {
				if err := emit(pairNs(o, read, here, there, func(r bus.Region) { r.Read32(eduLive) })); err != nil {
					return err
				}
			}
			if !o.wants(bench, write) {
				return nil
			}
			return emit(pairNs(o, write, here, there, func(r bus.Region) { r.Write32(eduLive, 1) }))
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

// pairNs measures an access here (the limit) and there, in turn. Posted ones count when they are done.
func pairNs(o *Options, name string, here, there bus.Region, f func(bus.Region)) Row {
	var v [3][]float64
	for range o.Pairs {
		var ns [2]float64
		for i, r := range []bus.Region{here, there} {
			n := 0
			begin := time.Now()
			for ; time.Since(begin) < o.Time; n += 64 {
				for range 64 {
					f(r)
				}
			}
			r.Read32(eduLive)
			ns[i] = float64(time.Since(begin).Nanoseconds()) / float64(n)
		}
		v[0], v[1], v[2] = append(v[0], ns[0]), append(v[1], ns[1]), append(v[2], ns[1]/ns[0])
	}
	return Row{Bench: "vfio-user", Case: name, Value: median(v[1]), Unit: "ns", Limit: median(v[0]), Ratio: median(v[2]), Samples: v[2]}
}

// vfioUserIRQ is the time from the write that makes the device interrupt to the handler.
func vfioUserIRQ(ctx context.Context, o *Options, emit func(Row) error) error {
	quantiles := []struct {
		name string
		at   float64
	}{{"irq MSI p50", 0.5}, {"irq MSI p99", 0.99}}
	if !o.wantsAny("vfio-user", []string{quantiles[0].name, quantiles[1].name}) {
		return nil
	}
	near, here, err := simEDU(ctx, o)
	if err != nil {
		return err
	}
	defer near.Close()
	far, err := serve(ctx, o.Log, "edu", vfiouser.Options{})
	if err != nil {
		return err
	}
	defer far.Close()
	there, err := eduRegion(far)
	if err != nil {
		return err
	}
	d, err := near.Device("edu0")
	if err != nil {
		return err
	}
	limits, err := irqCase(ctx, d, here, bus.MSI)
	if err != nil {
		return err
	}
	values, err := irqCase(ctx, far.dev, there, bus.MSI)
	if err != nil {
		return err
	}
	for _, q := range quantiles {
		limit, value := float64(quantile(limits, q.at).Nanoseconds())/1000, float64(quantile(values, q.at).Nanoseconds())/1000
		if err := emit(Row{Bench: "vfio-user", Case: q.name, Value: value, Unit: "us", Limit: limit, Ratio: value / limit}); err != nil {
			return err
		}
	}
	return nil
}

// vfioUserTx is pktgen's rate on a model in this process (the limit) and on one in another.
func vfioUserTx(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, model := range models {
		for _, way := range vfioUserWays {
			name := fmt.Sprintf("pktgen-tx %s ring=4096 burst=32 %s", model, way.name)
			if !o.wants("vfio-user", name) {
				continue
			}
			specs := [2]rigSpec{
				{sim: true, model: model, options: ringOf(4096), n: 1},
				{served: &vfiouser.Options{Without: way.without}, model: model, options: ringOf(4096), n: 1},
			}
			var rigs [2]*rig
			var row Row
			var err error
			for i := range specs {
				var r *rig
				if r, err = newRigOf(ctx, o, specs[i]); err != nil {
					break
				}
				rigs[i] = r
			}
			if err == nil {
				row, err = pairTx(ctx, o, rigs, 32, 5e6)
			}
			for _, r := range rigs {
				if r != nil {
					err = errors.Join(err, r.close())
				}
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			row.Bench, row.Case = "vfio-user", name
			if err := emit(row); err != nil {
				return err
			}
		}
	}
	return nil
}
