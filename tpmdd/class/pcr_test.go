package class

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/tpmdd"
)

// refusing is a TPM 2.0 that reads no PCR.
type refusing struct {
	code uint32
	err  error
	cmd  tpmdd.Header
}

func (r *refusing) Begin(context.Context) error { return nil }
func (r *refusing) End()                        {}
func (r *refusing) Send(cmd []byte) error       { r.cmd, _ = tpmdd.ParseHeader(cmd); return nil }
func (r *refusing) Cancel()                     {}
func (r *refusing) SetTimeouts(tpmdd.Timeouts)  {}
func (r *refusing) MaxCommand() int             { return tpmdd.MaxCommand }
func (r *refusing) Wait(time.Duration) error    { return nil }
func (r *refusing) Receive(p []byte) (n int, err error) {
	switch {
	case r.cmd.Code == tpmdd.CCPCRRead:
		return copy(p, tpmdd.Answer(tpmdd.TagNoSessions, r.code)), r.err
	case r.cmd.Code == tpmdd.CCGetCapability: // no banks
		return copy(p, tpmdd.Command(tpmdd.TagNoSessions, 0, 0, 0, 0, 0, tpmdd.CapPCRs, 0, 0, 0, 0)), nil
	}
	return copy(p, tpmdd.Answer(tpmdd.TagNoSessions, 0)), nil
}

// TestRefusedPCR: as many zeros as the code says, within sysfs's page; an errno where no answer came.
func TestRefusedPCR(t *testing.T) {
	tpm := &refusing{}
	c, err := tpmdd.New(t.Context(), tpm, tpmdd.Options{Name: "tpm0"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, test := range []struct {
		code uint32
		err  error
		want int
	}{{7, nil, 7}, {0x101, nil, 0x101}, {0xfffe, nil, 4095}, {7, unix.ETIME, 0}} {
		tpm.code, tpm.err = test.code, test.err
		var b bytes.Buffer
		err := pcr(c, &b, tpmdd.Bank{Alg: 4, Name: "sha1", Size: 20}, 0)
		if !errors.Is(err, test.err) || !bytes.Equal(b.Bytes(), make([]byte, test.want)) {
			t.Errorf("a PCR that is refused with %#x, %v: %d bytes, %v, want %d zeros, %v", test.code, test.err, b.Len(), err, test.want, test.err)
		}
	}
}
