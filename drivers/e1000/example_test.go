package e1000_test

import (
	"context"
	"fmt"
	"log"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
)

// Two controllers on a machine of their own, wired to each other; one frame.
func Example() {
	ctx := context.Background()
	m, err := qemu.Start(ctx, qemu.Config{
		Devices: []qemu.DeviceSpec{{Name: "eth0", Model: "e1000e"}, {Name: "eth1", Model: "e1000e"}},
		Wires:   [][2]string{{"eth0", "eth1"}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	var nics [2]netdev.Device
	for i, name := range []string{"eth0", "eth1"} {
		dev, err := m.Device(name)
		if err != nil {
			log.Fatal(err)
		}
		r := pci.Bind(ctx, dev, pci.Env{Name: name}, []*pci.Driver{e1000.Driver})
		if r.Outcome != pci.Bound {
			log.Fatal(r.Err)
		}
		defer r.Instance.Close()
		nics[i] = r.Instance.(netdev.Device)
	}
	if err := netdev.Wire(nics[0], nics[1]); err != nil {
		log.Fatal(err)
	}

	tx, rx := nics[0].Tx(0), nics[1].Rx(0)
	pool, err := tx.NewPool(1)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	b := pool.Get()
	b.Data = append(b.Data, nics[1].MAC()...)
	b.Data = append(b.Data, nics[0].MAC()...)
	b.Data = append(b.Data, "\x88\xb5hello"...) // local experimental Ethernet type
	tx.Burst([]*dma.Buf{b})

	var got [1]*dma.Buf
	for rx.Burst(got[:]) == 0 {
		if err := rx.Wait(ctx); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Printf("%d bytes: %s\n", len(got[0].Data), got[0].Data[14:19])
	got[0].Free()
	rx.Burst(nil)
	// Output: 60 bytes: hello
}
