package netdev

import (
	"context"
	"net"
	"strings"
	"time"
)

// Feature is a set of things that a device does to frames by itself, as `ethtool -k` lists
// them.
type Feature uint32

// Features. What a frame wants, or had done to it, stands in its dma.Meta.
const (
	TxCsum Feature = 1 << iota // TCP and UDP checksums are put in: dma.NeedsCsum
	TxTSO4                     // TCP over IPv4 is segmented: dma.GSO4
	TxTSO6                     // TCP over IPv6 is segmented: dma.GSO6
	TxVLAN                     // VLAN tags are inserted: dma.VLAN
	RxCsum                     // checksums are verified: dma.CsumGood
	RxVLAN                     // VLAN tags are stripped: dma.VLAN
	RxHash                     // dma.Meta.Hash is set
)

// featureNames are ethtool's, in its order.
var featureNames = []struct {
	f    Feature
	name string
}{
	{RxCsum, "rx-checksumming"}, {TxCsum, "tx-checksumming"}, {TxTSO4, "tx-tcp-segmentation"}, {TxTSO6, "tx-tcp6-segmentation"},
	{RxVLAN, "rx-vlan-offload"}, {TxVLAN, "tx-vlan-offload"}, {RxHash, "receive-hashing"},
}

// FeatureNames lists every feature with ethtool's name.
func FeatureNames(each func(f Feature, name string)) {
	for _, n := range featureNames {
		each(n.f, n.name)
	}
}

// String is the names, joined by "|".
func (f Feature) String() string {
	var s []string
	for _, n := range featureNames {
		if f&n.f != 0 {
			s = append(s, n.name)
		}
	}
	return strings.Join(s, "|")
}

// The interfaces below are optional for a Device. All methods are safe for concurrent use,
// also while queues are in use; what cannot be done gives EINVAL (a wrong value) or
// bus.ErrNotSupported, and changes nothing.

// Offloader is a Device that does work on frames.
type Offloader interface {
	// Features says what the device can do, and what of that is on.
	Features() (available, on Feature)
	// SetFeatures switches to exactly these. A sender must not ask for what is off.
	SetFeatures(ctx context.Context, on Feature) error
}

// MTUSetter is a Device whose MTU can change.
type MTUSetter interface {
	// MTURange is the smallest and the largest MTU.
	MTURange() (lowest, highest int)
	// SetMTU changes the MTU. Frames on their way may be lost, as they are when a
	// kernel's driver resets its device for it.
	SetMTU(ctx context.Context, mtu int) error
}

// RxMode says which frames are received besides those to the station and broadcasts.
type RxMode struct {
	Promisc   bool               // everything
	AllMulti  bool               // every multicast
	Multicast []net.HardwareAddr // these groups
}

// RxModer is a Device with address filters.
type RxModer interface {
	RxMode() RxMode
	SetRxMode(ctx context.Context, m RxMode) error
}

// Pause is IEEE 802.3x flow control: whether pause frames are obeyed (Rx) and sent (Tx).
type Pause struct {
	Autoneg bool `json:"autonegotiate"`
	Rx      bool `json:"rx"`
	Tx      bool `json:"tx"`
}

// Pauser is a Device with flow control.
type Pauser interface {
	Pause() Pause
	SetPause(ctx context.Context, p Pause) error
}

// Coalesce is interrupt moderation: at most one interrupt in RxUsecs microseconds (0: no limit),
// or, Adaptive, as traffic asks.
type Coalesce struct {
	Adaptive bool `json:"adaptive_rx"`
	RxUsecs  int  `json:"rx_usecs"`
}

// Coalescer is a Device with interrupt moderation.
type Coalescer interface {
	Coalesce() Coalesce
	SetCoalesce(ctx context.Context, c Coalesce) error
}

// Counter is one of a device's own statistics, as `ethtool -S` lists them.
type Counter struct {
	Name  string
	Value uint64
}

// Ethtooler is a Device that tells of itself what the ethtool command shows.
type Ethtooler interface {
	// Counters are the device's statistics under the kernel driver's names.
	Counters() []Counter
	// EEPROM reads the whole EEPROM, little-endian 16-bit words.
	EEPROM(ctx context.Context) ([]byte, error)
}

// NAPI is how a device's queues are polled: [Poll]'s settings, which may change while it runs. The
// zero value is the default.
type NAPI struct {
	// Weight is how many frames are taken at a time; 0 means Budget.
	Weight int
	// DeferHardIRQs is how many empty polls in a row are followed by a wait of
	// GROFlushTimeout instead of an armed interrupt (napi_defer_hard_irqs).
	DeferHardIRQs   int
	GROFlushTimeout time.Duration
}

// NAPIUser is a Device whose polling can be set. [Poll] sees a queue and no device, so the device's
// receive queues have the method NAPI too, and Done, which is closed when nothing more will come.
type NAPIUser interface {
	NAPI() NAPI
	SetNAPI(n NAPI) error
}
