package host

import (
	"context"
	"os"
)

// Outside is what a System asks for that may open nothing by itself. All of it is what its own plan says it may have.
type Outside interface {
	// File is an open file: use says what for, name for which device, or which file where the user named it.
	File(ctx context.Context, use, name string) (*os.File, error)
}

// Uses of Outside.File.
const (
	useCapture = "pcap"    // of a device's frames, to write
	useTrace   = "trace"   // of a device's accesses, to write
	useSocket  = "socket"  // a listening Unix socket, named as it is in the instance's folder
	useReplay  = "replay"  // a capture that pktgen replays, to read; the user's write named it
	useNetDev  = "net/dev" // the machine's /proc/net/dev, to read again and again; no name
	useFabric  = "fabric"  // a connection to the fabric that a device is a node of
)
