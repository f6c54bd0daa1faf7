package edu_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/drivers/edu"
	"github.com/ring3dev/ring3/sysfs"
)

// A device in QEMU, its driver, a computation, and a text sent to the device and back.
func Example() {
	ctx := context.Background()
	m, err := qemu.Start(ctx, qemu.Config{Devices: []qemu.DeviceSpec{{Name: "edu0", Model: "edu"}}})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	dev, err := m.Device("edu0")
	if err != nil {
		log.Fatal(err)
	}
	r := pci.Bind(ctx, dev, pci.Env{Name: "edu0"}, []*pci.Driver{edu.Driver})
	if r.Outcome != pci.Bound {
		log.Fatal(r.Err)
	}
	defer r.Instance.Close()
	d := r.Instance.(*edu.Device)

	n, err := d.Factorial(ctx, 10)
	fmt.Println(n, err)

	text := []byte("hello, edu")
	fmt.Println(d.Copy(ctx, text, 100, bus.ToDevice))
	back := make([]byte, len(text))
	fmt.Println(d.Copy(ctx, back, 100, bus.FromDevice))
	fmt.Printf("%s\n", back)
	// Output:
	// 3628800 <nil>
	// <nil>
	// <nil>
	// hello, edu
}

// device is an edu with a file of its own in sysfs.
type device struct{ *edu.Device }

// Attrs makes the device's file "factorial": write 5, read 120.
func (d device) Attrs() map[string]*sysfs.File {
	var last atomic.Uint32
	show := func(w *bytes.Buffer) error {
		_, err := fmt.Fprintln(w, last.Load())
		return err
	}
	store := func(ctx context.Context, p []byte) (int, error) {
		n, err := strconv.ParseUint(strings.TrimSpace(string(p)), 0, 32)
		if err != nil {
			return 0, syscall.EINVAL
		}
		v, err := d.Factorial(ctx, uint32(n))
		if errors.Is(err, bus.ErrNotSupported) {
			return 0, syscall.EINVAL
		}
		last.Store(v)
		return len(p), err
	}
	return map[string]*sysfs.File{"factorial": sysfs.Attr(0o644, show, store)}
}

// withFile is the driver, with a Probe that hands out a device.
var withFile = pci.Driver{
	Name: "edu", IDs: edu.Driver.IDs,
	Probe: func(ctx context.Context, dev bus.Device, env pci.Env) (pci.Instance, error) {
		d, err := edu.Driver.Probe(ctx, dev, env)
		if err != nil {
			return nil, err
		}
		return device{d.(*edu.Device)}, nil
	},
}

// An instance may add files to its device's directory in sysfs.
func Example_sysfs() {
	ctx := context.Background()
	m, err := qemu.Start(ctx, qemu.Config{Devices: []qemu.DeviceSpec{{Name: "edu0", Model: "edu"}}})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	dev, err := m.Device("edu0")
	if err != nil {
		log.Fatal(err)
	}
	r := pci.Bind(ctx, dev, pci.Env{Name: "edu0"}, []*pci.Driver{&withFile})
	if r.Outcome != pci.Bound {
		log.Fatal(r.Err)
	}
	defer r.Instance.Close()

	file := r.Instance.(pci.AttrUser).Attrs()["factorial"]
	fmt.Println(file.Write(ctx, []byte("5\n")))
	text, err := file.ReadAll()
	fmt.Printf("%s %v\n", bytes.TrimSpace(text), err)
	fmt.Println(file.Write(ctx, []byte("13\n")))
	// Output:
	// 2 <nil>
	// 120 <nil>
	// 0 invalid argument
}
