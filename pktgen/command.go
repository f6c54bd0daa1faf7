package pktgen

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A command takes its value from s, changes d, and says what Result shows; "" leaves
// Result as it is. With an error nothing else has changed.
type command func(d *device, s *scanner) (result string, err error)

// digits is how many of them a number has at most.
const digits = 10

// number makes a command of one number.
func number(limit int, set func(d *device, v uint64) (string, error)) command {
	return func(d *device, s *scanner) (string, error) { return set(d, s.num(limit)) }
}

// ok formats a result.
func ok(format string, args ...any) (string, error) {
	return fmt.Sprintf("OK: "+format, args...), nil
}

// commands of a device's file. Those that take more than a number are in commands_text.go.
var commands = map[string]command{
	"count":        number(digits, func(d *device, v uint64) (string, error) { d.count = v; return ok("count=%d", v) }),
	"debug":        number(digits, (*device).setDebug),
	"frags":        number(digits, func(d *device, v uint64) (string, error) { d.frags = int32(v); return ok("frags=%d", d.frags) }),
	"delay":        number(digits, (*device).setDelay),
	"rate":         (*device).cmdRate,
	"ratep":        (*device).cmdRatep,
	"pkt_size":     number(digits, (*device).setSize),
	"min_pkt_size": number(digits, (*device).setMinSize),
	"max_pkt_size": number(digits, (*device).setMaxSize),
	"udp_src_min": number(digits, func(d *device, v uint64) (string, error) {
		setPort(&d.udpSrcMin, &d.udpSrc, v)
		return ok("udp_src_min=%d", d.udpSrcMin)
	}),
	"udp_src_max": number(digits, func(d *device, v uint64) (string, error) {
		setPort(&d.udpSrcMax, &d.udpSrc, v)
		return ok("udp_src_max=%d", d.udpSrcMax)
	}),
	"udp_dst_min": number(digits, func(d *device, v uint64) (string, error) {
		setPort(&d.udpDstMin, &d.udpDst, v)
		return ok("udp_dst_min=%d", d.udpDstMin)
	}),
	"udp_dst_max": number(digits, func(d *device, v uint64) (string, error) {
		setPort(&d.udpDstMax, &d.udpDst, v)
		return ok("udp_dst_max=%d", d.udpDstMax)
	}),
	"src_mac_count": number(digits, func(d *device, v uint64) (string, error) {
		setMACCount(&d.srcMACCount, &d.srcMACOff, v)
		return ok("src_mac_count=%d", int32(d.srcMACCount))
	}),
	"dst_mac_count": number(digits, func(d *device, v uint64) (string, error) {
		setMACCount(&d.dstMACCount, &d.dstMACOff, v)
		return ok("dst_mac_count=%d", int32(d.dstMACCount))
	}),
	"clone_skb": number(digits, (*device).setClone),
	"burst":     number(digits, (*device).setBurst),
	"node":      number(digits, (*device).setNode),
	"flows": number(digits, func(d *device, v uint64) (string, error) {
		d.cflows = uint32(min(v, maxFlows))
		return ok("flows=%d", d.cflows)
	}),
	"flowlen": number(digits, func(d *device, v uint64) (string, error) {
		d.lflow = uint32(v)
		return ok("flowlen=%d", d.lflow)
	}),
	"queue_map_min": number(5, func(d *device, v uint64) (string, error) {
		d.queueMin = uint16(v)
		return ok("queue_map_min=%d", d.queueMin)
	}),
	"queue_map_max": number(5, func(d *device, v uint64) (string, error) {
		d.queueMax = uint16(v)
		return ok("queue_map_max=%d", d.queueMax)
	}),
	"skb_priority": number(9, func(d *device, v uint64) (string, error) {
		d.skbPriority = uint32(v)
		return ok("skb_priority=%d", int32(d.skbPriority))
	}),
	"spi": number(digits, func(d *device, v uint64) (string, error) {
		d.spi = uint32(v)
		return ok("spi=%d", d.spi)
	}),
	"vlan_id":   number(4, (*device).setVLAN),
	"svlan_id":  number(4, (*device).setSVLAN),
	"vlan_p":    tagField("vlan_p", 7, func(d *device) (id, field *uint16) { return &d.vlanID, &d.vlanP }),
	"vlan_cfi":  tagField("vlan_cfi", 1, func(d *device) (id, field *uint16) { return &d.vlanID, &d.vlanCFI }),
	"svlan_p":   tagField("svlan_p", 7, func(d *device) (id, field *uint16) { return &d.svlanID, &d.svlanP }),
	"svlan_cfi": tagField("svlan_cfi", 1, func(d *device) (id, field *uint16) { return &d.svlanID, &d.svlanCFI }),

	"tos":            hexByte("tos", func(d *device) *uint8 { return &d.tos }),
	"traffic_class":  hexByte("traffic_class", func(d *device) *uint8 { return &d.trafficClass }),
	"clear_counters": func(d *device, s *scanner) (string, error) { d.clearCounters(); return ok("Clearing counters.\n") },

	"imix_weights": (*device).cmdImix,
	"xmit_mode":    (*device).cmdXmitMode,
	"flag":         (*device).cmdFlag,
	"mpls":         (*device).cmdMPLS,
	"dst_mac":      (*device).cmdDstMAC,
	"src_mac":      (*device).cmdSrcMAC,
	"dst":          (*device).cmdDstMin,
	"dst_min":      (*device).cmdDstMin,
	"dst_max":      (*device).cmdDstMax,
	"src_min":      (*device).cmdSrcMin,
	"src_max":      (*device).cmdSrcMax,
	"dst6":         (*device).cmdDst6,
	"dst6_min":     (*device).cmdDst6Min,
	"dst6_max":     (*device).cmdDst6Max,
	"src6":         (*device).cmdSrc6,

	"pcap":       (*device).cmdPcap,
	"pcap_speed": (*device).cmdPcapSpeed,
}

