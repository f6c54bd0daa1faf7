//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/integration/benchvm/row"
)

const tpmDevice = "/dev/tpm0"

// tpm measures how long the kernel's driver takes for a command: write and read of its device. The host counts the
// accesses to registers.
func tpm(s *session, emit func(...row.Row) error) error {
	set := s.set("tpm")
	for range s.Reps {
		for _, c := range row.TPMCommands {
			name := "kernel " + c.Name
			if !set.Wants(name) {
				continue
			}
			if s.NoTPM != "" {
				set.Skip(name, s.NoTPM)
				continue
			}
			d, err := exchangeTime(c.Command)
			if err != nil {
				return fmt.Errorf("tpm: %s: %w", c.Name, err)
			}
			set.Add(name, "us", float64(d.Nanoseconds())/1000)
		}
	}
	return emit(set.Rows()...)
}

// exchangeTime is the mean of some exchanges. The descriptor is a raw one: Go's files would be non-blocking.
func exchangeTime(cmd []byte) (time.Duration, error) {
	fd, err := unix.Open(tpmDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("opening %s: %w", tpmDevice, err)
	}
	defer unix.Close(fd)
	answer := make([]byte, 4096)
	begin := clock()
	for range row.TPMRounds {
		if _, err := unix.Write(fd, cmd); err != nil {
			return 0, fmt.Errorf("writing %s: %w", tpmDevice, err)
		}
		n, err := unix.Read(fd, answer)
		if err != nil {
			return 0, fmt.Errorf("reading %s: %w", tpmDevice, err)
		}
		if n < 10 || binary.BigEndian.Uint32(answer[6:]) != 0 {
			return 0, fmt.Errorf("the TPM answers %x", answer[:n])
		}
	}
	return time.Duration(clock()-begin) / row.TPMRounds, nil
}
