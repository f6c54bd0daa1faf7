package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/klog"
	"github.com/ring3dev/ring3/vfio/vfiouser"
)

// vfioUser is the backend of devices that another process serves.
const vfioUser = "vfio-user"

// servedOf is the first of the devices named that another process serves; "" if none is.
func (p *Plan) servedOf(names ...string) string {
	for _, n := range names {
		if d := p.find(n); d != nil && d.Backend == vfioUser {
			return n
		}
	}
	return ""
}

// planVFIOUser connects to a socket, which is what such a device is named by.
func (s *System) planVFIOUser(c Config, group []DeviceSpec, domain uint32) (starter, error) {
	d := group[0]
	return func(ctx context.Context) (machine, error) {
		at := pci.Addr{Domain: domain, Dev: 1}
		o := vfiouser.Options{Address: at.String(), Name: d.Name, Log: s.log}
		var dev *vfiouser.Device
		var err error
		if s.outside != nil {
			dev, err = borrowVFIOUser(ctx, s.outside, d, o, len(c.Saved) > 0)
		} else {
			dev, err = vfiouser.Dial(ctx, d.Device, o)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.Name, err)
		}
		cfg := dev.Config()
		fn := &pci.Function{Addr: at, ID: pci.ReadID(cfg), Header: cfg.Read8(pci.CfgHeader) & 0x7f, Config: cfg, BARs: dev.Regions()}
		return &real{dev: dev, fn: fn}, nil
	}, nil
}

// serveFlags are those of serve.
type serveFlags struct {
	upFlags
	sockets []string
}

func (a *app) serveCmd() *cobra.Command {
	var f serveFlags
	c := &cobra.Command{
		Use:   "serve [NAME=]BACKEND:DEVICE... --socket PATH...",
		Short: "Serve devices to drivers in other processes, over vfio-user",
		Long: `Serve devices until SIGINT or SIGTERM: each at a Unix socket, to one client at a time. A client is
another ring3 (ring3 up eth0=vfio-user:PATH), a program in any language that speaks vfio-user
(examples/edu.py), or a virtual machine (QEMU 10.1 and later: -device
'{"driver":"vfio-user-pci","socket":{"type":"unix","path":"PATH"}}'). Sockets belong to the
devices in their order. What a client leaves is reset for the next one.

A device is written as for 'ring3 up', without a driver's options, for the driver is the client's. Devices of
QEMU stand behind its IOMMU. Only who started it may connect.`,
		Example: `  ring3 serve sim:edu --socket edu.sock
  ring3 serve eth0=sim:e1000e eth1=sim:e1000e --wire eth0-eth1 --socket a.sock --socket b.sock
  ring3 serve edu0=qemu:edu --socket edu.sock --trace edu0=edu.txt --fault edu0=LIVE#3:gone`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error { return a.serve(c.Context(), &f, args) },
	}
	c.Flags().StringArrayVar(&f.sockets, "socket", nil, "serve the next device at the Unix socket `PATH`")
	c.Flags().StringArrayVar(&f.wires, "wire", nil, "connect two network devices: `A-B`")
	c.Flags().StringArrayVar(&f.captures, "pcap", nil, "capture a network device's frames: `NAME=FILE`")
	c.Flags().StringArrayVar(&f.faults, "fault", nil, faultHelp)
	c.Flags().StringArrayVar(&f.traces, "trace", nil, "trace a device's registers, interrupts and doorbells: `NAME=FILE`, pcapng (*.pcapng) or text")
	c.Flags().StringVar(&f.traceFilter, "trace-filter", "", "trace "+filterHelp)
	c.Flags().IntVar(&f.crashRecords, "crash-records", defaultCrash, "log the last `N` accesses of a device that dies")
	return c
}

// plan reads the devices; one without a name is dev0, dev1, ...
func (f *serveFlags) plan(args []string) (Plan, error) {
	var devices []string
	for i, d := range args {
		name, _, _ := strings.Cut(d, ":")
		if !strings.Contains(name, "=") {
			d = fmt.Sprintf("dev%d=%s", i, d)
		}
		devices = append(devices, d)
	}
	p, err := f.upFlags.plan(devices)
	if err != nil {
		return p, err
	}
	if len(f.sockets) != len(p.Devices) {
		return p, usagef("serve: --socket is given %d times, want one PATH for each of the devices (%d)", len(f.sockets), len(p.Devices))
	}
	for i := range p.Devices {
		d := &p.Devices[i]
		for o := range d.Options {
			return p, usagef("serve: %s: option %s is a driver's, and the driver is the client's", d.Name, o)
		}
		// A device of QEMU's reaches a client's memory through the IOMMU only.
		d.IOMMU = d.Backend == "qemu"
	}
	return p, nil
}

// socketsOf are the sockets of devices, which machines may have in another order than they were named in.
func (f *serveFlags) socketsOf(p Plan, bound []*boundDevice) (sockets []string) {
	for _, b := range bound {
		i := slices.IndexFunc(p.Devices, func(d DeviceSpec) bool { return d.Name == b.spec.Name })
		sockets = append(sockets, f.sockets[i])
	}
	return sockets
}