// nameLen is how much of a command's name is looked at.
const nameLen = 15

// store takes one write to the device's file.
func (d *device) store(_ context.Context, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, unix.EINVAL
	}
	s, name := scan(p, d.prof(), nameLen)
	if d.thr.eng.debug.Load() {
		d.thr.eng.log.Debug("pktgen command", "device", d.name, "command", name, "write", string(p[:min(len(p), 1024)]))
	}
	if name == "pcap" {
		s.loaded = d.load(s)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return 0, unix.EIO
	}
	run := commands[name]
	if run == nil {
		d.result = `No such parameter "` + name + `"`
		return 0, unix.EINVAL
	}
	result, err := run(d, &s)
	var short shortWrite
	if errors.As(err, &short) {
		return int(short), nil
	}
	if result != "" {
		d.result = result
	}
	if err != nil {
		return 0, err
	}
	d.dirty = true
	d.keepAll()
	return len(p), nil
}

func (d *device) setDebug(v uint64) (string, error) {
	d.thr.eng.debug.Store(uint32(v) != 0)
	return ok("debug=%d", uint32(v))
}

func (d *device) setDelay(v uint64) (string, error) {
	if v == 0x7fffffff {
		v = neverDelay
	}
	d.delay, d.exact, d.paced = v, fraction{}, !d.prof().Strict
	return ok("delay=%d", d.delay)
}

// shortWrite is what a command that does nothing says of how many bytes it took.
type shortWrite int

func (n shortWrite) Error() string { return fmt.Sprintf("only %d bytes taken", int(n)) }

// rate reads a rate that is not 0. A write of which nothing at all was taken would be tried
// again by its writer, forever: without a digit it is an error under every profile.
func (d *device) rate(s *scanner) (uint64, error) {
	have := len(s.p)
	v := s.num(digits)
	switch n := have - len(s.p); {
	case v != 0:
		return v, nil
	case n > 0 && d.prof().ShortRate:
		return 0, shortWrite(n)
	}
	return 0, unix.EINVAL
}

func (d *device) cmdRate(s *scanner) (string, error) {
	v, err := d.rate(s)
	if err != nil {
		return "", err
	}
	d.setInterval(uint64(int64(d.minSize)*8)*1000, v)
	return ok("rate=%d", v)
}

