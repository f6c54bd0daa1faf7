package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/internal/figures"
	"github.com/ring3dev/ring3/internal/instance"
	"github.com/ring3dev/ring3/internal/kernfs"
	"github.com/ring3dev/ring3/internal/klog"
	"github.com/ring3dev/ring3/internal/profile"
	"github.com/ring3dev/ring3/internal/sandbox"
)

// upFlags are what up and run have in common.
type upFlags struct {
	wires, captures []string
	taps            []string
	forwards        []string
	faults          []string
	faultArm        bool
	traces          []string
	traceFilter     string
	crashRecords    int
	profile, rt     string
	measure         string
	enforce         string
	metrics         string
	mount           string
	noMount         bool
	as              string
	supervise       string // "on", "off"; "": off
	deaths          int    // in a row, that a group is given up after; 0: maxRow
	supervised      bool   // somebody asked for it
}

func (f *upFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.wires, "wire", nil, "connect two network devices: `A-B[,lossy]`")
	c.Flags().StringArrayVar(&f.captures, "pcap", nil, "capture a network device's frames: `NAME=FILE`")
	c.Flags().StringArrayVar(&f.taps, "tap", nil, "make a network device a kernel interface: `NAME[=IFNAME][,offload=off][,gro=off][,up=on][,pktgen_drop=on][,share=N]`")
	c.Flags().StringArrayVar(&f.forwards, "forward", nil, "send what each of two network devices receives out of the other: `A-B`")
	c.Flags().StringArrayVar(&f.faults, "fault", nil, faultHelp)
	c.Flags().BoolVar(&f.faultArm, "fault-arm", false, faultArmHelp)
	c.Flags().StringArrayVar(&f.traces, "trace", nil, "trace a device's registers, interrupts and doorbells: `NAME=FILE`, pcapng (*.pcapng) or text")
	c.Flags().StringVar(&f.traceFilter, "trace-filter", "", "trace "+filterHelp)
	c.Flags().IntVar(&f.crashRecords, "crash-records", defaultCrash, "log the last `N` accesses of a device that dies")
	c.Flags().StringVar(&f.profile, "profile", profile.Default, "follow the texts of kernel `VERSION`: "+strings.Join(profile.Names(), ", "))
	c.Flags().StringVar(&f.rt, "rt", "", rtHelp)
	c.Flags().StringVar(&f.measure, "measure", "", measureHelp)
	c.Flags().StringVar(&f.enforce, "enforce", "", enforceHelp)
	c.Flags().StringVar(&f.metrics, "metrics", "", "serve figures for Prometheus at `ADDR`: :9100 is 127.0.0.1:9100; 0.0.0.0:9100 lets everybody read them")
	c.Flags().StringVar(&f.mount, "mount", "", "mount the tree at `DIR` (default: a folder below the run folder)")
}

// plan reads the devices and what the flags say of them.
func (f *upFlags) plan(devices []string) (Plan, error) {
	p, err := ParsePlan(devices, f.wires, f.captures)
	p.Arm = f.faultArm
	if err == nil {
		err = p.addTaps(f.taps)
	}
	if err == nil {
		err = p.addForwards(f.forwards)
	}
	if err == nil {
		err = p.addFaults(f.faults)
	}
	if err == nil {
		err = p.addTraces(f.traces, f.traceFilter, f.crashRecords)
	}
	if err == nil {
		err = p.addProfile(f.profile)
	}
	if err == nil {
		err = p.addMeasure(f.measure, f.enforce)
	}
	if err == nil {
		err = p.addRT(f.rt)
	}
	if err == nil {
		err = f.checkMetrics()
	}
	if err == nil && f.supervise != "" && f.supervise != "on" && f.supervise != "off" {
		err = usagef("--supervise %s: want on or off", f.supervise)
	}
	if err == nil && f.deaths < 0 {
		err = usagef("--deaths %d: want a number from 1 on", f.deaths)
	}
	return p, err
}

// addProfile adds what --profile says.
func (p *Plan) addProfile(name string) error {
	prof, err := profile.Find(name)
	if err != nil {
		return usagef("--%v", err)
	}
	p.Profile = prof.Name
	return nil
}

