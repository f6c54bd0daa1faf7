package pktgen

import (
	"bytes"
	"fmt"
	"math/bits"
	"strings"

	"golang.org/x/sys/unix"
)

// show writes the device's file.
func (d *device) show(w *bytes.Buffer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return unix.EIO
	}
	d.showParams(w)
	d.showTags(w)
	d.showFlags(w)
	d.showCurrent(w)
	result := d.result
	if result == "" {
		result = "Idle"
	}
	fmt.Fprintf(w, "Result: %s\n", result)
	return nil
}

func (d *device) showParams(w *bytes.Buffer) {
	fmt.Fprintf(w, "Params: count %d  min_pkt_size: %d  max_pkt_size: %d\n", d.count, uint32(d.minSize), uint32(d.maxSize))
	if len(d.imix) > 0 {
		w.WriteString("     imix_weights: ")
		for _, e := range d.imix {
			fmt.Fprintf(w, "%d,%d ", e.size, e.weight)
		}
		w.WriteByte('\n')
	}
	fmt.Fprintf(w, "     frags: %d  delay: %d  clone_skb: %d  ifname: %s\n", d.frags, d.delay, d.cloneSkb, d.name)
	fmt.Fprintf(w, "     flows: %d flowlen: %d\n", d.cflows, d.lflow)
	fmt.Fprintf(w, "     queue_map_min: %d  queue_map_max: %d\n", d.queueMin, d.queueMax)
	if d.skbPriority != 0 {
		fmt.Fprintf(w, "     skb_priority: %d\n", d.skbPriority)
	}
	if d.flags&flagIPV6 != 0 {
		// There is no command for a range of sources.
		fmt.Fprintf(w, "     saddr: %s  min_saddr: ::  max_saddr: ::\n", ntop6(d.in6Src))
		fmt.Fprintf(w, "     daddr: %s  min_daddr: %s  max_daddr: %s\n", ntop6(d.in6Dst), ntop6(d.min6Dst), ntop6(d.max6Dst))
	} else {
		fmt.Fprintf(w, "     dst_min: %s  dst_max: %s\n", d.dstMin, d.dstMax)
		fmt.Fprintf(w, "     src_min: %s  src_max: %s\n", d.srcMin, d.srcMax)
	}
	src := d.srcMAC
	if src == [6]byte{} {
		src = d.mac()
	}
	fmt.Fprintf(w, "     src_mac: %s dst_mac: %s\n", fmtMAC(src), fmtMAC(d.dstMAC))
	fmt.Fprintf(w, "     udp_src_min: %d  udp_src_max: %d  udp_dst_min: %d  udp_dst_max: %d\n",
		d.udpSrcMin, d.udpSrcMax, d.udpDstMin, d.udpDstMax)
	fmt.Fprintf(w, "     src_mac_count: %d  dst_mac_count: %d\n", int32(d.srcMACCount), int32(d.dstMACCount))
}

func (d *device) showTags(w *bytes.Buffer) {
	if len(d.labels) > 0 {
		fmt.Fprintf(w, "     mpls: %s\n", joinLabels(d.labels, ", "))
	}
	if d.vlanID != tagOff {
		fmt.Fprintf(w, "     vlan_id: %d  vlan_p: %d  vlan_cfi: %d\n", d.vlanID, d.vlanP, d.vlanCFI)
	}
	if d.svlanID != tagOff {
		fmt.Fprintf(w, "     svlan_id: %d  vlan_p: %d  vlan_cfi: %d\n", d.svlanID, d.svlanP, d.svlanCFI)
	}
	if d.tos != 0 {
		fmt.Fprintf(w, "     tos: 0x%02x\n", d.tos)
	}
	if d.trafficClass != 0 {
		fmt.Fprintf(w, "     traffic_class: 0x%02x\n", d.trafficClass)
	}
	if d.burst > 1 {
		fmt.Fprintf(w, "     burst: %d\n", int32(d.burst))
	}
	if d.node >= 0 {
		fmt.Fprintf(w, "     node: %d\n", d.node)
	}
	switch d.mode {
	case netifReceive:
		w.WriteString("     xmit_mode: netif_receive\n")
	case queueXmit:
		w.WriteString("     xmit_mode: xmit_queue\n")
	}
	if c := d.capture; c != nil {
		fmt.Fprintf(w, "     pcap: %s  frames: %d  pcap_speed: %s\n", c.path, len(c.frames), d.speedText())
	}
}

