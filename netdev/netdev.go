// Package netdev is what a network driver offers, and what pktgen, rionet, TAP and the
// /proc and /sys files use: frames in bursts, statistics, link state.
//
// # Queues
//
// A device has transmit and receive queues. A [TxQueue] or [RxQueue] belongs to one
// goroutine at a time; everything else of a [Device] is safe for concurrent use.
// Frames travel as [dma.Buf], zero-copy: Data is the frame from the destination
// address on, without the frame check sequence.
//
// # Transmit
//
// The sender takes buffers from a pool of the queue ([NewTxPool]), fills Data, and calls
// [TxQueue.Burst] with up to as many as it likes. The queue takes the first n, owns
// them until the device is done with them, and then frees them; one Burst rings the
// doorbell once. n is less than asked for while the ring is full, and on a wire with
// credit (see [Wire]) while the far end has no free descriptors.
//
// # Receive
//
// [RxQueue.Burst] returns received frames; the caller owns them and frees each one
// soon, since the ring is refilled from the same pool. [RxQueue.Wait] arms the
// interrupt and sleeps until there is something to do. [Poll] is the loop of both: poll
// while there is work (budget 64), sleep when there is none.
//
// Nothing here allocates per packet.
package netdev

import (
	"context"
	"net"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
)

// Device is a network device in service.
type Device interface {
	// Info is what does not change.
	Info() Info
	// MAC is the station address in use.
	MAC() net.HardwareAddr
	// MTU is the largest payload of a frame, in bytes, without the 14-byte header.
	MTU() int
	// Link is the state of the link as the device last reported it.
	Link() Link
	// Stats reads the counters, some of them from the device.
	Stats() Stats
	// Tx and Rx return a queue; nil if there is no such queue.
	Tx(q int) TxQueue
	Rx(q int) RxQueue
	// Done is closed when the device went away; Err then says why.
	Done() <-chan struct{}
	Err() error
}

// Info describes a device.
type Info struct {
	Name     string // "eth0"
	Driver   string // "e1000"
	Model    string // "82574L"
	Bus      bus.Device
	TxQueues int
	RxQueues int
	TxRing   int // descriptors a queue
	RxRing   int

	// Loopback: what it sends comes back to it, and a frame must not be sent again while it is being sent
	// (it has no IFF_TX_SKB_SHARING).
	Loopback bool
}

// TxQueueLen is how many frames a queue discipline holds in front of a transmit queue: the attribute "tx_queue_len",
// with the value that every interface of the kernel's begins with.
const TxQueueLen = 1000

// Link is a link's state.
type Link struct {
	Up         bool
	Speed      int // Mb/s; meaningless while down
	FullDuplex bool
	// Stopped: the device is out of service for a while, because it is reset after an error or suspended. It is not Up; its
	// queues take and give nothing, and will go on.
	Stopped bool
}

// Stats has the counters of /proc/net/dev and of sysfs' statistics directory, with the
// meaning the kernel gives them (Documentation/networking/statistics.rst). JSON has the names of the files.
type Stats struct {
	RxPackets         uint64 `json:"rx_packets"`
	TxPackets         uint64 `json:"tx_packets"`
	RxBytes           uint64 `json:"rx_bytes"`
	TxBytes           uint64 `json:"tx_bytes"`
	RxErrors          uint64 `json:"rx_errors"`
	TxErrors          uint64 `json:"tx_errors"`
	RxDropped         uint64 `json:"rx_dropped"`
	TxDropped         uint64 `json:"tx_dropped"`
	Multicast         uint64 `json:"multicast"`
	Collisions        uint64 `json:"collisions"`
	RxLengthErrors    uint64 `json:"rx_length_errors"`
	RxOverErrors      uint64 `json:"rx_over_errors"`
	RxCRCErrors       uint64 `json:"rx_crc_errors"`
	RxFrameErrors     uint64 `json:"rx_frame_errors"`
	RxFIFOErrors      uint64 `json:"rx_fifo_errors"`
	RxMissedErrors    uint64 `json:"rx_missed_errors"`
	TxAbortedErrors   uint64 `json:"tx_aborted_errors"`
	TxCarrierErrors   uint64 `json:"tx_carrier_errors"`
	TxFIFOErrors      uint64 `json:"tx_fifo_errors"`
	TxHeartbeatErrors uint64 `json:"tx_heartbeat_errors"`
	TxWindowErrors    uint64 `json:"tx_window_errors"`
	RxCompressed      uint64 `json:"rx_compressed"`
	TxCompressed      uint64 `json:"tx_compressed"`
	RxNoHandler       uint64 `json:"rx_nohandler"`
	RxAllocFailed     uint64 `json:"rx_alloc_failed"` // ours: no buffer to refill with
	TxBusies          uint64 `json:"tx_busies"`       // ours: bursts cut short by a full ring
}

// TxQueue is a transmit queue. It belongs to one goroutine.
type TxQueue interface {
	// NewPool makes a pool of n buffers that this queue can send from, of dma.BufSize bytes.
	// NewTxPool makes others: small ones for small frames, large ones for jumbo frames and for
	// what the device is to segment.
	NewPool(n int) (*dma.Pool, error)
	// Burst sends the first n of bufs, taking over one ownership of each, and rings
	// the doorbell once. The same Buf may stand in bufs more than once if it was
	// retained. A Buf that cannot be sent (empty, or larger than the MTU allows) is
	// freed and counted as an error.
	Burst(bufs []*dma.Buf) (n int)
	// Reap frees the buffers that the device is done with, and returns how many are
	// still in flight. Burst reaps by itself as it needs to.
	Reap() (inFlight int)
	// Drain waits until nothing is in flight, the link dies or ctx ends.
	Drain(ctx context.Context) error
	// SetCredit makes Burst ask before it sends: avail returns how many more frames the
	// far end can take after the sent frames so far, where one that the device segments counts as
	// many as it becomes. nil takes that away. See Wire.
	SetCredit(avail func(sent uint64) int)
}

// Progress is an optional interface of queues, for who watches over drivers: from any goroutine, and without a look at the device.
type Progress interface {
	// Waits says whether something waits in the queue: for the device, or of what was received for its owner. turn changes when it is something
	// else that does. known is false while the queue is at work.
	Waits() (turn uint64, waits, known bool)
}

// RxQueue is a receive queue. It belongs to one goroutine.
type RxQueue interface {
	// Burst returns up to len(bufs) received frames; each belongs to the caller. A Burst of
	// nothing tells the queue which frames were freed; after the device was closed, it
	// gives back the memory that frames were still held in.
	Burst(bufs []*dma.Buf) (n int)
	// Wait arms the interrupt and blocks until there may be something to receive, ctx
	// ends, or the device goes away.
	Wait(ctx context.Context) error
	// Posted is how many descriptors were ever given to the device, and Free how many of
	// them it has not used yet, asked of the device itself (a register read). Both may
	// be called by other goroutines.
	Posted() uint64
	Free() int
}
