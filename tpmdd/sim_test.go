package tpmdd_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/fault/faulttest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/crb"
	"github.com/ring3dev/ring3/tpmdd/tis"
)

// openSim makes a TPM of bus/sim's.
func openSim(t testing.TB, model string, props ...string) bus.Device {
	t.Helper()
	m, err := sim.Start(t.Context(), sim.Config{Log: bustest.Log(t), Clock: sim.Eager, Devices: []sim.DeviceSpec{{Name: "tpm0", Model: model, Props: props}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	dev, err := m.Device("tpm0")
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

// serve takes a TPM into service, with the one driver or any.
func serve(ctx context.Context, t testing.TB, dev bus.Device, only ...*pci.Driver) (pci.Instance, *tpmdd.Chip, error) {
	if len(only) == 0 {
		only = drivers
	}
	b := pci.Bind(ctx, dev, pci.Env{Name: "tpm0", Log: bustest.Log(t)}, only)
	if b.Err != nil {
		return nil, nil, b.Err
	}
	return b.Instance, b.Instance.(tpmdd.Instance).Chip(), nil
}

// The chip sends five commands before it is anybody's, so the first that is is number 6.

// TestMisbehaviour: each ends with the kernel's errno, within its time, and the next command works.
func TestMisbehaviour(t *testing.T) {
	for _, c := range []struct {
		model, kind string
		want        error // of the command that it happens to; nil: an answer
		most        time.Duration
	}{
		{"tpm-tis", "long:6", unix.ETIME, time.Second},
		{"tpm-tis", "short:6", unix.EIO, time.Second},
		{"tpm-tis", "huge:6", unix.EIO, time.Second},
		{"tpm-tis", "runt:6", unix.ETIME, time.Second},
		{"tpm-tis", "tag:6", nil, time.Second},
		{"tpm-tis", "fail:6", nil, time.Second},
		{"tpm-tis", "retry:6-8", nil, time.Second},
		{"tpm-tis", "testing:6-8", nil, time.Second},
		{"tpm-tis", "hang:6", unix.ETIME, 3 * time.Second},
		{"tpm-tis", "expect:6-60", unix.EIO, time.Second},
		{"tpm-tis", "noexpect:6-60", unix.EIO, time.Second},
		{"tpm-tis", "burst0:6", unix.EBUSY, 2 * time.Second},
		{"tpm-tis", "storm:6", nil, time.Second},
		{"tpm-crb", "huge:6", unix.EIO, time.Second},
		{"tpm-crb", "runt:6", unix.EIO, time.Second},
		{"tpm-crb", "tag:6", nil, time.Second},
		{"tpm-crb", "retry:6-8", nil, time.Second},
		{"tpm-crb", "hang:6", unix.ETIME, 3 * time.Second},
		{"tpm-crb", "fatal:6", unix.EIO, time.Second},
	} {
		t.Run(c.model+" "+c.kind, func(t *testing.T) {
			t.Parallel()
			inst, chip, err := serve(t.Context(), t, openSim(t, c.model, "misbehave="+c.kind))
			if err != nil {
				t.Fatal(err)
			}
			defer inst.Close()
			begin := time.Now()
			a, err := chip.Transmit(t.Context(), random(tpmdd.TPM20, 32))
			if c.want == nil && (err != nil || len(a) < tpmdd.HeaderSize) || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("the command: %x, %v, want %v", a, err, c.want)
			}
			if took := time.Since(begin); took > c.most+3*time.Second {
				t.Errorf("it took %v, want %v at most", took, c.most)
			}
			// From a fatal error only a reset leads.
			if _, err := tpmdd.Ask(t.Context(), chip, "getting random bytes", random(tpmdd.TPM20, 32)); err != nil && !strings.HasPrefix(c.kind, "fatal") {
				t.Errorf("the next command: %v", err)
			}
		})
	}
}

// TestWedged: a TPM that does not even abort ends every command in its time.
func TestWedged(t *testing.T) {
	skipWaits(t)
	for _, model := range []string{"tpm-tis", "tpm-crb"} {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			inst, chip, err := serve(t.Context(), t, openSim(t, model, "misbehave=wedge:6-"))
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				begin := time.Now()
				if a, err := chip.Transmit(t.Context(), random(tpmdd.TPM20, 32)); !errors.Is(err, bus.ErrTimeout) {
					t.Errorf("Transmit = %x, %v, want ErrTimeout", a, err)
				}
				if took := time.Since(begin); took > 15*time.Second {
					t.Errorf("it took %v, want 2 s and the time of an abort", took)
				}
			}
			_ = inst.Close()
		})
	}
}

// TestNoLocality: a TPM that gives the locality to nobody is EPIPE, as for the kernel's programs.
func TestNoLocality(t *testing.T) {
	for _, model := range []string{"tpm-tis", "tpm-crb"} {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			_, _, err := serve(t.Context(), t, openSim(t, model, "misbehave=locality"))
			if !errors.Is(err, unix.EPIPE) || !errors.Is(err, bus.ErrTimeout) {
				t.Errorf("Bind: %v, want EPIPE and ErrTimeout", err)
			}
		})
	}
}

