package vm

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// Exchange is one command that was sent to a TPM by tpm-tis, and what it took.
type Exchange struct {
	Command []byte // as it was written into the FIFO
	Reads   int    // of registers, from the end of the exchange before
	Writes  int
}

// Registers of a locality (TIS 1.3, table 2), and what ends an exchange: the driver gives its locality back.
const (
	tisACCESS   = 0x000
	tisFIFO     = 0x024
	tisXFIFO    = 0x080
	tisXFIFOEnd = 0x0c0
	tisLocality = 0x1000 // bytes from one locality to the next
	tisRelease  = 0x20
)

// Exchanges reads the file TPM.Trace, whatever is in it by now. What was not ended, or had no command in it, is left
// out.
func Exchanges(r io.Reader) ([]Exchange, error) {
	var all []Exchange
	var e Exchange
	for s := bufio.NewScanner(r); ; {
		if !s.Scan() {
			return all, s.Err()
		}
		event, rest, _ := strings.Cut(s.Text(), " ")
		var size, offset, value uint32
		switch event {
		case "tpm_tis_mmio_read":
			e.Reads++
			continue
		case "tpm_tis_mmio_write":
			e.Writes++
		default:
			continue // of QEMU's own
		}
		if n, _ := fmt.Sscanf(strings.TrimSpace(rest), "write.%d(0x%x) = 0x%x", &size, &offset, &value); n != 3 || size > 4 {
			return nil, fmt.Errorf("vm: trace of the TPM: %q is no access", s.Text())
		}
		switch reg := offset % tisLocality; {
		case reg == tisFIFO, reg >= tisXFIFO && reg < tisXFIFOEnd:
			for ; size > 0; size-- {
				e.Command, value = append(e.Command, byte(value)), value>>8
			}
		case reg == tisACCESS && value == tisRelease:
			if e.Command != nil {
				all = append(all, e)
			}
			e = Exchange{}
		}
	}
}
