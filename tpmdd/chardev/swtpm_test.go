package chardev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/rm"
	"github.com/ring3dev/ring3/tpmdd/swtpmtest"
)

func device(t testing.TB, family tpmdd.Family, opt Options) *Device {
	t.Helper()
	tpm := swtpmtest.Start(t, family)
	if family != tpmdd.TPM20 {
		return New(tpm, nil, opt)
	}
	m, err := rm.New(t.Context(), tpm, nil)
	if err != nil {
		t.Fatal(err)
	}
	return New(tpm, m, opt)
}

// rwc is a File as a program has it.
type rwc struct {
	f     *File
	flags int
}

func (r rwc) Read(p []byte) (int, error)  { return r.f.Read(context.Background(), p, r.flags) }
func (r rwc) Write(p []byte) (int, error) { return r.f.Write(context.Background(), p, r.flags) }
func (r rwc) Close() error                { return r.f.Close() }

func openFile(t testing.TB, open func(int) (*File, error), flags int) transport.TPM {
	t.Helper()
	f, err := open(flags)
	if err != nil {
		t.Fatal(err)
	}
	tpm := transport.FromReadWriteCloser(rwc{f, flags})
	t.Cleanup(func() { tpm.Close() })
	return tpm
}

var srk = tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}

func TestSwtpm(t *testing.T) {
	bustest.NoLeaks(t)
	d := device(t, tpmdd.TPM20, Options{})
	for name, flags := range map[string]int{"blocking": 0, "O_NONBLOCK": unix.O_NONBLOCK} {
		t.Run(name, func(t *testing.T) {
			raw, own := openFile(t, d.OpenTPM, flags), openFile(t, d.OpenRM, flags)
			for what, c := range map[string]struct {
				tpm  transport.TPM
				want tpm2.TPMHandle
			}{"tpm0": {raw, 0x80000000}, "tpmrm0": {own, 0x80ffffff}} {
				rsp, err := srk.Execute(c.tpm)
				if err != nil || rsp.ObjectHandle != c.want {
					t.Fatalf("%s: CreatePrimary = %v, %v, want 0x%x", what, rsp, err, c.want)
				}
				if _, err := (tpm2.ReadPublic{ObjectHandle: rsp.ObjectHandle}).Execute(c.tpm); err != nil {
					t.Errorf("%s: ReadPublic = %v", what, err)
				}
			}
			if _, err := (tpm2.FlushContext{FlushHandle: tpm2.TPMHandle(0x80000000)}).Execute(own); !errors.Is(err, unix.EINVAL) {
				t.Errorf("flushing another's object = %v, want EINVAL", err)
			}
			if _, err := (tpm2.FlushContext{FlushHandle: tpm2.TPMHandle(0x80000000)}).Execute(raw); err != nil {
				t.Errorf("flushing its own object = %v", err)
			}
		})
	}
}

func TestSwtpm12(t *testing.T) {
	d := device(t, tpmdd.TPM12, Options{})
	f, err := d.OpenTPM(0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(t.Context(), tpmdd.Command(tpmdd.TagRequest12, 0x46, 0, 0, 0, 8), 0); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 99)
	n, err := f.Read(t.Context(), p, 0)
	if h, _ := tpmdd.ParseHeader(p); err != nil || n != 22 || h.Tag != tpmdd.TagResponse12 || h.Code != 0 {
		t.Errorf("GetRandom = % x, %v, want 8 random bytes", p[:n], err)
	}
	if _, err := d.OpenRM(0); !errors.Is(err, unix.ENODEV) {
		t.Errorf("OpenRM(TPM 1.2) = %v, want ENODEV", err)
	}
}

// A policy that keeps PCR 16 as it is.
func TestSwtpmRefuse(t *testing.T) {
	d := device(t, tpmdd.TPM20, Options{Refuse: func(cmd []byte) []byte {
		if h, _ := tpmdd.ParseHeader(cmd); h.Code == uint32(tpm2.TPMCCPCRExtend) && len(cmd) > 13 && cmd[13] == 16 {
			return tpmdd.Answer(tpmdd.TagNoSessions, uint32(tpm2.TPMRCLocality))
		}
		return nil
	}})
	for _, open := range []func(int) (*File, error){d.OpenTPM, d.OpenRM} {
		tpm := openFile(t, open, 0)
		extend := func(pcr tpm2.TPMHandle) error {
			_, err := tpm2.PCRExtend{
				PCRHandle: tpm2.AuthHandle{Handle: pcr, Auth: tpm2.PasswordAuth(nil)},
				Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
					{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)},
				}},
			}.Execute(tpm)
			return err
		}
		if err := extend(16); !errors.Is(err, tpm2.TPMRCLocality) {
			t.Errorf("PCR_Extend(16) = %v, want TPM_RC_LOCALITY", err)
		}
		if err := extend(17 + 6); err != nil {
			t.Errorf("PCR_Extend(23) = %v", err)
		}
	}
}

// Many programs behind /dev/tpmrm0's socket; a client that makes a connection a command behind /dev/tpm0's.
func TestSwtpmSockets(t *testing.T) {
	bustest.NoLeaks(t)
	d := device(t, tpmdd.TPM20, Options{})
	own := serve(t, func() (*File, error) { return d.OpenRM(0) })
	raw := serve(t, tpmOpener(d))
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			if err := overSocket(t, own, i); err != nil {
				t.Errorf("program %d: %v", i, err)
			}
		})
	}
	wg.Wait()

	tpm, err := linuxudstpm.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	for i := range 50 {
		if _, err := (tpm2.GetRandom{BytesRequested: 8}).Execute(tpm); err != nil {
			t.Fatalf("command %d, each on a connection of its own: %v", i, err)
		}
	}
	rsp, err := srk.Execute(tpm)
	if err != nil || rsp.ObjectHandle != 0x80000000 {
		t.Errorf("CreatePrimary = %v, %v, want 0x80000000: nothing of others is left", rsp, err)
	}
}

// overSocket is one program: it fills its three slots and finds in them what it put there.
func overSocket(t testing.TB, path string, id int) error {
	tpm := transport.FromReadWriter(struct{ io.ReadWriter }{dial(t, path)})
	var names [3]string
	for i := range names {
		public := tpm2.ECCSRKTemplate
		x := make([]byte, 32)
		x[0], x[1] = byte(id), byte(i)
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		})
		rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(public)}.Execute(tpm)
		if err != nil {
			return err
		}
		names[i] = string(rsp.Name.Buffer)
	}
	for range 5 {
		for i, name := range names {
			rsp, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(0x80ffffff - i)}.Execute(tpm)
			if err != nil {
				return err
			}
			if string(rsp.Name.Buffer) != name {
				return fmt.Errorf("object %d is another's", i)
			}
		}
	}
	return nil
}