const devicesHelp = `A device is NAME=BACKEND:DEVICE[,option=value...]. The backend qemu takes the name of
any of QEMU's PCI device models, and of its TPMs tpm-tis and tpm-crb (tpm=1.2, state=DIR; they need
swtpm); sim has models of its own, in the process, for which nothing need be installed: edu,
pci-testdev, null, e1000, e1000-82545em, e1000e, tpm-tis, tpm-crb, and the ports below. Options go
to the driver (e1000: mac=, ring=, mtu=, itr=, queues=, bus=, weight=, flow=); qemu.KEY=VALUE and
sim.KEY=VALUE go to the model; iommu=on, with qemu, lets a device reach its own memory only.
Without devices: eth0 and eth1, both qemu:e1000e, wired.

under=PORT puts a device under a port that is named before it, on the same backend. Ports are
pcie-root-port, ioh3420 (root ports), x3130-upstream and xio3130-downstream (a switch's); sim knows
them as root-port, ioh3420, upstream, downstream too. 'ring3 plug' puts a device into an empty slot;
hotplug_mem=64M is what a port keeps for it, of each kind of memory (2M). qemu.slot=N or sim.slot=N
is the slot's number. On sim a port has more with sim.dpc=on, sim.vc=N, sim.pme=on, sim.bw=on,
sim.mrl=on, and an e1000e with sim.aer=on, sim.pme=on.

fabric:PATH,node=NAME is a node of a RapidIO fabric ('ring3 fabric'), whose rionet is a network device under this
name; host=ID makes it the host that numbers the others, window=64K shares memory with them, ids=8 and ids=16 are refused where the
fabric has others, and so is a fabric of another user than this one and root unless owner=USER names it. qemu:ivshmem-doorbell,fabric=PATH,node=NAME is one by way of a machine of QEMU's.

vfio:0000:03:00.0 and uio:0000:00:05.0 (or uio:uio0) are devices of this machine, which ring3 bind
made ready; their own options are api=group or api=cdev and noiommu=unsafe, and dma=unsafe. A
TPM that a UIO driver of the kernel's has is tpm0=uio:uio0,tpm=2.0.`

func (a *app) upCmd() *cobra.Command {
	var f upFlags
	c := &cobra.Command{
		Use:   "up [DEVICE...]",
		Short: "Bring devices up and serve their files until interrupted",
		Long:  "Bring devices up and serve their files until SIGINT or SIGTERM; then leave nothing behind.\n\n" + devicesHelp,
		Example: `  ring3 up
  ring3 up eth0=vfio:0000:03:00.0
  sudo ring3 up --as $USER rp0=uio:0000:00:05.0
  ring3 up eth0=qemu:e1000e eth1=qemu:e1000e --wire eth0-eth1 --pcap eth0=out.pcap
  ring3 up eth0=qemu:e1000,mac=02:00:00:00:00:01,ring=4096
  ring3 up rio0=fabric:/run/user/1000/lab.sock,node=pe0,host=0 --tap rio0
  ring3 up rp0=qemu:pcie-root-port eth0=qemu:e1000e,under=rp0 rp1=qemu:pcie-root-port
  ring3 up --measure tpm0 tpm0=qemu:tpm-tis,state=tpm eth0=qemu:e1000e
  ring3 up eth0=sim:e1000e,queues=2,mtu=9000 eth1=sim:e1000e --wire eth0-eth1 --trace eth0=eth0.txt`,
		RunE: func(c *cobra.Command, args []string) error {
			plan, err := f.plan(args)
			if err != nil {
				return err
			}
			f.supervised = c.Flags().Changed("supervise")
			if f.as != "" && a.passed == nil {
				return becomeUser(f.as, plan, !f.noMount)
			}
			started := time.Now()
			u, err := a.bringUp(c.Context(), plan, f)
			if err != nil {
				return err
			}
			u.announce(a.stdout, time.Since(started))
			return errors.Join(u.wait(c.Context()), u.close())
		},
	}
	f.add(c)
	c.Flags().StringVar(&f.supervise, "supervise", "on", "run the drivers in workers, which are replaced when they die: `on`, or off to debug them in this process")
	c.Flags().Lookup("supervise").NoOptDefVal = "on"
	c.Flags().IntVar(&f.deaths, "deaths", maxRow, "give a driver up that died `N` times in a row and never ran for a minute")
	c.Flags().BoolVar(&f.noMount, "no-mount", false, "serve 'ring3 get' and 'ring3 set' only")
	c.Flags().StringVar(&f.as, "as", "", "as root: open what only root may, then become `USER` for good")
	a.instanceFlag(c, "the instance's `NAME` (default: r0, r1, ...)")
	return c
}

