package tis_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/qemu/qemutest"
	"github.com/ring3dev/ring3/internal/swtpm"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/tis"
	"log/slog"
)

func TestQuick(t *testing.T) {
	for _, v12 := range []bool{false, true} {
		p, err := swtpm.Start(swtpm.Config{Name: "tpm0", Dir: t.TempDir(), V12: v12})
		if err != nil {
			t.Fatal(err)
		}
		tr, _ := os.Create("/tmp/trace.log")
		id := "MSFT0101"
		if v12 {
			id = "PNP0C31"
		}
		m := qemutest.Machine(t, qemu.Config{Devices: []qemu.DeviceSpec{{Name: "tpm0", Model: "tpm-tis", TPM: &qemu.TPM{Control: p.Control(), HardwareID: id, Trace: tr}}}})
		p.CloseControl()
		dev, err := m.Device("tpm0")
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		r := pci.Bind(context.Background(), dev, pci.Env{Name: "tpm0", Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}, []*pci.Driver{tis.Driver})
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		fmt.Println("bind", time.Since(begin))
		c := r.Instance.(tpmdd.Instance).Chip()
		fmt.Printf("%+v\n", c.Identity())
		begin = time.Now()
		const n = 100
		for range n {
			var cmd []byte
			if v12 {
				cmd = tpmdd.Command(tpmdd.TagRequest12, tpmdd.OrdGetRandom, 0, 0, 0, 32)
			} else {
				cmd = tpmdd.Command(tpmdd.TagNoSessions, tpmdd.CCGetRandom, 0, 32)
			}
			a, err := c.Transmit(context.Background(), cmd)
			if err != nil || len(a) < 44 {
				t.Fatalf("%x %v", a, err)
			}
		}
		fmt.Println("getrandom", time.Since(begin)/n)
		if v12 {
			begin = time.Now()
			c.Do(context.Background(), func(x tpmdd.Exchanger) error {
				made, err := tpmdd.CreateEK(context.Background(), x)
				fmt.Println(made, err, time.Since(begin))
				return err
			})
		}
		if err := r.Instance.Close(); err != nil {
			t.Error(err)
		}
		m.Close()
		p.Close()
	}
}
