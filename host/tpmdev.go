package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/devfs"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/internal/sockpath"
	"github.com/ring3dev/ring3/internal/swtpm"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/chardev"
	"github.com/ring3dev/ring3/tpmdd/class"
	"github.com/ring3dev/ring3/tpmdd/measure"
	"github.com/ring3dev/ring3/tpmdd/rm"
)

// isTPM says whether a device is a TPM, as far as its backend knows before it runs.
func isTPM(d DeviceSpec) bool {
	switch d.Backend {
	case "qemu", "sim":
		return strings.HasPrefix(d.Device, "tpm-")
	case "uio":
		return d.Bus["tpm"] != ""
	}
	return false
}

// tpmIDs are what firmware calls a TPM, by family.
var tpmIDs = map[string]string{"": "MSFT0101", "2.0": "MSFT0101", "1.2": "PNP0C31"}

// tpmName is what a TPM is called: the kernel's tools know no other names.
var tpmName = regexp.MustCompile(`^tpm(0|[1-9][0-9]?)$`)

// checkTPM checks what only a TPM has, and that nothing else has it.
func checkTPM(d DeviceSpec) error {
	switch {
	case !isTPM(d) && d.Backend == "qemu" && d.Bus["tpm"]+d.Bus["state"] != "":
		return usagef("device %s: tpm= and state= are options of qemu:tpm-tis and qemu:tpm-crb", d.Name)
	case !isTPM(d) && d.Backend == "vfio" && tpmName.MatchString(d.Name):
		return usagef("device %s: a TPM is no PCI function, and VFIO has none: on hardware it is uio:uioN,tpm=2.0, where the platform has a UIO driver with its map (docs/tpm.md)", d.Name)
	case !isTPM(d):
		return nil
	case !tpmName.MatchString(d.Name):
		return usagef("device %s: a TPM is named tpm0 to tpm99", d.Name)
	case d.Backend == "qemu" && !qemu.IsTPM(d.Device):
		return usagef("device %s: model %q: the TPMs of this bus are tpm-tis and tpm-crb", d.Name, d.Device)
	case d.IOMMU:
		return usagef("device %s: a TPM masters no bus: iommu=on has nothing to confine", d.Name)
	case d.Device == "tpm-crb" && d.Bus["tpm"] == "1.2":
		return usagef("device %s: a TPM 1.2 has no command response buffer: use qemu:tpm-tis", d.Name)
	}
	return nil
}

// tpmMachine is a QEMU with a TPM, and the swtpm behind it.
type tpmMachine struct {
	machine
	sw  *swtpm.Process
	dir string // to be removed; "": the state is kept
}

// tpmOf says what a QEMU's TPM is called. Its address is numbered here: a backend counts in each machine, and each TPM is in a machine of its own.
func (s *System) tpmOf(q *qemu.Config, d DeviceSpec) {
	q.Devices[len(q.Devices)-1].TPM = &qemu.TPM{HardwareID: tpmIDs[d.Bus["tpm"]], Number: s.numberOf(d.Name, aTPM)}
}

// startEmulator starts swtpm.
func (m *tpmMachine) startEmulator(c Config, d DeviceSpec) (err error) {
	state := d.Bus["state"]
	if state == "" {
		if m.dir, err = os.MkdirTemp(c.Dir, d.Name+"-state-"); err != nil {
			return fmt.Errorf("%s: making a folder for its state: %w", d.Name, err)
		}
		state = m.dir
	}
	sc := swtpm.Config{Name: d.Name, Dir: state, V12: d.Bus["tpm"] == "1.2"}
	if c.Started != nil {
		sc.Started = func(pid int) { c.Started(pid, "swtpm") }
	}
	m.sw, err = swtpm.Start(sc)
	return err
}

// planTPM starts swtpm, then QEMU.
func (s *System) planTPM(c Config, d DeviceSpec, q qemu.Config) starter {
	s.tpmOf(&q, d)
	return func(ctx context.Context) (_ machine, err error) {
		m := &tpmMachine{}
		defer func() {
			if err != nil {
				err = errors.Join(err, m.Close())
			}
		}()
		if err := m.startEmulator(c, d); err != nil {
			return nil, err
		}
		q.Devices[len(q.Devices)-1].TPM.Control = m.sw.Control()
		started, err := qemu.Start(ctx, q)
		m.sw.CloseControl()
		if err != nil {
			return nil, m.sw.Explain(err)
		}
		m.machine = started
		go s.watchEmulator(m)
		return m, nil
	}
}

// watchEmulator tells of an swtpm that ended before its QEMU.
func (s *System) watchEmulator(m *tpmMachine) {
	if endedAlone(m.sw, m.Done()) {
		s.log.Error(m.sw.End())
	}
}

