package rapidio

import (
	"context"
	"log/slog"
	"sync"

	"github.com/ring3dev/ring3/internal/uevent"
)

// Bus is the RapidIO subsystem of one process: its master ports, nets, devices and drivers.
type Bus struct {
	opts BusOptions
	log  *slog.Logger
	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup // who watches over ports
	tree *tree

	mu      sync.Mutex
	mports  []*Mport // in the order of their numbers
	nets    []*Net   // as well
	drivers []*Driver
	noprobe bool // devices and drivers find each other only on request
	closed  bool
}

// BusOptions say whom a Bus tells.
type BusOptions struct {
	Log     *slog.Logger // nil discards
	Uevents *uevent.Ring // nil: nobody hears
	// Changed is called after devices, nets or mports came or went, without locks held; nil: nobody wants to know.
	Changed func()
}

// Enumerator finds the devices of a net: package scan has it.
type Enumerator interface {
	// Enumerate finds and numbers everything that a host's port reaches.
	Enumerate(ctx context.Context, m *Mport) error
	// Discover finds what a host numbered, once that host is done; it waits for it until ctx ends.
	Discover(ctx context.Context, m *Mport) error
	// PortWrite tells of an event of the net that m is on; it returns at once, and what it starts ends with m.
	PortWrite(m *Mport, pw PortWrite)
	// Link tells that m's own link went up or down.
	Link(m *Mport, up bool)
	// ConfigWritten tells that somebody else wrote m's registers.
	ConfigWritten(m *Mport)
	// Leave returns when nothing is done with m's Ops any more, and devices that were locked with it are free, as far as it reaches them. m is out of
	// service, and none of its scans goes on but what the Enumerator began by itself.
	Leave(m *Mport)
}

// Mport is a master port in service. Its methods are safe for concurrent use.
type Mport struct {
	bus  *Bus
	ops  Ops
	id   int
	info PortInfo
	opts MportOptions

	net     *Net          // guarded by bus.mu
	leaving bool          // guarded by bus.mu
	removed chan struct{} // closed when it is out of service

	ctx    context.Context // ends when the port is gone
	cancel context.CancelFunc
	turn   turn // of whoever looks for devices
	dir    portDir
	boxes  boxes
	bells  bells
	hooks  hooks[PortWrite]
	links  hooks[bool]
	strays strays
	counts counts
}

// MportOptions say what a master port is for.
type MportOptions struct {
	// Host is the host device ID of an enumerating host; -1: it waits to be discovered.
	Host int
	Scan Enumerator // nil: nobody looks for devices
	// Windows are the memory that other nodes share; nil: none.
	Windows Windows
}

// Windows says what memory of other nodes this process can map.
type Windows interface {
	// Of lists that of one node.
	Of(node DestID) []WindowInfo
}

// WindowInfo is memory of another node: a file.
type WindowInfo struct {
	Index int
	Size  int64
	Path  string
}

// Net is a RapidIO network: what one master port reaches. Two ports of one process are on two, be it one fabric.
type Net struct {
	bus  *Bus
	id   int
	home *Mport // by which its devices are reached, and below which they are shown

	// guarded by bus.mu
	devices []*Device // in the order in which they were found
	tags    map[uint32]*Device
	gone    bool
}

// Device is an endpoint or a switch of a net. What identifies it does not change; a device that went and came back
// is another one. How it is reached may: Way has it.
type Device struct {
	Net   *Net
	Mport *Mport // through which it is reached

	DID, VID       uint16
	Rev            uint32
	AsmDID, AsmVID uint16
	AsmRev         uint16
	EFPtr          Off  // first extended feature; 0: none
	PHY            Off  // its LP-serial block; 0: none
	PHYMap2        bool // in map II
	ErrMgmt        Off  // its error management block; 0: none
	PEF            PEF
	SwitchPorts    uint32 // RegSwitchPort, of a switch
	SrcOps, DstOps uint32
	Tag            uint32  // component tag
	DestID         DestID  // of an endpoint its own; of a switch one on whose route it lies
	Hop            uint8   // of a switch: how far it is; of an endpoint 0xff, which every switch on the way counts down
	Prev           *Device // the switch before it; nil: it is linked to the master port
	Switch         *Switch // nil: it is an endpoint

	once   sync.Once
	name   string          // set by Net.AddDevice
	turn   turn            // of whoever gives it a driver or takes it away
	ctx    context.Context // ends when it is gone
	cancel context.CancelFunc
	unhook func() bool // from the port's context
	claims ranges      // of doorbells that it takes
	hooks  hooks[PortWrite]
	dir    deviceDir

	// guarded by Net's bus.mu
	driver *Driver
	inst   Instance
}

// Switch is what only switches have.
type Switch struct {
	Ops SwitchOps

	// guarded by the bus's mu
	next   []*Device // the devices at its ports: Device.Next, Net.SetNext
	routes []uint8   // the ports by destination ID: Device.Routes, Net.SetRoute; InvalidRoute, and what lies beyond: none
}

// SwitchOps are how the routing tables of a kind of switch are read and written (struct rio_switch_ops). table is a port, or
// GlobalTable.
type SwitchOps interface {
	Name() string
	AddEntry(ctx context.Context, d SwitchAccess, table int, dest DestID, port uint8) error
	GetEntry(ctx context.Context, d SwitchAccess, table int, dest DestID) (port uint8, err error)
	// ClearTable makes every destination invalid.
	ClearTable(ctx context.Context, d SwitchAccess, table int) error
}

// GlobalTable is the table of all ports of a switch.
const GlobalTable = 0xff

// SwitchAccess reaches a switch's registers; a Device, or what enumeration has before there is one.
type SwitchAccess interface {
	Read32(ctx context.Context, off Off) (uint32, error)
	Write32(ctx context.Context, off Off, v uint32) error
	IDs() IDSize
	Ports() int
}

// PortWrite is a port-write: who sent it, by component tag, and what it saw (part 8, 2.4, "error reporting").
type PortWrite struct {
	Raw       [MaxPortWrite]byte
	Len       int
	Tag       uint32 // component tag of the sender
	Detect    uint32 // Port n Error Detect
	Port      uint8
	Impl      uint32 // 23 bits, implementation-defined
	LogDetect uint32 // Logical/Transport Layer Error Detect
}

// Driver is a driver of devices on the bus (struct rio_driver).
type Driver struct {
	Name string // also of its folder
	IDs  []ID
	// Probe takes a device into service. ErrNoDevice: not mine. ctx ends when the device goes.
	Probe func(ctx context.Context, d *Device) (Instance, error)
}

// Instance is a driver's device in service.
type Instance interface {
	// Remove takes it out of service. The device may be gone already.
	Remove()
}

// AnyID matches any value in an ID.
const AnyID = 0xffff

// ID says which devices a driver serves.
type ID struct{ VID, DID, AsmVID, AsmDID uint16 }
