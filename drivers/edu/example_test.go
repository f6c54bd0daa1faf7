package edu_test

import (
	"context"
	"fmt"
	"log"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/drivers/edu"
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
	r := pci.Bind(ctx, dev, pci.Env{Name: "edu0"}, []*pci.Driver{&edu.Driver})
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