// up is a running instance: a System, or a supervisor of Systems in workers, its tree mounted, its control socket open.
type up struct {
	in     *instance.Instance
	sys    service
	fuse   *kernfs.Server // nil without a mount
	mount  string
	server *instance.Server
	log    *klog.Ring
	// metrics are served beside; nil without --metrics.
	metrics *figures.Server
	// mounter mounts where this process cannot (--as); nil where it can.
	mounter *kernfs.Mounter
}

// bringUp starts everything, or leaves nothing.
func (a *app) bringUp(ctx context.Context, plan Plan, f upFlags) (_ *up, err error) {
	if a.name != "" {
		if err := instance.CheckName(a.name); err != nil {
			return nil, usagef("%v", err)
		}
	}
	u := &up{log: klog.New(klog.Options{Stderr: a.stderr}), mounter: a.passed.mounter()}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.close())
		}
	}()
	if err = u.listenMetrics(f.metrics); err != nil {
		return nil, err
	}
	var devices []string
	for i, d := range plan.Devices {
		// Who reads this may be somewhere else.
		for _, o := range []string{"state", "fabric"} {
			if v := d.Bus[o]; v != "" {
				if d.Bus[o], err = filepath.Abs(v); err != nil {
					return nil, fmt.Errorf("%s: %s=%s: %w", d.Name, o, v, err)
				}
			}
		}
		if d.Backend == onFabric {
			if d.Device, err = filepath.Abs(d.Device); err != nil {
				return nil, fmt.Errorf("%s: %w", d.Name, err)
			}
			plan.Devices[i].Device = d.Device
		}
		devices = append(devices, d.String())
	}
	var extra []string
	if w := plan.flags(); w != "" {
		extra = append(extra, w)
	}
	if f.measure != "" {
		extra = append(extra, "--measure "+f.measure)
	}
	if f.metrics != "" {
		extra = append(extra, "--metrics "+f.metrics)
	}
	u.in, err = instance.Create(instance.Options{Name: a.name, Version: version(), Devices: devices, Extra: extra, Measure: plan.Measure.TPM, Log: u.log.Logger()})
	if err != nil {
		return nil, err
	}
	if f.supervise == "on" {
		sandbox.Settle()
	}
	// The watcher takes some milliseconds to start; QEMU takes more.
	watching := make(chan error, 1)
	go func() { watching <- u.in.StartWatcher() }()
	var children childErrors
	files := a.passed.files()
	config := Config{Plan: plan, Drivers: a.Drivers, Services: a.Services, Log: u.log.Logger(), Keep: u.in.Info().Old(), Dir: u.in.Dir(), Stderr: a.stderr, Files: files,
		Started: func(pid int, what string) { children.add(u.in.AddChild(pid, what)) }}
	err = u.serveDevices(ctx, config, f)
	closePassed(files) // a device has its own, and ends with them
	err = errors.Join(err, children.stop(u.log.Logger()), <-watching)
	if ctx.Err() != nil {
		err = exitError(interrupted)
	}
	if err != nil {
		return nil, err
	}
	if err = u.mountTree(f); err != nil {
		return nil, err
	}
	if u.metrics != nil {
		u.metrics.Serve(u.figures, version(), u.log.Logger())
	}
	u.server, err = u.in.Serve(u.handlers())
	return u, err
}

// childErrors gathers what went wrong when children were recorded, until all is up; later it is logged.
type childErrors struct {
	mu  sync.Mutex
	err error
	log *slog.Logger
}

func (c *childErrors) add(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.log == nil {
		c.err = errors.Join(c.err, err)
	} else if err != nil {
		c.log.Warn(err.Error())
	}
}

