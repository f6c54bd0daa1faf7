package e1000

import (
	"fmt"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/netdev"
)

// Counters are the statistics under the names of the kernel's e1000 driver, then those of each queue under the
// names that its younger relatives use; netdev.Ethtooler. They take some forty register reads.
func (n *nic) Counters() []netdev.Counter {
	s := n.Stats()
	n.statsMu.Lock()
	n.readMore()
	h := n.stats
	n.statsMu.Unlock()
	more := func(reg bus.Off) uint64 {
		for i, r := range moreRegs {
			if r == reg {
				return h.more[i]
			}
		}
		return 0
	}
	queues, good, bad := n.queueCounters()
	return append([]netdev.Counter{
		{Name: "rx_packets", Value: s.RxPackets},
		{Name: "tx_packets", Value: s.TxPackets},
		{Name: "rx_bytes", Value: s.RxBytes},
		{Name: "tx_bytes", Value: s.TxBytes},
		{Name: "rx_broadcast", Value: more(regBPRC)},
		{Name: "tx_broadcast", Value: more(regBPTC)},
		{Name: "rx_multicast", Value: h.rxMulticast},
		{Name: "tx_multicast", Value: more(regMPTC)},
		{Name: "rx_errors", Value: s.RxErrors},
		{Name: "tx_errors", Value: s.TxErrors},
		{Name: "tx_dropped", Value: s.TxDropped},
		{Name: "multicast", Value: s.Multicast},
		{Name: "collisions", Value: s.Collisions},
		{Name: "rx_length_errors", Value: s.RxLengthErrors},
		{Name: "rx_over_errors", Value: s.RxOverErrors},
		{Name: "rx_crc_errors", Value: s.RxCRCErrors},
		{Name: "rx_frame_errors", Value: s.RxFrameErrors},
		{Name: "rx_no_buffer_count", Value: more(regRNBC)},
		{Name: "rx_missed_errors", Value: s.RxMissedErrors},
		{Name: "tx_aborted_errors", Value: s.TxAbortedErrors},
		{Name: "tx_carrier_errors", Value: s.TxCarrierErrors},
		{Name: "tx_fifo_errors", Value: s.TxFIFOErrors},
		{Name: "tx_heartbeat_errors", Value: s.TxHeartbeatErrors},
		{Name: "tx_window_errors", Value: s.TxWindowErrors},
		{Name: "tx_abort_late_coll", Value: h.lateCols},
		{Name: "tx_deferred_ok", Value: more(regDC)},
		{Name: "tx_single_coll_ok", Value: more(regSCC)},
		{Name: "tx_multi_coll_ok", Value: more(regMCC)},
		{Name: "tx_restart_queue", Value: s.TxBusies},
		{Name: "rx_long_length_errors", Value: h.oversize},
		{Name: "rx_short_length_errors", Value: h.undersize},
		{Name: "rx_align_errors", Value: more(regALGNERRC)},
		{Name: "tx_tcp_seg_good", Value: more(regTSCTC)},
		{Name: "tx_tcp_seg_failed", Value: more(regTSCTFC)},
		{Name: "rx_flow_control_xon", Value: more(regXONRXC)},
		{Name: "rx_flow_control_xoff", Value: more(regXOFFRXC)},
		{Name: "tx_flow_control_xon", Value: more(regXONTXC)},
		{Name: "tx_flow_control_xoff", Value: more(regXOFFTXC)},
		{Name: "rx_long_byte_count", Value: h.rxOctets},
		{Name: "rx_csum_offload_good", Value: good},
		{Name: "rx_csum_offload_errors", Value: bad},
		{Name: "alloc_rx_buff_failed", Value: s.RxAllocFailed},
		{Name: "tx_smbus", Value: more(regMGTPTC)},
		{Name: "rx_smbus", Value: more(regMGTPRC)},
		{Name: "dropped_smbus", Value: more(regMGTPDC)},
	}, queues...)
}

// queueCounters are the queues' own counters, and over all of them the frames whose checksums were right and
// wrong.
func (n *nic) queueCounters() (list []netdev.Counter, good, bad uint64) {
	add := func(kind string, i int, what string, v uint64) {
		list = append(list, netdev.Counter{Name: fmt.Sprintf("%s_queue_%d_%s", kind, i, what), Value: v})
	}
	for i := range n.queues {
		q := &n.tx[i]
		q.mu.Lock()
		sent, octets, busies := q.sent-q.spare, q.octets, q.busies
		q.mu.Unlock()
		add("tx", i, "packets", sent)
		add("tx", i, "bytes", octets)
		add("tx", i, "restart", busies)
	}
	for i := range n.queues {
		q := &n.rx[i]
		q.mu.Lock()
		frames, octets, sumBad, failed := q.frames, q.octets, q.sumBad, q.allocFailed
		good, bad = good+q.sumGood, bad+sumBad
		q.mu.Unlock()
		add("rx", i, "packets", frames)
		add("rx", i, "bytes", octets)
		add("rx", i, "csum_err", sumBad)
		add("rx", i, "alloc_failed", failed)
	}
	return list, good, bad
}
