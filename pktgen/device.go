package pktgen

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/profile"
	"github.com/ring3dev/ring3/netdev"
)

// Limits and defaults of a device.
const (
	maxFlows      = 65536 // concurrent flows
	maxLabels     = 16    // MPLS
	maxImix       = 20    // sizes of a mix
	imixSlots     = 100   // precision of a mix
	maxFrags      = 17    // pages a packet of the kernel's has
	minSize       = 14 + 20 + 8
	tagOff        = 0xffff    // a VLAN id that is not set
	neverDelay    = 1<<64 - 1 // "delay 2147483647"
	defaultCount  = 1000
	maxNameLen    = 31
	discardPort   = 9
	labelBottom   = 0x00000100 // of an MPLS entry: bottom of stack
	labelRandBits = 0x000fffff
)

// xmitMode is where packets go.
type xmitMode uint8

const (
	startXmit xmitMode = iota
	netifReceive
	queueXmit
)

// imixEntry is one size of a mix.
type imixEntry struct{ size, weight, count uint64 }

// flow is the state of one flow.
type flow struct {
	daddr uint32
	count uint32
	seen  bool
}

// params are what commands set. Widths and signs are the kernel's: they decide what a
// number too large turns into.
type params struct {
	count            uint64
	minSize, maxSize int32
	imix             []imixEntry // part of imixEntries
	frags, cloneSkb  int32
	delay            uint64
	exact            fraction // what a rate's delay is above that
	cflows, lflow    uint32
	queueMin         uint16
	queueMax         uint16
	skbPriority      uint32
	spi              uint32

	dstMin, dstMax, srcMin, srcMax string // as written
	in6Src, in6Dst                 [16]byte
	min6Dst, max6Dst               [16]byte

	srcMAC, dstMAC           [6]byte
	srcMACCount, dstMACCount uint32
	udpSrcMin, udpSrcMax     uint16
	udpDstMin, udpDstMax     uint16

	labels                    []uint32
	vlanID, vlanP, vlanCFI    uint16
	svlanID, svlanP, svlanCFI uint16
	tos, trafficClass         uint8
	burst                     uint32
	node                      int32
	mode                      xmitMode
	flags                     flags

	capture   *capture // is sent instead; nil: none
	pcapSpeed float64
}

// fraction is rem/den ns.
type fraction struct{ rem, den uint64 }

// state is where a run stands: counters, and the values of the fields that vary.
type state struct {
	sofar, errors      uint64
	started, stopped   int64 // ns
	idle               int64 // ns
	seq                uint32
	ipID               uint16
	dstMACOff          uint32
	srcMACOff          uint32
	saddr, daddr       uint32
	saddrMin, saddrMax uint32
	daddrMin, daddrMax uint32
	saddr6, daddr6     [16]byte
	udpDst, udpSrc     uint16
	queue              uint16
	size               uint32
	nflows, curFlow    uint32
	hh                 [12]byte // destination and source MAC of the next packet
	imixSlot           [imixSlots]uint8
	imixEntries        [maxImix]imixEntry
	imixBase           [maxImix]uint64 // their counts when counters were cleared last
	flows              []flow          // nil until flows are asked for
	replay             replay
	behind             uint64 // of exact.den, not a ns yet
	paced              bool   // there is a new delay, which counts from now on; kernels make up for what they are behind
	pace               *pace
}

// device is one added device: "eth0@3".
type device struct {
	name string // as added
	base string // the network device's name
	nd   netdev.Device
	up   netdev.Receiver // what netif_receive hands frames to; nil: nobody
	thr  *thread

	running atomic.Bool // written by the thread
	waits   bool        // the thread's own: it waits for delay or queue
	removed atomic.Bool // RemoveDevice marked it

	mu sync.Mutex
	params
	state
	epoch     uint64 // the start that the run, which runs or was the last, began with
	resume    bool   // it ran when another process had it, and goes on
	restarts  uint64 // how often that was so in this run
	uncertain uint64 // packets that count as sent, and may not have been, because of that
	keep      *kept  // nil: nothing outlives this process
	result    string
	dirty     bool // the template is not that of the configuration
	dead      bool // it was removed: who has its file open gets EIO, as in the kernel

	// The rest belongs to a run.
	rng     *rand.PCG
	ntx     int     // transmit queues of the network device
	mac6    [6]byte // its address
	tmpl    template
	ports   []*port    // by queue number, nil until used
	pool    *dma.Pool  // of the port in use, for the packets of now
	out     []*dma.Buf // frames of one burst
	pending []*dma.Buf // part of out: built, not sent yet
	queueOf int        // the queue that pending is for
	master  *dma.Buf   // the packet that is sent many times
	clones  int32      // bursts left for it
	built   bool       // there was a packet in this run
	// sentOnce: a packet was sent, in any run. Kernels send the very first one of a device without waiting
	// for delay, nor do they count it as one. The other modes set this, too.
	sentOnce bool
	chunk    int    // frames a burst
	nextTx   int64  // when the next burst is due; the thread's own
	wall     int64  // the time of day less CLOCK_MONOTONIC,
	wallAt   int64  // as it was then
	linkBy   int64  // until when a link that is down is waited for
	goneAt   int64  // when it was seen that the network device is gone; the thread's own
	failure  string // why the run cannot go on
}

func newDevice(name, base string, nd netdev.Device, t *thread) *device {
	return &device{
		name: name, base: base, nd: nd, thr: t, dirty: true,
		rng: rand.NewPCG(rand.Uint64(), rand.Uint64()),
		params: params{
			count: defaultCount, vlanID: tagOff, svlanID: tagOff, burst: 1, node: -1, flags: flagSHARED,
			udpSrcMin: discardPort, udpSrcMax: discardPort, udpDstMin: discardPort, udpDstMax: discardPort,
		},
	}
}

// prof is what the files are like.
func (d *device) prof() *profile.Pktgen { return d.thr.eng.prof }

// clearCounters is what starts a run's numbers, and a command. As in the kernel a mix goes on counting.
func (d *device) clearCounters() {
	d.seq, d.idle, d.sofar, d.errors = 1, 0, 0, 0
	d.replay.bytes = 0
	for i := range d.imixEntries {
		d.imixBase[i] = d.imixEntries[i].count
	}
}

// mac is the device's own address.
func (d *device) mac() (m [6]byte) {
	copy(m[:], d.nd.MAC())
	return m
}

// sharing tells whether the network device may be given one packet many times (IFF_TX_SKB_SHARING).
func (d *device) sharing() bool { return !d.nd.Info().Loopback }

// random is a random number below n.
func (d *device) random(n uint32) uint32 {
	return uint32(d.rng.Uint64() >> 32 * uint64(n) >> 32)
}
