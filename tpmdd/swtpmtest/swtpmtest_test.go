package swtpmtest_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/swtpmtest"
)

// random asks for 8 random bytes, in both languages.
var random = map[tpmdd.Family][]byte{
	tpmdd.TPM12: tpmdd.Command(tpmdd.TagRequest12, 0x46, 0, 0, 0, 8),
	tpmdd.TPM20: tpmdd.Command(tpmdd.TagNoSessions, 0x17b, 0, 8),
}

func TestStart(t *testing.T) {
	bustest.NoLeaks(t)
	for family, cmd := range random {
		t.Run(family.String(), func(t *testing.T) {
			tpm := swtpmtest.Start(t, family)
			if got := tpm.Family(); got != family {
				t.Errorf("Family() = %v, want %v", got, family)
			}
			fi, err := os.Stat(filepath.Dir(tpm.Path()))
			if err != nil || fi.Mode().Perm() != 0o700 {
				t.Errorf("Stat(its folder) = %v, %v, want mode 0700", fi.Mode(), err)
			}
			rsp, err := tpm.Transmit(t.Context(), cmd)
			if h, _ := tpmdd.ParseHeader(rsp); err != nil || h.Code != 0 {
				t.Errorf("Transmit(GetRandom) = % x, %v, want random bytes", rsp, err)
			}
			if _, err := tpm.Transmit(t.Context(), cmd[:9]); !errors.Is(err, unix.EINVAL) {
				t.Errorf("Transmit(nine bytes) = %v, want EINVAL", err)
			}
		})
	}
}

func TestDoHasTheTurn(t *testing.T) {
	tpm := swtpmtest.Start(t, tpmdd.TPM20)
	err := tpm.Do(t.Context(), func(x tpmdd.Exchanger) error {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := tpm.Transmit(ctx, random[tpmdd.TPM20]); !errors.Is(err, unix.EINTR) {
			t.Errorf("Transmit beside Do = %v, want EINTR", err)
		}
		_, err := x.Transmit(ctx, random[tpmdd.TPM20])
		return err
	})
	if err != nil {
		t.Errorf("Do = %v, want nil", err)
	}
}
