package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/internal/instance"
	"github.com/ring3dev/ring3/internal/swtpm"
	"github.com/ring3dev/ring3/tpmdd"
)

// algSHA256 is TPM_ALG_SHA256.
const algSHA256 = 0x000b

// tpmCommands are those that are measured: what the kernel's tpm_tis takes for each on the same device, in
// register accesses, counted in the same way in a VM.
var tpmCommands = []struct {
	name   string
	cmd    []byte
	kernel float64
}{
	{"GetRandom(32)", tpmdd.GetRandom(tpmdd.TPM20, 32), 81},
	{"PCR_Read", tpmdd.PCRRead(algSHA256, 16), 102},
	{"PCR_Extend", tpmdd.PCRExtend(16, tpmdd.Digest{Alg: algSHA256, Sum: make([]byte, 32)}), 104},
}

// tpms measures TPM commands: their register accesses, their time at the chip and through the device files.
func tpms(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, model := range []string{"tpm-tis", "tpm-crb"} {
		if err := tpmChip(ctx, o, model, emit); err != nil {
			return err
		}
	}
	return tpmFiles(ctx, o, emit)
}

// tpmRig is a TPM of QEMU's in service.
type tpmRig struct {
	sw   *swtpm.Process
	m    *qemu.Machine
	inst pci.Instance
	chip *tpmdd.Chip
	dir  *scratch
}

