package tpmdd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu/qemutest"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/crb"
	"github.com/ring3dev/ring3/tpmdd/tis"
)

// drivers are those that a program has.
var drivers = []*pci.Driver{tis.Driver, crb.Driver}

// rig is a TPM of QEMU's in service.
type rig struct {
	*qemutest.TPM
	inst pci.Instance
	*tpmdd.Chip
}

// kinds are the devices that tests run on.
var kinds = []struct {
	name    string
	c       qemutest.TPMConfig
	options map[string]string
}{
	{"tis", qemutest.TPMConfig{}, nil},
	{"tis-polled", qemutest.TPMConfig{}, map[string]string{"interrupts": "off"}},
	{"crb", qemutest.TPMConfig{Model: "tpm-crb"}, nil},
	{"tis-1.2", qemutest.TPMConfig{V12: true}, nil},
}

// bring takes a TPM into service.
func bring(t *testing.T, c qemutest.TPMConfig, options map[string]string) *rig {
	t.Helper()
	r := &rig{TPM: qemutest.OpenTPM(t, c)}
	b := pci.Bind(t.Context(), r.Device, pci.Env{Name: "tpm0", Log: qemutest.Log(t), Options: options}, drivers)
	if b.Err != nil {
		t.Fatal(b.Err)
	}
	r.inst, r.Chip = b.Instance, b.Instance.(tpmdd.Instance).Chip()
	t.Cleanup(func() { _ = b.Instance.Close() })
	return r
}

// skipWaits skips what waits for seconds until a bound is over, where the same runs elsewhere (hack/test: with the race detector).
func skipWaits(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("waits for the ends of timeouts")
	}
}

// random is GetRandom of n bytes.
func random(f tpmdd.Family, n uint16) []byte { return tpmdd.GetRandom(f, n) }

// works says what is wrong with a chip that should answer.
func (r *rig) works(ctx context.Context) error {
	a, err := r.Transmit(ctx, random(r.Family(), 32))
	if err != nil {
		return err
	}
	if h, _ := tpmdd.ParseHeader(a); h.Code != 0 || len(a) < 44 {
		return fmt.Errorf("GetRandom answers %x", a)
	}
	return nil
}

// longCommand is TPM2_CreatePrimary of an RSA key, which takes swtpm a good while.
func longCommand() []byte {
	p := []byte{0x40, 0, 0, 1, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0}
	p = append(p, 0, 4, 0, 0, 0, 0) // no authorization, no data
	// storage key: RSA, SHA-256, restricted decryption, AES-128-CFB, null scheme, 2048 bits, default exponent, no unique
	public := []byte{0, 1, 0, 0x0b, 0, 3, 0, 0x72, 0, 0, 0, 6, 0, 0x80, 0, 0x43, 0, 0x10, 8, 0, 0, 0, 0, 0, 0, 0}
	p = append(p, 0, byte(len(public)))
	p = append(p, public...)
	p = append(p, 0, 0, 0, 0, 0, 0) // no outside info, no PCRs
	return tpmdd.Command(tpmdd.TagSessions, tpmdd.CCCreatePrimary, p...)
}

