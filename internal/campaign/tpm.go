package campaign

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/crb"
	"github.com/ring3dev/ring3/tpmdd/rm"
	"github.com/ring3dev/ring3/tpmdd/tis"
)

func tpmScenarios() []*Scenario {
	var out []*Scenario
	for _, c := range []struct {
		name, model string
		driver      *pci.Driver
	}{{"tpm-tis", "tpm-tis", tis.Driver}, {"tpm-crb", "tpm-crb", crb.Driver}} {
		s := &Scenario{
			Name: c.name, About: "a TPM 2.0: started, asked for random bytes, a session kept by the resource manager", Driver: c.driver.Name,
			Weight: 2, backends: []string{"sim"},
		}
		if c.driver.Registers != nil {
			s.Registers = c.driver.Registers(pci.FunctionID{})
		}
		s.open = func(ctx context.Context, b Backend) (*rig, error) {
			m, err := start(ctx, b, nil, part{name: "tpm0", model: c.model})
			if err != nil {
				return nil, err
			}
			dev, err := m.Device("tpm0")
			if err != nil {
				return nil, errors.Join(err, m.Close())
			}
			live := func(ctx context.Context, dev bus.Device) error { return liveTPM(ctx, dev, c.driver) }
			return &rig{dev: dev, live: live, reset: resetIn(m, "tpm0", dev), selfReset: selfResetIn(m, "tpm0"), close: m.Close}, nil
		}
		out = append(out, s)
	}
	return out
}

// be is the byte order of TPMs.
var be = binary.BigEndian

// startSession is TPM2_StartAuthSession: HMAC, unbound, SHA-256, with a nonce of 16 bytes.
var startSession = func() []byte {
	p := be.AppendUint32(nil, 0x40000007) // tpmKey: none
	p = be.AppendUint32(p, 0x40000007)    // bind: none
	p = be.AppendUint16(p, 16)
	p = append(p, "sixteen bytes..."...)
	p = be.AppendUint16(p, 0) // no salt
	p = append(p, 0)          // TPM_SE_HMAC
	p = be.AppendUint16(p, 0x0010)
	p = be.AppendUint16(p, 0x000b)
	return tpmdd.Command(tpmdd.TagNoSessions, 0x176, p...)
}()

// liveTPM is a TPM's life. A command that fails is noticed by whoever sent it; one that follows must work, or the driver says that the chip is
// gone.
func liveTPM(ctx context.Context, dev bus.Device, driver *pci.Driver) error {
	b := pci.Bind(ctx, dev, pci.Env{Name: "tpm0"}, []*pci.Driver{driver})
	if b.Err != nil {
		return b.Err
	}
	chip := b.Instance.(tpmdd.Instance).Chip()
	// Whoever asked loses patience some time after the fault, and cancels; without that a command that was lost is waited for as long as a TPM may
	// take, minutes.
	over := make(chan struct{})
	defer close(over)
	defer context.AfterFunc(ctx, func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(3 * time.Second):
				chip.Cancel()
			}
		}
	})()
	return errors.Join(func() error {
		if _, err := tpmdd.Ask(ctx, chip, "getting random bytes", tpmdd.GetRandom(tpmdd.TPM20, 32)); err != nil {
			return err
		}
		m, err := rm.New(ctx, chip, nil)
		if err != nil {
			return fmt.Errorf("%s %s: resource manager: %w", dev.Address(), driver.Name, err)
		}
		space := m.Open()
		err = useSpace(ctx, space)
		if e := space.Close(); e != nil && err == nil {
			err = e
		}
		if err != nil {
			return fmt.Errorf("%s %s: resource manager: %w", dev.Address(), driver.Name, err)
		}
		return nil
	}(), b.Instance.Close())
}

// useSpace has a session, which the resource manager saves after each command and loads before the next.
func useSpace(ctx context.Context, s *rm.Space) error {
	rsp, err := s.Transmit(ctx, startSession)
	if err != nil {
		return err
	}
	if h, ok := tpmdd.ParseHeader(rsp); !ok || h.Code != 0 || len(rsp) < 14 {
		return fmt.Errorf("starting a session: answer % x: %w", rsp, unix.EIO)
	}
	session := be.Uint32(rsp[10:])
	if rsp, err = s.Transmit(ctx, tpmdd.GetRandom(tpmdd.TPM20, 8)); err != nil {
		return err
	}
	if h, ok := tpmdd.ParseHeader(rsp); !ok || h.Code != 0 || len(rsp) != 20 {
		return fmt.Errorf("getting random bytes: answer % x: %w", rsp, unix.EIO)
	}
	rsp, err = s.Transmit(ctx, tpmdd.Command(tpmdd.TagNoSessions, tpmdd.CCFlushContext, be.AppendUint32(nil, session)...))
	if err != nil {
		return err
	}
	if h, ok := tpmdd.ParseHeader(rsp); !ok || h.Code != 0 {
		return fmt.Errorf("flushing a session: answer % x: %w", rsp, unix.EIO)
	}
	return nil
}
