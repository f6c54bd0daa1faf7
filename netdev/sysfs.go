package netdev

import (
	"bytes"
	"syscall"

	"github.com/ring3dev/ring3/sysfs"
)

// ClassOptions is what a device does not know of its own place in /sys.
type ClassOptions struct {
	// Device is the target of the link "device": "../../../0000:00:04.0". Empty: no link.
	Device string
	// Subsystem is the target of the link "subsystem": "../../../../../class/net".
	// Empty: no link.
	Subsystem string
	// IfIndex is the interface index. 0: the files ifindex and iflink are absent.
	IfIndex int
}

// operStates of a device that is there (RFC 2863), as the kernel spells them.
const (
	operUp      = "up"
	operDown    = "down"
	operUnknown = "unknown"
)

// Hardware types in the attribute "type" (RFC 826, and the kernel's own).
const (
	arphrdEther    = 1
	arphrdLoopback = 772
)

// ClassDir makes the directory that stands at /sys/class/net/NAME: the attributes that
// are true of a device here, with the kernel's names, formats and errors
// (Documentation/ABI/testing/sysfs-class-net, -statistics). A device in service counts
// as an interface that is up; one that was closed or went away counts as one that is
// down, whose carrier, speed and duplex give EINVAL.
func ClassDir(d Device, o ClassOptions) *sysfs.Dir {
	dir := &sysfs.Dir{}
	info := d.Info()
	dir.Put("addr_len", sysfs.Showf("%d", len(d.MAC())))
	dir.Put("address", sysfs.Show(func() string { return d.MAC().String() }))
	dir.Put("broadcast", sysfs.Showf("%s", broadcast(info)))
	dir.Put("carrier", whileUp(d, func() string {
		if d.Link().Up {
			return "1"
		}
		return "0"
	}))
	dir.Put("dev_id", sysfs.Showf("0x0"))
	dir.Put("dev_port", sysfs.Showf("0"))
	dir.Put("dormant", whileUp(d, func() string { return "0" }))
	dir.Put("duplex", ofCable(d, func() string {
		switch l := d.Link(); {
		case !l.Up:
			return "unknown"
		case l.FullDuplex:
			return "full"
		}
		return "half"
	}))
	dir.Put("flags", flagsFile(d))
	if o.IfIndex > 0 {
		dir.Put("ifindex", sysfs.Showf("%d", o.IfIndex))
		dir.Put("iflink", sysfs.Showf("%d", o.IfIndex))
	}
	dir.Put("link_mode", sysfs.Showf("0"))
	dir.Put("mtu", mtuFile(d))
	if u, ok := d.(NAPIUser); ok {
		dir.Put("gro_flush_timeout", timeoutFile(d, u))
		dir.Put("napi_defer_hard_irqs", deferFile(d, u))
	}
	dir.Put("operstate", sysfs.Show(func() string {
		switch {
		case gone(d) || !d.Link().Up:
			return operDown
		case info.Loopback:
			return operUnknown
		}
		return operUp
	}))
	// Like the kernel: the driver answers -1 while there is no carrier.
	dir.Put("speed", ofCable(d, func() string {
		if l := d.Link(); l.Up {
			return itoa(l.Speed)
		}
		return "-1"
	}))
	dir.Put("tx_queue_len", sysfs.Showf("%d", TxQueueLen))
	dir.Put("type", sysfs.Showf("%d", hardwareType(info)))
	dir.Put("uevent", sysfs.Attr(0o444, func(w *bytes.Buffer) error {
		w.WriteString("INTERFACE=" + info.Name + "\n")
		if o.IfIndex > 0 {
			w.WriteString("IFINDEX=" + itoa(o.IfIndex) + "\n")
		}
		return nil
	}, nil))
	if o.Device != "" {
		dir.Put("device", &sysfs.Link{Target: o.Device})
	}
	if o.Subsystem != "" {
		dir.Put("subsystem", &sysfs.Link{Target: o.Subsystem})
	}
	queues := dir.MkdirAll("queues")
	rx := info.RxQueues
	if info.Loopback {
		rx = info.TxQueues // nobody can poll them, but they are there
	}
	for q := range rx {
		queues.Put("rx-"+itoa(q), &sysfs.Dir{})
	}
	for q := range info.TxQueues {
		queues.Put("tx-"+itoa(q), &sysfs.Dir{})
	}
	dir.Put("statistics", statistics(d))
	return dir
}

