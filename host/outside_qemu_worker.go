package host

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/qemu"
)

// The worker's end.

// QEMU implements Outside.
func (o *farOutside) QEMU(ctx context.Context, machine string) (_ *qemu.Parts, _ qemu.Monitor, err error) {
	p := &qemu.Parts{}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	for {
		var got qemuOpened
		files, err := o.call(ctx, outsideQEMU, qemuOpen{machine, len(p.Files)}, &got)
		if err != nil {
			return nil, nil, err
		}
		p.Meta = got.Meta
		p.Files = append(p.Files, files...)
		if len(p.Files) >= got.Files {
			break
		}
		if len(files) == 0 {
			return nil, nil, fmt.Errorf("the supervisor gave %d files of %d: %w", len(p.Files), got.Files, bus.ErrProtocol)
		}
	}
	return p, newFarMonitor(o, machine), nil
}

// Captured implements Outside.
func (o *farOutside) Captured(ctx context.Context, machine string) error {
	files, err := o.call(ctx, outsideCaptured, qemuOpen{Machine: machine}, nil)
	closeOpen(files)
	return err
}

// farMonitor is the monitor of a QEMU of the supervisor's; qemu.Monitor.
type farMonitor struct {
	o       *farOutside
	machine string
	done    chan struct{}
	err     error // valid after done
}

func newFarMonitor(o *farOutside, machine string) *farMonitor {
	return &farMonitor{o: o, machine: machine, done: make(chan struct{})}
}

// Execute implements qemu.Monitor. It takes as long as QEMU, which its owner bounds.
func (m *farMonitor) Execute(cmd string, args json.RawMessage) (reply json.RawMessage, err error) {
	files, err := m.o.call(context.Background(), outsideExecute, qemuExecute{m.machine, cmd, args}, &reply)
	closeOpen(files)
	return reply, err
}

// Watch implements qemu.Monitor. It is called once.
func (m *farMonitor) Watch(f func(qemu.Event)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var seen uint64
		for {
			var news qemuNews
			files, err := m.o.call(ctx, outsideWait, qemuWait{m.machine, seen}, &news)
			closeOpen(files)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				err = fmt.Errorf("qemu: asking its owner: %w (%w)", err, bus.ErrGone)
			case news.Ended != "":
				err = fmt.Errorf("%s%w", news.Ended, silent{bus.ErrGone})
			}
			for _, e := range news.Events {
				f(e)
			}
			if seen = news.Seen; err != nil {
				m.err = err
				close(m.done)
				return
			}
		}
	}()
	return func() { cancel(); <-ended }
}

// Done implements qemu.Monitor.
func (m *farMonitor) Done() <-chan struct{} { return m.done }

// Err implements qemu.Monitor.
func (m *farMonitor) Err() error {
	select {
	case <-m.done:
		return m.err
	default:
		return nil
	}
}

// attachQEMU is planQEMU where QEMU is somebody else's.
func (s *System) attachQEMU(group []DeviceSpec, q qemu.Config) starter {
	name := group[0].Name
	if slices.ContainsFunc(group, func(d DeviceSpec) bool { return s.plan.Captures[d.Name] != "" }) {
		s.captures = append(s.captures, &capture{outside: qemuCaptures{s.outside, name}})
	}
	return func(ctx context.Context) (machine, error) {
		parts, mon, err := s.outside.QEMU(ctx, name)
		if err != nil {
			return nil, err
		}
		m, err := qemu.Attach(ctx, q, parts, mon)
		if err != nil {
			return nil, err
		}
		if qemu.IsTPM(group[0].Device) {
			return &tpmMachine{machine: m}, nil
		}
		return m, nil
	}
}

// qemuCaptures is an Outside whose files are all captures of one QEMU.
type qemuCaptures struct {
	Outside
	machine string
}

func (o qemuCaptures) Begin(ctx context.Context, _, _ string) error {
	return o.Captured(ctx, o.machine)
}
