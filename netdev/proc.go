package netdev

import (
	"bytes"
	"fmt"

	"github.com/ring3dev/ring3/procfs"
)

// ProcHeader is the two-line header of /proc/net/dev.
const ProcHeader = "Inter-|   Receive                                                |  Transmit\n" +
	" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n"

// ProcLine appends a device's line of /proc/net/dev.
func ProcLine(w *bytes.Buffer, name string, s Stats) {
	fmt.Fprintf(w, "%6s: %7d %7d %4d %4d %4d %5d %10d %9d %8d %7d %4d %4d %4d %5d %7d %10d\n", name,
		s.RxBytes, s.RxPackets, s.RxErrors, s.RxDropped+s.RxMissedErrors, s.RxFIFOErrors,
		s.RxLengthErrors+s.RxOverErrors+s.RxCRCErrors+s.RxFrameErrors, s.RxCompressed, s.Multicast,
		s.TxBytes, s.TxPackets, s.TxErrors, s.TxDropped, s.TxFIFOErrors, s.Collisions,
		s.TxCarrierErrors+s.TxAbortedErrors+s.TxWindowErrors+s.TxHeartbeatErrors, s.TxCompressed)
}

// ProcNetDev is the file /proc/net/dev of these devices alone, in their order. A host
// that merges it with the kernel's uses ProcLine.
func ProcNetDev(devices func() []Device) *procfs.File {
	return procfs.New(0o444, func(w *bytes.Buffer) error {
		w.WriteString(ProcHeader)
		for _, d := range devices() {
			ProcLine(w, d.Info().Name, d.Stats())
		}
		return nil
	}, nil)
}
