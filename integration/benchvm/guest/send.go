//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
	"github.com/ring3dev/ring3/vfio"
)

// nic is a device that ring3 has over VFIO.
type nic struct {
	dev  bus.Device
	inst pci.Instance
	net  netdev.Device
}

// openNIC opens a device, brings it up and waits for its link.
func openNIC(addr, name string, o vfio.Options, options map[string]string) (*nic, error) {
	dev, err := vfio.Open(context.Background(), addr, o)
	if err != nil {
		return nil, err
	}
	n := &nic{dev: dev}
	b := pci.Bind(context.Background(), dev, pci.Env{Name: name, Options: options}, []*pci.Driver{e1000.Driver})
	if b.Outcome != pci.Bound {
		return nil, errors.Join(fmt.Errorf("%s: %s: %w", addr, b.Outcome, b.Err), dev.Close())
	}
	n.inst = b.Instance
	n.net = b.Instance.(netdev.Device)
	if err := waitFor("link of "+addr, func() bool { return n.net.Link().Up }); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func (n *nic) close() error { return errors.Join(n.inst.Close(), n.dev.Close()) }

// sendArg is what the child "send" is to do.
type sendArg struct {
	Addr  string        `json:"addr"`
	Cases []sendCase    `json:"cases"`
	Time  time.Duration `json:"time"`
	MTU   int           `json:"mtu,omitempty"`  // 0: as it is
	Bare  bool          `json:"bare,omitempty"` // and the bare loop at burst 32
}

// sent is what came of it, in packets a second.
type sent struct {
	Rates []float64 `json:"rates"`
	Bare  float64   `json:"bare,omitempty"`
}

// sendMain sends with pktgen, one case after the other.
func sendMain(a sendArg, _ func(func() uint64) error) (r sent, err error) {
	ctx := context.Background()
	n, err := openNIC(a.Addr, "eth0", vfio.Options{}, nil)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	if m, ok := n.net.(netdev.MTUSetter); ok && a.MTU != 0 {
		if err := m.SetMTU(ctx, a.MTU); err != nil {
			return r, err
		}
	}
	if a.Bare {
		if r.Bare, err = e1000.BareTransmit(ctx, n.inst, make([]byte, smallest), 32, a.Time); err != nil {
			return r, err
		}
	}
	gen, err := pktgen.New(pktgen.Config{CPUs: []int{senderCPU}, Lookup: func(string) (netdev.Device, error) { return n.net, nil }})
	if err != nil {
		return r, err
	}
	defer gen.Close()
	g := ring3Pktgen{gen.Dir()}
	if err := g.write(kernelThread, "add_device eth0"); err != nil {
		return r, err
	}
	for _, c := range a.Cases {
		_, pps, err := generate(g, kernelThread, "eth0", c, a.Time)
		if err != nil {
			return r, fmt.Errorf("%s: %w", c, err)
		}
		r.Rates = append(r.Rates, pps)
	}
	return r, nil
}