func (d *device) showFlags(w *bytes.Buffer) {
	w.WriteString("     Flags: ")
	for i, name := range d.flagNames() {
		f := flags(1) << i
		switch {
		case f == flagFLOW_SEQ && d.cflows == 0:
		case d.flags&f != 0:
			w.WriteString(name + "  ")
			if f == flagIPSEC && d.spi != 0 {
				fmt.Fprintf(w, "spi:%d  ", d.spi)
			}
		case f == flagFLOW_SEQ:
			w.WriteString("FLOW_RND  ")
		}
	}
	w.WriteByte('\n')
}

func (d *device) showCurrent(w *bytes.Buffer) {
	stopped := d.stopped
	if d.running.Load() {
		stopped = mono()
	}
	fmt.Fprintf(w, "Current:\n     pkts-sofar: %d  errors: %d\n", d.sofar, d.errors)
	if len(d.imix) > 0 {
		w.WriteString("     imix_size_counts: ")
		for _, e := range d.imix {
			fmt.Fprintf(w, "%d,%d ", e.size, e.count)
		}
		w.WriteByte('\n')
	}
	fmt.Fprintf(w, "     started: %dus  stopped: %dus idle: %dus\n", d.started/1000, stopped/1000, d.idle/1000)
	fmt.Fprintf(w, "     seq_num: %d  cur_dst_mac_offset: %d  cur_src_mac_offset: %d\n",
		int32(d.seq), int32(d.dstMACOff), int32(d.srcMACOff))
	if d.flags&flagIPV6 != 0 {
		fmt.Fprintf(w, "     cur_saddr: %s  cur_daddr: %s\n", ntop6(d.saddr6), ntop6(d.daddr6))
	} else {
		fmt.Fprintf(w, "     cur_saddr: %s  cur_daddr: %s\n", ntoa(d.saddr), ntoa(d.daddr))
	}
	fmt.Fprintf(w, "     cur_udp_dst: %d  cur_udp_src: %d\n", d.udpDst, d.udpSrc)
	fmt.Fprintf(w, "     cur_queue_map: %d\n", d.queue)
	fmt.Fprintf(w, "     flows: %d\n", d.nflows)
	d.pace.show(w)
}

// summary is the result of a run: what it took and how fast it was.
func (d *device) summary() string {
	elapsed := max(d.stopped-d.started, 1)
	// The kernel multiplies in 64 bits, which 18 billion packets overflow.
	perSecond := func(n uint64) uint64 {
		hi, lo := bits.Mul64(n, 1e9)
		if hi >= uint64(elapsed) {
			return 1<<64 - 1
		}
		q, _ := bits.Div64(hi, lo, uint64(elapsed))
		return q
	}
	pps := perSecond(d.sofar)
	bps := pps * 8 * uint64(d.size)
	if d.capture != nil || len(d.imix) > 0 {
		bps = perSecond(d.sentBytes() * 8)
	}
	return fmt.Sprintf("OK: %d(c%d+d%d) usec, %d (%dbyte,%dfrags)\n  %dpps %dMb/sec (%dbps) errors: %d",
		elapsed/1000, (elapsed-d.idle)/1000, d.idle/1000, d.sofar, int32(d.size), d.heldFrags(), pps, bps/1e6, bps, d.errors)
}

// heldFrags is how many fragments the last packet would have; -1 where the kernel
// holds none any more.
func (d *device) heldFrags() int {
	switch {
	case !d.built || d.flags&flagSHARED == 0:
		return -1
	case d.capture != nil:
		return 0
	case d.frags <= 0 || d.tmpl.frameLen(d.size)-d.tmpl.payload <= headerLen:
		return 0
	}
	return int(min(d.frags, maxFrags))
}

func joinLabels(l []uint32, sep string) string {
	s := make([]string, len(l))
	for i, v := range l {
		s[i] = fmt.Sprintf("%08x", v)
	}
	return strings.Join(s, sep)
}