// togetherWait is how much later the end of a QEMU may be noticed than that of its swtpm, which ends with it.
const togetherWait = time.Second

// endedAlone waits for the end of an swtpm or its QEMU, and says whether that of swtpm came by itself.
func endedAlone(sw *swtpm.Process, qemu <-chan struct{}) bool {
	select {
	case <-qemu:
		return false
	case <-sw.Done():
	}
	if sw.Err() == nil {
		select {
		case <-qemu:
		case <-time.After(togetherWait):
		}
	}
	select {
	case <-qemu:
		return false
	default:
		return true
	}
}

// Close ends QEMU, then swtpm, which writes its state until then.
func (m *tpmMachine) Close() error {
	var err error
	if m.machine != nil {
		err = m.machine.Close()
	}
	err = errors.Join(err, m.sw.Close())
	if m.dir != "" {
		err = errors.Join(err, os.RemoveAll(m.dir))
	}
	return err
}

// tpmNode is what stands on a TPM.
type tpmNode struct {
	chip    *tpmdd.Chip
	files   *chardev.Device
	managed atomic.Bool // its resource manager was used
	sockets []*net.UnixListener
	served  sync.WaitGroup
}

// startTPM takes a TPM that has a driver into service.
func (s *System) startTPM(ctx context.Context, b *boundDevice, chip *tpmdd.Chip) error {
	b.tpm = &tpmNode{chip: chip}
	if b.emulator != nil && chip.Family() == tpmdd.TPM12 {
		if err := s.createEK(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", b.spec.Name, err)
		}
	}
	var spaces *rm.Manager
	if chip.Family() == tpmdd.TPM20 {
		var err error
		if spaces, err = rm.New(ctx, chip, s.log); err != nil {
			return fmt.Errorf("%s: starting the resource manager: %w", b.spec.Name, err)
		}
	}
	warn := func(line string) { s.log.Warn("tpm " + b.spec.Name + ": " + line) }
	o := chardev.Options{Warn: warn, Log: s.log}
	if s.plan.Measure.TPM == b.spec.Name {
		if err := s.measureStart(ctx, b); err != nil {
			return err
		}
		o.Refuse = measure.Refuse(s.measurer.PCR(), chip.Family())
	}
	b.tpm.files = chardev.New(chip, spaces, o)
	return nil
}

// createEK makes the endorsement key of an emulated TPM 1.2 that has none. A real one comes with it.
func (s *System) createEK(ctx context.Context, b *boundDevice) error {
	made := false
	err := b.tpm.chip.Do(ctx, func(x tpmdd.Exchanger) (err error) {
		made, err = tpmdd.CreateEK(ctx, x)
		return err
	})
	var refused *tpmdd.TPMError // it is disabled, or owned, and has one
	if err != nil && !errors.As(err, &refused) {
		return err
	}
	if made {
		s.log.Info(fmt.Sprintf("%s: the emulator's endorsement key was made", b.spec.Name))
	}
	return nil
}

// rmName is what the device of the resource manager of a TPM is called.
func rmName(name string) string { return "tpmrm" + strings.TrimPrefix(name, "tpm") }

// exportTPMs fills dev/ and sys/ with what stands on TPMs, and serves their sockets in dir.
func (s *System) exportTPMs(root *node.Dir, dir string) error {
	dev, sys := root.MkdirAll("dev"), root.MkdirAll("sys")
	first := s.numbers.base.TPMs == 0
	for _, b := range s.bound() {
		if b.tpm == nil {
			continue
		}
		class.Add(sys, b.tpm.chip, s.placeOf(b))
		opens := map[string]func(flags int) (*chardev.File, error){b.spec.Name: b.tpm.files.OpenTPM}
		if b.tpm.chip.Family() == tpmdd.TPM20 {
			opens[rmName(b.spec.Name)] = func(flags int) (*chardev.File, error) {
				b.tpm.managed.Store(true)
				s.touch()
				return b.tpm.files.OpenRM(flags)
			}
		}
		for name, f := range opens {
			open := streams(f)
			file := devfs.Node(0o600, open)
			file.OneOpen = name == b.spec.Name // opens of the resource manager have nothing in common
			dev.Put(name, file)
			if dir == "" {
				continue
			}
			path := filepath.Join(dir, name+".sock")
			if err := b.tpm.serve(path, open, s.log); err != nil {
				return fmt.Errorf("%s: %w", b.spec.Name, err)
			}
			dev.Put(name+".sock", &devfs.Link{Target: path})
		}
		if first {
			dev.Put("hwrng", devfs.Node(0o600, b.tpm.openRandom))
			class.AddRandom(sys, b.spec.Name)
			first = false
		}
	}
	return nil
}

