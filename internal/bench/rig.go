package bench

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
)

// rig is one QEMU with network devices in service and a generator.
type rig struct {
	m     *qemu.Machine
	insts []pci.Instance
	nets  []netdev.Device
	gen   *pktgen.Engine
	dir   *node.Dir // the generator's files
}

// newRig starts n devices of a model; two are wired, and lose nothing.
func newRig(ctx context.Context, o *Options, model string, ring, n int) (*rig, error) {
	return newRigOf(ctx, o, qemu.DeviceSpec{Model: model}, ring, n)
}

// newRigOf starts n devices of one specification, named eth0, eth1, ...
func newRigOf(ctx context.Context, o *Options, spec qemu.DeviceSpec, ring, n int) (_ *rig, err error) {
	c := qemu.Config{Log: o.Log}
	for i := range n {
		spec.Name = fmt.Sprintf("eth%d", i)
		c.Devices = append(c.Devices, spec)
	}
	if n == 2 {
		c.Wires = [][2]string{{"eth0", "eth1"}}
	}
	r := &rig{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.m, err = qemu.Start(ctx, c); err != nil {
		return r, err
	}
	for _, d := range c.Devices {
		dev, err := r.m.Device(d.Name)
		if err != nil {
			return r, err
		}
		b := pci.Bind(ctx, dev, pci.Env{Name: d.Name, Log: o.Log, Options: map[string]string{"ring": strconv.Itoa(ring)}}, o.Drivers)
		if b.Outcome != pci.Bound {
			return r, b.Err
		}
		r.insts = append(r.insts, b.Instance)
		nd, ok := b.Instance.(netdev.Device)
		if !ok {
			return r, fmt.Errorf("bench: %s is no network device", spec.Model)
		}
		r.nets = append(r.nets, nd)
	}
	if n == 2 {
		if err := netdev.Wire(r.nets[0], r.nets[1]); err != nil {
			return r, err
		}
	}
	r.gen, err = pktgen.New(pktgen.Config{Log: o.Log, Lookup: func(name string) (netdev.Device, error) {
		for _, d := range r.nets {
			if d.Info().Name == name {
				return d, nil
			}
		}
		return nil, fmt.Errorf("no device %s", name)
	}})
	if err != nil {
		return r, err
	}
	r.dir = r.gen.Dir()
	return r, r.write("kpktgend_0", "add_device eth0")
}

func (r *rig) close() error {
	if r.gen != nil {
		r.gen.Close()
	}
	var err error
	for _, i := range r.insts {
		err = errors.Join(err, i.Close())
	}
	if r.m != nil {
		err = errors.Join(err, r.m.Close())
	}
	return err
}

func (r *rig) file(name string) (*node.File, error) {
	n, err := r.dir.Walk(name)
	f, ok := n.(*node.File)
	if err != nil || !ok {
		return nil, fmt.Errorf("bench: pktgen has no file %s", name)
	}
	return f, nil
}

func (r *rig) write(name string, commands ...string) error {
	f, err := r.file(name)
	if err != nil {
		return err
	}
	for _, c := range commands {
		if _, err := f.Write(context.Background(), []byte(c+"\n")); err != nil {
			return fmt.Errorf("bench: %s > %s: %w", c, name, err)
		}
	}
	return nil
}

var resultRate = regexp.MustCompile(`Result: OK: .*\n +([0-9]+)pps`)
var resultSent = regexp.MustCompile(`pkts-sofar: ([0-9]+) `)

// run starts the generator and returns the rate and count that it reports.
func (r *rig) run(ctx context.Context) (pps float64, sent uint64, err error) {
	f, err := r.file("pgctrl")
	if err != nil {
		return 0, 0, err
	}
	if _, err := f.Write(ctx, []byte("start\n")); err != nil {
		return 0, 0, fmt.Errorf("bench: start: %w", err)
	}
	if f, err = r.file("eth0"); err != nil {
		return 0, 0, err
	}
	b, err := f.ReadAll()
	if err != nil {
		return 0, 0, err
	}
	m, n := resultRate.FindSubmatch(b), resultSent.FindSubmatch(b)
	if m == nil || n == nil {
		return 0, 0, fmt.Errorf("bench: unexpected result: %s", strings.TrimSpace(string(b)))
	}
	pps, _ = strconv.ParseFloat(string(m[1]), 64)
	sent, err = strconv.ParseUint(string(n[1]), 10, 64)
	return pps, sent, err
}
