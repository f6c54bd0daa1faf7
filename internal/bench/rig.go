package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
	"github.com/ring3dev/ring3/vfio/vfiouser"
)

// rig is a machine with network devices in service and a generator on the first of them.
type rig struct {
	m     machine
	devs  []bus.Device
	insts []pci.Instance
	nets  []netdev.Device
	gen   *pktgen.Engine
	dir   *node.Dir // the generator's files
}

// machine is what carries devices: one QEMU, or models in this process.
type machine interface {
	Device(name string) (bus.Device, error)
	Close() error
}

// rigSpec says what a rig is made of.
type rigSpec struct {
	sim     bool              // models in this process instead of QEMU's
	served  *vfiouser.Options // models of another process, reached in this way
	model   string
	props   []string
	iommu   bool
	options map[string]string // of the driver
	n       int               // devices; two, or four in pairs, are wired
	apart   bool              // they are not
	lossy   bool              // the wire loses what finds no descriptor
	wrap    func(name string, d bus.Device) bus.Device
}

// newRig starts n devices of a QEMU model; two are wired, and lose nothing.
func newRig(ctx context.Context, o *Options, model string, ring, n int) (*rig, error) {
	return newRigOf(ctx, o, rigSpec{model: model, options: ringOf(ring), n: n})
}

// ringOf is the driver's option for so many descriptors.
func ringOf(n int) map[string]string { return map[string]string{"ring": strconv.Itoa(n)} }

// start starts the machine; its devices are named eth0, eth1, ...
func (s *rigSpec) start(ctx context.Context, log *slog.Logger) (machine, error) {
	var wires [][2]string
	for i := 0; s.n%2 == 0 && !s.apart && i < s.n; i += 2 {
		wires = append(wires, [2]string{ethName(i), ethName(i + 1)})
	}
	if s.served != nil {
		return serve(ctx, log, s.model, *s.served)
	}
	if s.sim {
		c := sim.Config{Log: log, Wires: wires}
		for i := range s.n {
			c.Devices = append(c.Devices, sim.DeviceSpec{Name: ethName(i), Model: s.model, Props: s.props})
		}
		return sim.Start(ctx, c)
	}
	c := qemu.Config{Log: log, Wires: wires}
	for i := range s.n {
		c.Devices = append(c.Devices, qemu.DeviceSpec{Name: ethName(i), Model: s.model, Props: s.props, IOMMU: s.iommu})
	}
	return qemu.Start(ctx, c)
}

func ethName(i int) string { return "eth" + strconv.Itoa(i) }

// newRigOf starts what a specification says.
func newRigOf(ctx context.Context, o *Options, s rigSpec) (_ *rig, err error) {
	r := &rig{}
	m, err := s.start(ctx, o.Log)
	if err != nil {
		return nil, err
	}
	r.m = m
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	for i := range s.n {
		name := ethName(i)
		dev, err := r.m.Device(name)
		if err != nil {
			return r, err
		}
		if s.wrap != nil {
			dev = s.wrap(name, dev)
		}
		r.devs = append(r.devs, dev)
		b := pci.Bind(ctx, dev, pci.Env{Name: name, Log: o.Log, Options: s.options}, o.Drivers)
		if b.Outcome != pci.Bound {
			return r, b.Err
		}
		r.insts = append(r.insts, b.Instance)
		nd, ok := b.Instance.(netdev.Device)
		if !ok {
			return r, fmt.Errorf("bench: %s is no network device", s.model)
		}
		r.nets = append(r.nets, nd)
	}
	for i := 0; s.n%2 == 0 && !s.apart && !s.lossy && i < s.n; i += 2 {
		if err := netdev.Wire(r.nets[i], r.nets[i+1]); err != nil {
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
	return r.result("eth0")
}

// result is what a device's last run came to.
func (r *rig) result(name string) (pps float64, sent uint64, err error) {
	f, err := r.file(name)
	if err != nil {
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