func TestQEMU(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			r := bring(t, k.c, k.options)
			want := tpmdd.TPM20
			if k.c.V12 {
				want = tpmdd.TPM12
			}
			id := r.Identity()
			if id.Family != want || id.PCRs != tpmdd.PCRs || len(id.Banks) == 0 {
				t.Errorf("Identity() = %+v, want family %v", id, want)
			}
			if err := r.works(t.Context()); err != nil {
				t.Error(err)
			}
			for _, b := range id.Banks {
				p, err := tpmdd.ReadPCR(t.Context(), r, id.Family, b, 10)
				if err != nil || !bytes.Equal(p, make([]byte, b.Size)) {
					t.Errorf("ReadPCR(%s, 10) = %x, %v, want zeros", b.Name, p, err)
				}
			}
			// Everything of a command's own length that is wrong is told before anything is sent.
			for _, c := range []struct {
				cmd  []byte
				want unix.Errno
			}{
				{nil, unix.EINVAL}, {make([]byte, 9), unix.EINVAL}, {make([]byte, 10), unix.ENODATA},
				{[]byte{0x80, 1, 0, 0, 0, 9, 0, 0, 1, 0x7b}, unix.EINVAL}, {[]byte{0x80, 1, 0, 0, 0, 11, 0, 0, 1, 0x7b}, unix.EINVAL},
				{append([]byte{0x80, 1, 0, 0, 0x10, 1, 0, 0, 1, 0x7b}, make([]byte, 4097)...), unix.E2BIG},
				{[]byte{0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0x7b}, unix.E2BIG},
			} {
				if a, err := r.Transmit(t.Context(), c.cmd); !errors.Is(err, c.want) {
					t.Errorf("Transmit(%x) = %x, %v, want %v", c.cmd[:min(len(c.cmd), 16)], a, err, c.want)
				}
			}
			// What the TPM itself finds wrong is an answer.
			for _, cmd := range [][]byte{
				tpmdd.Command(tpmdd.TagNoSessions, 0x1234), tpmdd.Command(0xabcd, 0x1234, 1, 2, 3),
				tpmdd.Command(tpmdd.TagNoSessions, 0x1234, make([]byte, 3000)...),
			} {
				a, err := r.Transmit(t.Context(), cmd)
				if h, ok := tpmdd.ParseHeader(a); err != nil || !ok || h.Code == 0 {
					t.Errorf("Transmit(%x) = %x, %v, want an error code", cmd[:10], a, err)
				}
			}
			if err := r.works(t.Context()); err != nil {
				t.Error(err)
			}
			if err := r.inst.Close(); err != nil {
				t.Error(err)
			}
			if _, err := r.Transmit(t.Context(), random(want, 8)); !errors.Is(err, unix.EPIPE) || !errors.Is(err, bus.ErrClosed) {
				t.Errorf("Transmit after Close: %v, want EPIPE and ErrClosed", err)
			}
		})
	}
}

// TestSuspend: a suspended chip is nobody's, and afterwards has what it had.
func TestSuspend(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			r := bring(t, k.c, k.options)
			power := r.inst.(bus.PowerHandler)
			if err := power.Suspend(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := r.works(t.Context()); !errors.Is(err, unix.EPIPE) {
				t.Errorf("while suspended: %v, want EPIPE", err)
			}
			if err := power.Resume(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := r.works(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestQueue: who waits may stop waiting, and a sequence is not interrupted.
func TestQueue(t *testing.T) {
	r := bring(t, qemutest.TPMConfig{}, nil)
	held, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_ = r.Do(t.Context(), func(tpmdd.Exchanger) error { close(held); time.Sleep(50 * time.Millisecond); return nil })
	}()
	<-held
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if err := r.works(ctx); !errors.Is(err, unix.EINTR) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for a chip that is kept: %v, want EINTR", err)
	}
	if err := r.works(t.Context()); err != nil {
		t.Error(err)
	}
	<-done
	var kept tpmdd.Exchanger
	_ = r.Do(t.Context(), func(x tpmdd.Exchanger) error { kept = x; return nil })
	if _, err := kept.Transmit(t.Context(), random(tpmdd.TPM20, 8)); !errors.Is(err, unix.EPIPE) {
		t.Errorf("a kept Exchanger, used later: %v, want EPIPE", err)
	}
}

// TestCancel: a command in flight is cancelled, and the next one works.
func TestCancel(t *testing.T) {
	for _, k := range kinds[:3] {
		t.Run(k.name, func(t *testing.T) {
			r := bring(t, k.c, k.options)
			r.Cancel() // of nothing
			go func() {
				time.Sleep(10 * time.Millisecond)
				r.Cancel()
			}()
			a, err := r.Transmit(t.Context(), longCommand())
			// swtpm looks whether it is to stop between two candidates for a prime; it may have been done just then.
			if h, _ := tpmdd.ParseHeader(a); !errors.Is(err, unix.ECANCELED) && (err != nil || h.Code != 0 && h.Code != 0x909) {
				t.Errorf("a cancelled command: %x, %v, want ECANCELED, or done already", a, err)
			}
			if err := r.works(t.Context()); err != nil {
				t.Errorf("after a cancelled command: %v", err)
			}
		})
	}
}

// TestEmulatorDies: QEMU answers for a dead swtpm, in TPM 1.2's words, and the reader gets that.
func TestEmulatorDies(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			r := bring(t, k.c, k.options)
			cmd := longCommand()
			if k.c.V12 {
				cmd = random(tpmdd.TPM12, 32)
				_ = r.Emulator.Signal(unix.SIGKILL)
			} else {
				go func() {
					time.Sleep(5 * time.Millisecond)
					_ = r.Emulator.Signal(unix.SIGKILL)
				}()
			}
			// The CRB also says that the TPM has failed, which the kernel tells instead.
			dead := func(a []byte, err error) bool {
				if k.c.Model == "tpm-crb" {
					return errors.Is(err, unix.EIO)
				}
				return fmt.Sprintf("%x", a) == "00c40000000a00000009"
			}
			a, err := r.Transmit(t.Context(), cmd)
			if !dead(a, err) && (err != nil || len(a) < 100) {
				t.Errorf("a command whose emulator was killed: %x, %v, want QEMU's answer for it", a, err)
			}
			if a, err = r.Transmit(t.Context(), cmd); !dead(a, err) {
				t.Errorf("the next command: %x, %v, want QEMU's answer for it", a, err)
			}
		})
	}
}

