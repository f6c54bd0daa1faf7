package vfiouser_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/vfio/vfiouser"
)

// thermometer is an edu that has a register more.
type thermometer struct{ bus.Device }

func (t thermometer) Region(index int) (bus.Region, error) {
	r, err := t.Device.Region(index)
	if err != nil || index != 0 {
		return r, err
	}
	return &withDegrees{r}, nil
}

type withDegrees struct{ bus.Region }

func (r *withDegrees) Read32(off bus.Off) uint32 {
	if off == 0x40 { // nothing is there in an edu
		return 21
	}
	return r.Region.Read32(off)
}

// A device that is made of another one is served at a socket, and driven by a client, here of the same process.
func Example() {
	if err := example(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// edu 0x10000ed, 21 degrees
}

func example() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	m, err := sim.Start(ctx, sim.Config{Devices: []sim.DeviceSpec{{Name: "edu0", Model: "edu"}}})
	if err != nil {
		return err
	}
	defer m.Close()
	edu, err := m.Device("edu0")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "socket")

	l, err := vfiouser.Listen(path)
	if err != nil {
		return err
	}
	s, err := vfiouser.NewServer(thermometer{edu}, vfiouser.ServerOptions{Name: "edu0"})
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()

	dev, err := vfiouser.Dial(ctx, path, vfiouser.Options{})
	if err != nil {
		return err
	}
	r, err := dev.Region(0)
	if err != nil {
		return err
	}
	fmt.Printf("edu %#x, %d degrees\n", r.Read32(0), r.Read32(0x40))
	if err := dev.Close(); err != nil {
		return err
	}
	cancel()
	return <-served
}