func hardwareType(i Info) int {
	if i.Loopback {
		return arphrdLoopback
	}
	return arphrdEther
}

func broadcast(i Info) string {
	if i.Loopback {
		return "00:00:00:00:00:00"
	}
	return "ff:ff:ff:ff:ff:ff"
}

// statistics makes the directory of counters.
func statistics(d Device) *sysfs.Dir {
	dir := &sysfs.Dir{}
	for _, c := range statFiles {
		dir.Put(c.name, sysfs.Show(func() string {
			s := d.Stats()
			return utoa(c.get(&s))
		}))
	}
	return dir
}

// statFiles are the kernel's names of the counters.
var statFiles = []struct {
	name string
	get  func(*Stats) uint64
}{
	{"collisions", func(s *Stats) uint64 { return s.Collisions }},
	{"multicast", func(s *Stats) uint64 { return s.Multicast }},
	{"rx_bytes", func(s *Stats) uint64 { return s.RxBytes }},
	{"rx_compressed", func(s *Stats) uint64 { return s.RxCompressed }},
	{"rx_crc_errors", func(s *Stats) uint64 { return s.RxCRCErrors }},
	{"rx_dropped", func(s *Stats) uint64 { return s.RxDropped }},
	{"rx_errors", func(s *Stats) uint64 { return s.RxErrors }},
	{"rx_fifo_errors", func(s *Stats) uint64 { return s.RxFIFOErrors }},
	{"rx_frame_errors", func(s *Stats) uint64 { return s.RxFrameErrors }},
	{"rx_length_errors", func(s *Stats) uint64 { return s.RxLengthErrors }},
	{"rx_missed_errors", func(s *Stats) uint64 { return s.RxMissedErrors }},
	{"rx_nohandler", func(s *Stats) uint64 { return s.RxNoHandler }},
	{"rx_over_errors", func(s *Stats) uint64 { return s.RxOverErrors }},
	{"rx_packets", func(s *Stats) uint64 { return s.RxPackets }},
	{"tx_aborted_errors", func(s *Stats) uint64 { return s.TxAbortedErrors }},
	{"tx_bytes", func(s *Stats) uint64 { return s.TxBytes }},
	{"tx_carrier_errors", func(s *Stats) uint64 { return s.TxCarrierErrors }},
	{"tx_compressed", func(s *Stats) uint64 { return s.TxCompressed }},
	{"tx_dropped", func(s *Stats) uint64 { return s.TxDropped }},
	{"tx_errors", func(s *Stats) uint64 { return s.TxErrors }},
	{"tx_fifo_errors", func(s *Stats) uint64 { return s.TxFIFOErrors }},
	{"tx_heartbeat_errors", func(s *Stats) uint64 { return s.TxHeartbeatErrors }},
	{"tx_packets", func(s *Stats) uint64 { return s.TxPackets }},
	{"tx_window_errors", func(s *Stats) uint64 { return s.TxWindowErrors }},
}

// Each calls f for every counter that has a file, by its name, in alphabetical order.
func (s *Stats) Each(f func(name string, value uint64)) {
	for _, c := range statFiles {
		f(c.name, c.get(s))
	}
}

// whileUp is an attribute that gives EINVAL once the device is out of service.
func whileUp(d Device, f func() string) *sysfs.File {
	return sysfs.Attr(0o444, func(w *bytes.Buffer) error {
		if gone(d) {
			return syscall.EINVAL
		}
		w.WriteString(f())
		w.WriteByte('\n')
		return nil
	}, nil)
}

// ofCable is whileUp for what a loopback device does not have.
func ofCable(d Device, f func() string) *sysfs.File {
	if d.Info().Loopback {
		return sysfs.Attr(0o444, func(*bytes.Buffer) error { return syscall.EINVAL }, nil)
	}
	return whileUp(d, f)
}

func gone(d Device) bool {
	select {
	case <-d.Done():
		return true
	default:
		return false
	}
}