func (c *childErrors) stop(log *slog.Logger) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log = log
	return c.err
}

// serveDevices brings the devices up: each group's in a worker of its own, or all in this process.
func (u *up) serveDevices(ctx context.Context, c Config, f upFlags) error {
	var why error
	if f.supervise == "on" {
		if why = supervisable(&c.Plan, len(c.Files) > 0); why == nil {
			s, err := newSupervisor(ctx, superviseConfig{Config: c, Args: []string{workerArg}, Deaths: f.deaths, Asked: f.supervised, Ended: func(pid int) { _ = u.in.RemoveChild(pid) }})
			if err == nil {
				u.sys = s
			}
			return err
		}
	}
	s, err := NewSystem(ctx, c)
	if err == nil {
		u.sys = s
		if why != nil {
			level := slog.LevelInfo // as ever
			if f.supervised {
				level = slog.LevelWarn
			}
			c.Log.Log(ctx, level, fmt.Sprintf("the drivers run in this process, unsupervised: %v", why))
		}
	}
	return err
}

// mountTree mounts the exported tree at the default place or at --mount.
func (u *up) mountTree(f upFlags) error {
	if f.noMount {
		return nil
	}
	dir := u.in.Tree()
	if f.mount != "" {
		abs, err := filepath.Abs(f.mount)
		if err != nil {
			return fmt.Errorf("--mount %s: %w", f.mount, err)
		}
		dir = abs
		switch err := os.Mkdir(dir, 0o700); {
		case err == nil:
			if err := u.in.AddDir(dir); err != nil {
				return err
			}
		case !errors.Is(err, fs.ErrExist):
			return fmt.Errorf("--mount %s: making the folder: %w", f.mount, errors.Unwrap(err))
		}
	}
	u.mount = dir
	var err error
	if u.fuse, err = kernfs.Mount(dir, u.sys.Tree(), kernfs.Options{Log: u.log.Logger(), Guard: true, Mounter: u.mounter}); err != nil {
		return err
	}
	return u.in.AddMount(dir)
}

// announce tells people what is there.
func (u *up) announce(w io.Writer, took time.Duration) {
	for _, d := range u.sys.Devices() {
		fmt.Fprintln(w, d.line())
	}
	if u.fuse != nil {
		fmt.Fprintf(w, "tree: %s\n", u.mount)
	}
	if u.metrics != nil {
		fmt.Fprintf(w, "metrics: %s\n", u.metrics.URL())
	}
	fmt.Fprintf(w, "%s is ready after %d ms; 'ring3 shell' enters it, Ctrl-C ends it\n", u.in.Name(), took.Milliseconds())
}

// wait blocks until ctx ends, or every device is gone: exit status 1.
func (u *up) wait(ctx context.Context) error {
	var unmounted <-chan struct{}
	if u.fuse != nil {
		unmounted = u.fuse.Done()
	}
	select {
	case <-ctx.Done():
		return nil
	case <-u.sys.Done():
		return exitError(1) // why was said when it happened
	case <-unmounted:
		return fmt.Errorf("the tree at %s was unmounted by somebody else", u.mount)
	}
}

// close takes everything down, in reverse.
func (u *up) close() error {
	var errs []error
	if u.metrics != nil {
		errs = append(errs, u.metrics.Close())
	}
	if u.server != nil {
		errs = append(errs, u.server.Close())
	}
	// The generator stops first, so that nobody waits in a file for its end.
	if u.sys != nil {
		u.sys.Stop()
	}
	if u.fuse != nil {
		errs = append(errs, u.fuse.Unmount())
		if u.in != nil {
			errs = append(errs, u.in.RemoveMount(u.mount))
		}
	}
	if u.sys != nil {
		errs = append(errs, u.sys.Close())
		if u.sys.faultsUnmade() {
			errs = append(errs, exitError(1)) // which one was said; a test that it was for has tested nothing
		}
	}
	if u.mounter != nil {
		errs = append(errs, u.mounter.Close())
	}
	if u.in != nil {
		errs = append(errs, u.in.Close())
	}
	return errors.Join(errs...)
}