// TestNoInterrupt: an interrupt that never comes is noticed at once, one that is lost later when it is missed.
func TestNoInterrupt(t *testing.T) {
	inst, chip, err := serve(t.Context(), t, openSim(t, "tpm-tis", "irq=off"))
	if err != nil {
		t.Fatal(err)
	}
	defer inst.Close()
	if _, err := tpmdd.Ask(t.Context(), chip, "getting random bytes", random(tpmdd.TPM20, 32)); err != nil {
		t.Error(err)
	}
	for _, spec := range []string{"irq0#3:irq-lost", "irq0#3:irq-late:20", "irq0#3:irq-again", "irq0#3:irq-storm:1000"} {
		plan, err := fault.Parse(spec)
		if err != nil {
			t.Fatal(err)
		}
		inst, chip, err := serve(t.Context(), t, fault.Wrap(openSim(t, "tpm-tis"), plan))
		if err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
		begin := time.Now()
		for range 8 {
			if _, err := tpmdd.Ask(t.Context(), chip, "getting random bytes", random(tpmdd.TPM20, 32)); err != nil {
				t.Errorf("%s: %v", spec, err)
			}
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("%s: eight commands took %v, want milliseconds", spec, took)
		}
		if err := inst.Close(); err != nil {
			t.Errorf("%s: Close() = %v", spec, err)
		}
	}
}

// TestSmallBursts: a FIFO of few bytes.
func TestSmallBursts(t *testing.T) {
	for _, props := range [][]string{{"burst=1"}, {"burst=3"}, {"burst=8"}, {"burst=64"}, {"burst=7", "family=1.2"}} {
		inst, chip, err := serve(t.Context(), t, openSim(t, "tpm-tis", props...))
		if err != nil {
			t.Fatalf("%v: %v", props, err)
		}
		if _, err := tpmdd.Ask(t.Context(), chip, "getting random bytes", random(chip.Family(), 32)); err != nil {
			t.Errorf("%v: %v", props, err)
		}
		if err := inst.Close(); err != nil {
			t.Errorf("%v: Close() = %v", props, err)
		}
	}
}

// faultRuns limits the runs of a scenario; there are some 2,000.
const faultRuns = 2500

// TestFaults lives a TPM's life with every access failing in turn.
func TestFaults(t *testing.T) {
	max := faultRuns
	if testing.Short() {
		max /= 10
	}
	for _, c := range []struct {
		name, model string
		driver      *pci.Driver
		props       []string
	}{
		{"tis", "tpm-tis", tis.Driver, nil},
		{"tis-1.2", "tpm-tis", tis.Driver, []string{"family=1.2"}},
		{"crb", "tpm-crb", crb.Driver, nil},
	} {
		faulttest.Every(t, faulttest.Scenario{
			Name: c.name, Driver: c.driver.Name,
			Open: func(t testing.TB) bus.Device { return openSim(t, c.model, c.props...) },
			Run: func(ctx context.Context, dev bus.Device) error {
				inst, chip, err := serve(ctx, t, dev, c.driver)
				if err != nil {
					return err
				}
				var errs [3]error // the fault may come before, in the first, and later
				mark := 0
				for i := range errs {
					if i == 1 {
						mark = dev.(*fault.Device).Accesses()
					}
					if errs[i] = askRandom(ctx, chip); errs[i] == nil {
						continue
					}
					var refused *tpmdd.TPMError
					switch {
					case errors.As(errs[i], &refused):
						errs[i] = nil // a command that arrived as another one
						if i == 2 && recovers(dev, mark) {
							errs[i] = faulttest.Wrong("the second command after the fault: %w", refused)
						}
					case !hasErrno(errs[i]):
						errs[i] = faulttest.Wrong("command %d: no errno of the list in tpmdd's package comment: %w", i, errs[i])
					case i == 2 && recovers(dev, mark):
						errs[i] = faulttest.Wrong("the second command after the fault: %w", errs[i])
					}
				}
				return errors.Join(append(errs[:], inst.Close())...)
			},
			// A bit that flips or sticks on the way to a TPM, or is lost there, may not matter; what Run finds wrong does.
			Notices: func(f fault.Fault) bool { return true },
		}, faulttest.Options{Max: max, Parallel: 32})
	}
}

// askRandom is one command, and what is wrong with its answer.
func askRandom(ctx context.Context, chip *tpmdd.Chip) error {
	_, err := tpmdd.Ask(ctx, chip, "getting random bytes", random(chip.Family(), 32))
	return err
}

// hasErrno says whether an error of a command has an errno that the package comment lists.
func hasErrno(err error) bool {
	var e unix.Errno
	return errors.As(err, &e) && slices.Contains([]unix.Errno{unix.ETIME, unix.EIO, unix.ECANCELED, unix.EPIPE, unix.EBUSY, unix.E2BIG, unix.ENODATA, unix.EINVAL, unix.EFAULT}, e)
}

// passing are the faults after which a device is as before.
var passing = []fault.Kind{fault.Ones, fault.Zero, fault.Flip, fault.LostWrite, fault.IRQLost, fault.IRQLate, fault.IRQAgain, fault.IRQStorm}

// recovers says whether a device has had its fault, up to an access, and lives.
func recovers(dev bus.Device, upTo int) bool {
	return dev.Err() == nil && slices.ContainsFunc(dev.(*fault.Device).Outcomes(), func(o fault.Outcome) bool {
		return o.Made && o.Access.N <= upTo && slices.Contains(passing, o.Fault.Kind)
	})
}