// newTPM brings a TPM up; trace gets a line for each access.
func newTPM(ctx context.Context, o *Options, model string, trace *os.File) (_ *tpmRig, err error) {
	r := &tpmRig{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.dir, err = newScratch(); err != nil {
		return nil, err
	}
	if r.sw, err = swtpm.Start(swtpm.Config{Name: "tpm0", Dir: r.dir.path}); err != nil {
		return nil, err
	}
	r.m, err = qemu.Start(ctx, qemu.Config{Log: o.Log, Devices: []qemu.DeviceSpec{{Name: "tpm0", Model: model,
		TPM: &qemu.TPM{Control: r.sw.Control(), HardwareID: "MSFT0101", Trace: trace}}}})
	r.sw.CloseControl()
	if err != nil {
		return nil, r.sw.Explain(err)
	}
	dev, err := r.m.Device("tpm0")
	if err != nil {
		return nil, err
	}
	b := pci.Bind(ctx, dev, pci.Env{Name: "tpm0", Log: o.Log}, o.Drivers)
	if b.Err != nil {
		return nil, b.Err
	}
	r.inst, r.chip = b.Instance, b.Instance.(tpmdd.Instance).Chip()
	return r, nil
}

func (r *tpmRig) close() error {
	var errs []error
	if r.inst != nil {
		errs = append(errs, r.inst.Close())
	}
	if r.m != nil {
		errs = append(errs, r.m.Close())
	}
	errs = append(errs, r.sw.Close(), r.dir.remove())
	return errors.Join(errs...)
}

// tpmChip measures commands at the chip, beside swtpm's own socket.
func tpmChip(ctx context.Context, o *Options, model string, emit func(Row) error) error {
	short := strings.TrimPrefix(model, "tpm-")
	var wanted []string
	for _, c := range tpmCommands {
		wanted = append(wanted, short+" accesses "+c.name, short+" "+c.name)
	}
	if !o.wantsAny("tpm", wanted) {
		return nil
	}
	d, err := newScratch()
	if err != nil {
		return err
	}
	defer d.remove()
	lines, err := os.Create(filepath.Join(d.path, "trace"))
	if err != nil {
		return err
	}
	defer lines.Close()
	r, err := newTPM(ctx, o, model, lines)
	if err != nil {
		return err
	}
	defer r.close()
	for _, c := range tpmCommands {
		if name := short + " accesses " + c.name; model == "tpm-tis" && o.wants("tpm", name) {
			n, err := countAccesses(ctx, r, lines.Name(), c.cmd)
			if err != nil {
				return err
			}
			if err := emit(Row{Bench: "tpm", Case: name, Value: n, Unit: "acc", Limit: c.kernel, Ratio: n / c.kernel}); err != nil {
				return err
			}
		}
	}
	// Tracing costs QEMU time, so what follows has a TPM of its own.
	plain, err := newTPM(ctx, o, model, nil)
	if err != nil {
		return err
	}
	defer plain.close()
	send := func(cmd []byte) error { return tpmDone(plain.chip.Transmit(ctx, cmd)) }
	for _, c := range tpmCommands {
		if err := besideSwtpm(o, short+" "+c.name, c.cmd, send, emit); err != nil {
			return err
		}
	}
	return nil
}

// tpmDone says what is wrong with an answer.
func tpmDone(a []byte, err error) error {
	if err != nil {
		return err
	}
	if h, ok := tpmdd.ParseHeader(a); !ok || h.Code != 0 {
		return fmt.Errorf("bench: tpm: the answer is %x: %w", a, bus.ErrProtocol)
	}
	return nil
}

// countAccesses is the median of what QEMU traces of a command.
func countAccesses(ctx context.Context, r *tpmRig, trace string, cmd []byte) (float64, error) {
	count := func() int {
		b, _ := os.ReadFile(trace)
		return bytes.Count(b, []byte{'\n'})
	}
	var n []float64
	for range 21 {
		before := count()
		if err := tpmDone(r.chip.Transmit(ctx, cmd)); err != nil {
			return 0, err
		}
		// The last writes are posted; a command that is refused here flushes them.
		_, _ = r.m.Execute("query-status", nil)
		time.Sleep(2 * time.Millisecond)
		n = append(n, float64(count()-before))
	}
	return median(n), nil
}

// besideSwtpm measures a command, and the same at swtpm's socket, in turn.
func besideSwtpm(o *Options, name string, cmd []byte, send func([]byte) error, emit func(Row) error) error {
	if !o.wants("tpm", name) {
		return nil
	}
	raw, err := newRawTPM(o)
	if err != nil {
		return err
	}
	defer raw.close()
	each := func(f func([]byte) error) (float64, error) {
		n, start := 0, time.Now()
		for ; time.Since(start) < o.Time; n++ {
			if err := f(cmd); err != nil {
				return 0, err
			}
		}
		return float64(time.Since(start).Microseconds()) / float64(n), nil
	}
	var values, limits, ratios []float64
	for range o.Pairs {
		l, err := each(raw.send)
		if err != nil {
			return err
		}
		v, err := each(send)
		if err != nil {
			return err
		}
		values, limits, ratios = append(values, v), append(limits, l), append(ratios, v/l)
	}
	return emit(Row{Bench: "tpm", Case: name, Value: median(values), Unit: "us", Limit: median(limits), Ratio: median(ratios)})
}

// rawTPM is swtpm, asked by its own socket.
type rawTPM struct {
	sw  *swtpm.Process
	dir *scratch
	r   *bufio.Reader
}

func newRawTPM(o *Options) (*rawTPM, error) {
	dir, err := newScratch()
	if err != nil {
		return nil, err
	}
	sw, err := swtpm.Start(swtpm.Config{Name: "swtpm", Dir: dir.path, Direct: true})
	if err != nil {
		return nil, errors.Join(err, dir.remove())
	}
	return &rawTPM{sw: sw, dir: dir, r: bufio.NewReader(sw.Control())}, nil
}

// send is one command and its answer.
func (t *rawTPM) send(cmd []byte) error {
	if err := t.sw.Control().SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := t.sw.Control().Write(cmd); err != nil {
		return err
	}
	head, err := t.r.Peek(tpmdd.HeaderSize)
	if err != nil {
		return err
	}
	h, _ := tpmdd.ParseHeader(head)
	a := make([]byte, min(h.Length, tpmdd.MaxCommand))
	_, err = io.ReadFull(t.r, a)
	return tpmDone(a, err)
}

func (t *rawTPM) close() { _ = errors.Join(t.sw.Close(), t.dir.remove()) }

// tpmFiles measures commands through /dev/tpm0 and /dev/tpmrm0 of another process.
func tpmFiles(ctx context.Context, o *Options, emit func(Row) error) error {
	cases := []string{"dev GetRandom(32)", "rm GetRandom(32)", "rm openers=1", "rm openers=16"}
	if !o.wantsAny("tpm", cases) {
		return nil
	}
	dev, stop, err := tpmUp(ctx, o)
	if err != nil {
		return err
	}
	defer stop()
	cmd := tpmCommands[0].cmd
	for _, f := range []struct{ name, file string }{{cases[0], "tpm0"}, {cases[1], "tpmrm0"}} {
		if !o.wants("tpm", f.name) {
			continue
		}
		x, err := openRaw(filepath.Join(dev, f.file))
		if err != nil {
			return err
		}
		err = besideSwtpm(o, f.name, cmd, x.send, emit)
		if err = errors.Join(err, x.close()); err != nil {
			return err
		}
	}
	for i, n := range []int{1, 16} {
		if !o.wants("tpm", cases[2+i]) {
			continue
		}
		rate, err := openers(filepath.Join(dev, "tpmrm0"), n, o.Time*time.Duration(o.Pairs), cmd)
		if err != nil {
			return err
		}
		if err := emit(Row{Bench: "tpm", Case: cases[2+i], Value: rate, Unit: "/s"}); err != nil {
			return err
		}
	}
	return nil
}

// tpmUp runs `ring3 up` with a TPM, and says where its /dev is.
func tpmUp(ctx context.Context, o *Options) (dev string, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	name := fmt.Sprintf("bench%d", os.Getpid())
	up := exec.CommandContext(ctx, self, "up", "-i", name, "tpm0=qemu:tpm-tis")
	up.Cancel = func() error { return up.Process.Signal(unix.SIGTERM) }
	up.Stderr = o.Stderr
	out, err := up.StdoutPipe()
	if err == nil {
		err = up.Start()
	}
	if err != nil {
		return "", nil, err
	}
	stop = func() {
		_ = up.Process.Signal(unix.SIGTERM)
		_ = up.Wait()
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "is ready") {
	}
	i, err := instance.Pick(name)
	if err != nil {
		stop()
		return "", nil, err
	}
	return filepath.Join(i.Mount, "dev"), stop, nil
}

// rawFile is an open of a device file, without Go's poller, as a C program has it.
type rawFile int

func openRaw(path string) (rawFile, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("bench: tpm: opening %s: %w", path, err)
	}
	return rawFile(fd), nil
}

func (f rawFile) send(cmd []byte) error {
	if err := again(func() error { _, err := unix.Write(int(f), cmd); return err }); err != nil {
		return err
	}
	var a [tpmdd.MaxCommand]byte
	n := 0
	err := again(func() (err error) { n, err = unix.Read(int(f), a[:]); return err })
	return tpmDone(a[:max(n, 0)], err)
}

func (f rawFile) close() error { return unix.Close(int(f)) }

// again repeats a call that Go's own signals interrupted.
func again(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// openers has n opens send for a time, and gives commands a second.
func openers(path string, n int, d time.Duration, cmd []byte) (float64, error) {
	counts, errs := make([]int, n), make([]error, n)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			x, err := openRaw(path)
			if err != nil {
				errs[i] = err
				return
			}
			for ; time.Since(start) < d && errs[i] == nil; counts[i]++ {
				errs[i] = x.send(cmd)
			}
			errs[i] = errors.Join(errs[i], x.close())
		})
	}
	wg.Wait()
	sum := 0
	for _, c := range counts {
		sum += c
	}
	return float64(sum) / time.Since(start).Seconds(), errors.Join(errs...)
}