// servedDevice is what 'ring3 serve -json' prints of each device.
type servedDevice struct {
	Name    string `json:"name"`
	Backend string `json:"backend"`
	Address string `json:"address"`
	ID      string `json:"id"`
	Socket  string `json:"socket"`
}

// serve runs the command.
func (a *app) serve(ctx context.Context, f *serveFlags, args []string) (err error) {
	plan, err := f.plan(args)
	if err != nil {
		return err
	}
	for _, d := range plan.Devices {
		if isTPM(d) {
			return usagef("serve: %s is a TPM, which is no PCI function, and vfio-user serves those only", d.Name)
		}
		if fabricOf(d).path != "" {
			return usagef("serve: %s is a node of a fabric, which who wants it joins itself", d.Name)
		}
	}
	log := klog.New(klog.Options{Stderr: a.stderr}).Logger()
	s, err := newServed(ctx, Config{Plan: plan, Drivers: a.Drivers, Log: log, Stderr: a.stderr})
	if err != nil {
		if ctx.Err() != nil {
			return exitError(interrupted)
		}
		return err
	}
	defer func() {
		err = errors.Join(err, s.Close())
		if s.unmade {
			err = errors.Join(err, exitError(1))
		}
	}()
	var listeners []*net.UnixListener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	sockets := f.socketsOf(plan, s.bound())
	for _, path := range sockets {
		l, err := vfiouser.Listen(path)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
	}
	var servers []*vfiouser.Server
	var group *vfiouser.Group
	if len(plan.Wires) > 0 {
		group = new(vfiouser.Group)
	}
	for i, b := range s.bound() {
		srv, err := s.serverOf(b, a.Drivers, s.machineOf(i), group)
		if err != nil {
			return err
		}
		servers = append(servers, srv)
	}
	if err := a.tellServed(s, sockets); err != nil {
		return err
	}
	return s.serveAll(ctx, servers, listeners)
}

// newServed brings devices up without drivers.
func newServed(ctx context.Context, c Config) (*System, error) {
	s := newSystem(c)
	s.serving = true
	err := s.tracing.open(ctx, s.plan.Trace, s.log, c.Stderr, nil)
	if err == nil {
		err = s.startMachines(ctx, c, false)
	}
	for _, b := range s.bound() {
		if err != nil {
			break
		}
		driver, regs := servedBy(b.spec.Device, b.dev, c.Drivers)
		if err = s.wrapFault(b, c.Drivers); err != nil {
			break
		}
		b.trace, err = s.tracing.wrap(b.spec.Name, b.dev, driver, regs)
		if s.plan.Trace.Crash == 0 && s.plan.Trace.Files[b.spec.Name] == "" {
			b.trace.SetEnabled(false) // nobody would see it
		}
		b.dev = b.trace
	}
	for _, c := range s.captures {
		if err == nil {
			err = c.keep(ctx)
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// machineOf is what carries device i.
func (s *System) machineOf(i int) machine {
	for k, g := range s.plan.groups() {
		for _, d := range g {
			if d.Name == s.bound()[i].spec.Name {
				return s.machines[k]
			}
		}
	}
	return nil
}

// serverOf makes the server of a device.
func (s *System) serverOf(b *boundDevice, drivers []*pci.Driver, m machine, group *vfiouser.Group) (*vfiouser.Server, error) {
	o := vfiouser.ServerOptions{Name: b.spec.Name, Group: group, Log: s.log}
	_, o.Registers = servedBy(b.spec.Device, b.dev, drivers)
	if r, ok := m.(interface {
		Reset(ctx context.Context, name string) error
	}); ok {
		o.Reset = func(ctx context.Context) error { return r.Reset(ctx, b.spec.Name) }
	}
	return vfiouser.NewServer(b.dev, o)
}

// tellServed says what is served where.
func (a *app) tellServed(s *System, sockets []string) error {
	var all []servedDevice
	for i, b := range s.bound() {
		all = append(all, servedDevice{b.spec.Name, b.dev.Backend(), b.dev.Address(), b.id(), sockets[i]})
	}
	if a.json {
		return a.printJSON(all)
	}
	for _, d := range all {
		fmt.Fprintf(a.stdout, "%s %s %s at %s\n", d.Name, d.Address, d.Backend, d.Socket)
	}
	_, err := fmt.Fprintln(a.stdout, "ready; Ctrl-C ends it")
	return err
}

// serveAll serves until ctx ends, or no device lives.
func (s *System) serveAll(ctx context.Context, servers []*vfiouser.Server, listeners []*net.UnixListener) error {
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, srv := range servers {
		wg.Go(func() {
			if errs[i] = srv.Serve(ctx, listeners[i]); errs[i] != nil {
				s.log.Error(errs[i].Error())
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return exitError(1) // it was said when it happened
	}
	return nil
}