func (d *device) cmdRatep(s *scanner) (string, error) {
	v, err := d.rate(s)
	if err != nil {
		return "", err
	}
	d.setInterval(1e9, v)
	return ok("rate=%d", v)
}

// setInterval makes delay n/den ns. The kernel cuts the fraction off: 7 million packets a second become 7.04.
func (d *device) setInterval(n, den uint64) {
	d.delay, d.exact, d.behind = n/den, fraction{}, 0
	if !d.prof().Strict {
		d.exact, d.paced = fraction{n % den, den}, true
	}
}

func (d *device) setSize(v uint64) (string, error) {
	// The kernel leaves the maximum alone where the minimum is that already.
	if n := int32(max(v, minSize)); n != d.minSize {
		d.minSize, d.maxSize, d.size = n, n, uint32(n)
	}
	return ok("pkt_size=%d", d.minSize)
}

func (d *device) setMinSize(v uint64) (string, error) {
	if n := int32(max(v, minSize)); n != d.minSize {
		d.minSize, d.size = n, uint32(n)
	}
	return ok("min_pkt_size=%d", d.minSize)
}

func (d *device) setMaxSize(v uint64) (string, error) {
	if n := int32(max(v, minSize)); n != d.maxSize {
		d.maxSize, d.size = n, uint32(n)
	}
	return ok("max_pkt_size=%d", d.maxSize)
}

func setPort(field, cur *uint16, v uint64) {
	if v != uint64(*field) {
		*field, *cur = uint16(v), uint16(v)
	}
}

func setMACCount(count, off *uint32, v uint64) {
	if v != uint64(*count) {
		*count, *off = uint32(v), 0
	}
}

func (d *device) setClone(v uint64) (string, error) {
	if v > 0 && (d.mode == netifReceive || !d.sharing()) {
		return "", unix.EOPNOTSUPP
	}
	if v > 0 && (len(d.imix) > 0 || d.flags&flagSHARED == 0 || d.capture != nil) {
		return "", unix.EINVAL
	}
	d.cloneSkb = int32(v)
	return ok("clone_skb=%d", d.cloneSkb)
}

func (d *device) setBurst(v uint64) (string, error) {
	if v > 1 && (d.mode == queueXmit || d.mode == startXmit && !d.sharing()) {
		return "", unix.EOPNOTSUPP
	}
	if v > 1 && d.flags&flagSHARED == 0 {
		return "", unix.EINVAL
	}
	d.burst = uint32(max(v, 1))
	return ok("burst=%d", d.burst)
}

func (d *device) setNode(v uint64) (string, error) {
	if !nodePossible(v) {
		return "ERROR: node not possible", nil
	}
	d.node = int32(v)
	return ok("node=%d", d.node)
}

func (d *device) setVLAN(v uint64) (string, error) {
	if v > 4095 {
		d.vlanID, d.svlanID = tagOff, tagOff
		return "", nil
	}
	d.vlanID, d.labels = uint16(v), nil
	return ok("vlan_id=%d", v)
}

func (d *device) setSVLAN(v uint64) (string, error) {
	if v > 4095 || d.vlanID == tagOff {
		d.vlanID, d.svlanID = tagOff, tagOff
		return "", nil
	}
	d.svlanID, d.labels = uint16(v), nil
	return ok("svlan_id=%d", v)
}

// tagField makes the command for a field of a tag that must be set already.
func tagField(name string, limit uint64, fields func(d *device) (id, field *uint16)) command {
	return number(1, func(d *device, v uint64) (string, error) {
		id, field := fields(d)
		if v > limit || *id == tagOff {
			return fmt.Sprintf("ERROR: %s must be 0-%d", name, limit), nil
		}
		*field = uint16(v)
		return ok("%s=%d", name, v)
	})
}

// hexByte makes the command for a byte written as two hexadecimal digits.
func hexByte(name string, field func(d *device) *uint8) command {
	return func(d *device, s *scanner) (string, error) {
		v, n := s.hex(2)
		if n != 2 {
			return fmt.Sprintf("ERROR: %s must be 00-ff", name), nil
		}
		*field(d) = uint8(v)
		return ok("%s=0x%02x", name, v)
	}
}