// TestEmulatorStops: a stopped swtpm stops QEMU too, as soon as QEMU asks it for anything, and no wait is longer than
// the command may take.
func TestEmulatorStops(t *testing.T) {
	skipWaits(t)
	for _, k := range kinds[:3] {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			r := bring(t, k.c, k.options)
			_ = r.Emulator.Signal(unix.SIGSTOP)
			defer func() { _ = r.Emulator.Signal(unix.SIGCONT) }()
			begin := time.Now()
			err := r.works(t.Context())
			if !errors.Is(err, unix.ETIME) && !errors.Is(err, unix.EPIPE) {
				t.Errorf("a command whose emulator stands still: %v, want ETIME, or EPIPE", err)
			}
			t.Logf("after %v: %v", time.Since(begin), err)
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("it took %v, want the command's 2 s, and the bus's own bound", took)
			}
		})
	}
}

// TestMachineDies: QEMU is the device, and its end is the device's.
func TestMachineDies(t *testing.T) {
	for _, k := range kinds[:3] {
		t.Run(k.name, func(t *testing.T) {
			r := bring(t, k.c, k.options)
			go func() {
				time.Sleep(5 * time.Millisecond)
				_ = unix.Kill(r.Machine.PID(), unix.SIGKILL)
			}()
			a, err := r.Transmit(t.Context(), longCommand())
			if (!errors.Is(err, unix.EPIPE) || !errors.Is(err, bus.ErrGone)) && len(a) < 100 {
				t.Errorf("a command whose QEMU was killed: %x, %v, want EPIPE and ErrGone", a, err)
			}
			<-r.Device.Done()
			if err := r.works(t.Context()); !errors.Is(err, unix.EPIPE) || !errors.Is(err, bus.ErrGone) {
				t.Errorf("the next command: %v, want EPIPE and ErrGone", err)
			}
			if err := r.inst.Close(); err != nil {
				t.Errorf("Close() = %v, want nil of a device that is gone", err)
			}
		})
	}
}

// TestCloseInFlight: a command that never ends does not keep the process for its duration, which may be five minutes.
func TestCloseInFlight(t *testing.T) {
	skipWaits(t)
	for _, k := range kinds[:3] {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			r := bring(t, k.c, k.options)
			_ = r.Emulator.Signal(unix.SIGSTOP)
			defer func() { _ = r.Emulator.Signal(unix.SIGCONT) }()
			done := make(chan error, 1)
			go func() {
				_, err := r.Transmit(t.Context(), longCommand())
				done <- err
			}()
			time.Sleep(50 * time.Millisecond)
			begin := time.Now()
			_ = r.inst.Close()
			if took := time.Since(begin); took > 25*time.Second {
				t.Errorf("Close() took %v with a command in flight, want 5 s for it and 5 s for its end", took)
			}
			_ = r.Device.Close()
			if err := <-done; err == nil {
				t.Error("the command: no error, want one")
			}
		})
	}
}

// TestResumeAwake: it changes nothing for a command in flight.
func TestResumeAwake(t *testing.T) {
	r := bring(t, qemutest.TPMConfig{}, nil)
	done := make(chan error, 1)
	go func() {
		_, err := r.Transmit(t.Context(), longCommand())
		done <- err
	}()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return
		case <-time.After(time.Millisecond):
			if err := r.inst.(bus.PowerHandler).Resume(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}