// streams is an open as devices and sockets take it.
func streams(open func(flags int) (*chardev.File, error)) func(flags int) (devfs.Stream, error) {
	return func(flags int) (devfs.Stream, error) {
		x, err := open(flags)
		if err != nil {
			return nil, err // and no Stream that is not nil
		}
		return x, nil
	}
}

// serve serves a device at a Unix socket too.
func (t *tpmNode) serve(path string, open func(flags int) (devfs.Stream, error), log *slog.Logger) error {
	short, done, err := sockpath.Short(path)
	if err != nil {
		return fmt.Errorf("serving %s: %w", path, err)
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return fmt.Errorf("serving %s: %w", path, errors.Unwrap(err)) // err names the socket again
	}
	l.SetUnlinkOnClose(false) // by its real name, below
	t.sockets = append(t.sockets, l)
	t.served.Go(func() {
		err := chardev.ServeSocket(l, func() (devfs.Stream, error) { return open(unix.O_RDWR) }, log)
		if err != nil {
			log.Error(fmt.Sprintf("serving %s: %v", path, err))
		}
		_ = os.Remove(path) // or it goes with its folder
	})
	return nil
}

// unlisten ends the sockets for whoever comes. The chip is its driver's.
func (t *tpmNode) unlisten() {
	if t == nil {
		return
	}
	for _, l := range t.sockets {
		_ = l.Close()
	}
}

// wait waits until nobody is served any more.
func (t *tpmNode) wait() {
	if t != nil {
		t.served.Wait()
	}
}

// placeOf says where a TPM stands in /sys, as the kernel does: with a FIFO on the platform bus or, a TPM 1.2, among Plug and
// Play devices; with a command response buffer in the ACPI namespace.
func (s *System) placeOf(b *boundDevice) class.Place {
	p := class.Place{Name: b.spec.Name, Bus: "platform", Driver: b.driver.Name, ID: bus.HardwareIDs(b.dev)[0]}
	dir := "/devices/platform/"
	switch {
	case b.tpm.chip.Family() == tpmdd.TPM12:
		p.Bus, p.Device = "pnp", "/devices/pnp0/"+freePnP(b.spec.Name)
		if r, err := b.dev.Region(0); err == nil {
			p.Registers = r.Info()
		}
		return p
	case b.driver.Name == "tpm_crb":
		p.Bus, dir = "acpi", "/devices/LNXSYSTM:00/LNXSYBUS:00/"
	}
	p.Device = dir + s.freeInstance(b, p.ID)
	return p
}

// freeInstance is what a device is called that firmware calls id: NN of "id:NN" is the first that neither the machine has, whose
// own TPM then stays whole beside it, nor a TPM before it.
func (s *System) freeInstance(b *boundDevice, id string) string {
	taken := map[string]bool{}
	for name := range strings.SplitSeq(s.facts.Firmware, " ") {
		taken[name] = true
	}
	for _, other := range s.bound() {
		if other.tpm == nil || other.tpm.chip.Family() == tpmdd.TPM12 {
			continue
		}
		n := s.numbers.base.TPMs
		for taken[fmt.Sprintf("%s:%02x", id, n)] {
			n++
		}
		name := fmt.Sprintf("%s:%02x", id, n)
		if other == b {
			return name
		}
		taken[name] = true
	}
	return b.dev.Address()
}

// freePnP is a number among the machine's Plug and Play devices that the kernel will hardly use.
func freePnP(name string) string {
	n, _ := strconv.Atoi(strings.TrimPrefix(name, "tpm"))
	return fmt.Sprintf("00:%02x", 0xf0-n)
}

// randomFile is an open of /dev/hwrng.
type randomFile struct{ chip *tpmdd.Chip }

func (t *tpmNode) openRandom(int) (devfs.Stream, error) { return randomFile{t.chip}, nil }

// Read gives what one command gives; who wants more reads on.
func (f randomFile) Read(ctx context.Context, p []byte, _ int) (int, error) {
	p = p[:min(len(p), 128)]
	n, err := tpmdd.Random(ctx, f.chip, f.chip.Family(), p)
	if n > 0 {
		return n, nil
	}
	var refused *tpmdd.TPMError
	if errors.As(err, &refused) {
		f.chip.Complain(err)
		err = fmt.Errorf("%w (%w)", unix.EIO, err)
	}
	return 0, err
}

func (f randomFile) Write(context.Context, []byte, int) (int, error) { return 0, unix.EBADF }
func (f randomFile) Close() error                                    { return nil }
