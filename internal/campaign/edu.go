package campaign

import (
	"bytes"
	"context"
	"errors"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/edu"
)

func eduScenario() *Scenario {
	return &Scenario{
		Name: "edu", About: "QEMU's educational device: a factorial, a copy there and back", Driver: "edu",
		Registers: edu.Driver.Registers(pci.FunctionID{}), Short: true, Weight: 1, id: 0x1234_11e8, backends: allBackends,
		open: func(ctx context.Context, b Backend) (*rig, error) {
			m, err := start(ctx, b, nil, part{name: "edu0", model: "edu"})
			if err != nil {
				return nil, err
			}
			dev, err := m.Device("edu0")
			if err != nil {
				return nil, errors.Join(err, m.Close())
			}
			return &rig{dev: dev, live: liveEdu, reset: resetIn(m, "edu0", dev), selfReset: selfResetIn(m, "edu0"), close: m.Close}, nil
		},
	}
}

// liveEdu is an edu's life.
func liveEdu(ctx context.Context, dev bus.Device) error {
	inst, err := edu.Driver.Probe(ctx, dev, pci.Env{Name: "edu0"})
	if err != nil {
		return err
	}
	d := inst.(*edu.Device)
	err = useEdu(ctx, d)
	var bad dataError
	if errors.As(err, &bad) {
		ctx, cancel := awhile(ctx, wholeLife)
		defer cancel()
		var again dataError
		for range 2 { // the first may meet what is left of the fault
			if err = useEdu(ctx, d); !errors.As(err, &again) {
				break
			}
			err = silent("%w", again)
		}
		err = bad.then(err)
	}
	return errors.Join(err, inst.Close())
}

// useEdu has an edu do all that it can.
func useEdu(ctx context.Context, d *edu.Device) error {
	got, err := d.Factorial(ctx, 5)
	if err != nil {
		return err
	}
	out, in := []byte("sixteen bytes and a few more"), make([]byte, 28)
	if err := d.Copy(ctx, out, 100, bus.ToDevice); err != nil {
		return err
	}
	if err := d.Copy(ctx, in, 100, bus.FromDevice); err != nil {
		return err
	}
	switch {
	case got != 120:
		return wrongData("5! = %d, want 120", got)
	case !bytes.Equal(in, out):
		return wrongData("a copy there and back is %q, want %q", in, out)
	}
	return nil
}
