package figures

import (
	"math/bits"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
)

// collector gives Prometheus a snapshot as metrics. docs/metrics.md lists them.
type collector struct {
	snapshot func() *Snapshot
	version  string
}

// metric is one family of metrics.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func newMetric(name, help string, kind prometheus.ValueType, labels ...string) metric {
	return metric{prometheus.NewDesc("ring3_"+name, help, labels, nil), kind}
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

var (
	metricInfo      = newMetric("info", "The instance.", gauge, "instance", "version")
	metricUp        = newMetric("device_up", "Whether the device is there: 0 once it is gone.", gauge, "device", "driver", "model")
	metricIRQ       = newMetric("device_interrupts_total", "Interrupts by vector, on all CPUs.", counter, "device", "irq", "vector")
	metricLink      = newMetric("netdev_link_up", "Whether the link is up.", gauge, "device")
	metricSpeed     = newMetric("netdev_link_speed_bytes_per_second", "The speed of the link; 0 while it is down.", gauge, "device")
	metricAllocFail = newMetric("netdev_receive_alloc_failed_total", "Times that there was no buffer to refill a receive ring with.", counter, "device")
	metricBusy      = newMetric("netdev_transmit_busies_total", "Bursts cut short by a full transmit ring.", counter, "device")
	metricsNet      = netMetrics()

	metricRunning = newMetric("pktgen_running", "Whether the generator runs.", gauge, "device", "thread")
	metricSent    = newMetric("pktgen_packets_total", "Packets sent in the run; a new run begins at 0.", counter, "device", "thread")
	metricErrors  = newMetric("pktgen_errors_total", "Packets that could not be sent in the run.", counter, "device", "thread")

	metricReceived  = newMetric("pktgen_receive_packets_total", "Frames of pktgen that were received whole.", counter, "device")
	metricBytes     = newMetric("pktgen_receive_bytes_total", "Bytes of them.", counter, "device")
	metricOther     = newMetric("pktgen_receive_other_packets_total", "Frames received that were not pktgen's.", counter, "device")
	metricCorrupted = newMetric("pktgen_receive_corrupted_packets_total", "Frames of pktgen that arrived otherwise than they were sent.", counter, "device", "reason")
	metricReordered = newMetric("pktgen_receive_reordered_packets_total", "Frames that came after one with a larger number.", counter, "device")
	// What was counted so may turn out to be late, or a clone.
	metricLost       = newMetric("pktgen_receive_lost_packets", "Frames that did not come. One that comes late is taken off again.", gauge, "device")
	metricDuplicated = newMetric("pktgen_receive_duplicated_packets", "Frames that came before. The last one's copies may turn out to be clones.", gauge, "device")
	metricClones     = newMetric("pktgen_receive_clone_packets", "Copies of a packet that was sent many times.", gauge, "device")
	metricLatency    = newMetric("pktgen_latency_seconds", "Time from the sender's timestamp to the receipt.", 0, "device")
)

// netMetrics are the kernel's counters by the names of their files.
func netMetrics() map[string]metric {
	m := map[string]metric{}
	new(netdev.Stats).Each(func(name string, _ uint64) {
		long, help := name, "The kernel's "+name+"."
		for _, p := range [][2]string{{"rx_", "receive_"}, {"tx_", "transmit_"}, {"multicast", "receive_multicast"}} {
			if rest, ok := strings.CutPrefix(name, p[0]); ok {
				long = p[1] + rest
			}
		}
		m[name] = newMetric("netdev_"+long+"_total", help, counter, "device")
	})
	return m
}

// Describe is empty: which devices there are changes, so the metrics do.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends a snapshot.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	s := c.snapshot()
	send := func(m metric, value float64, labels ...string) {
		for i := range labels {
			labels[i] = Printable(labels[i])
		}
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
	}
	count := func(m metric, n uint64, labels ...string) { send(m, float64(n), labels...) }
	send(metricInfo, 1, s.Instance, c.version)
	for i := range s.Devices {
		d := &s.Devices[i]
		send(metricUp, truth(d.Up), d.Name, d.Driver, d.Model)
		for _, q := range d.Interrupts {
			count(metricIRQ, q.Count, d.Name, strconv.Itoa(q.Number), q.Name)
		}
		if n := d.Net; n != nil {
			send(metricLink, truth(n.Link), d.Name)
			send(metricSpeed, float64(n.Speed)*1e6/8, d.Name)
			count(metricAllocFail, n.Statistics.RxAllocFailed, d.Name)
			count(metricBusy, n.Statistics.TxBusies, d.Name)
			n.Statistics.Each(func(name string, v uint64) { count(metricsNet[name], v, d.Name) })
		}
	}
	seen := map[string]bool{}
	for i := range s.Pktgen {
		g := &s.Pktgen[i]
		name := unique(seen, Printable(g.Name))
		send(metricRunning, truth(g.Running), name, g.Thread)
		count(metricSent, g.Packets, name, g.Thread)
		count(metricErrors, g.Errors, name, g.Thread)
	}
	for i := range s.Receivers {
		r := &s.Receivers[i]
		count(metricReceived, r.Received, r.Name)
		count(metricBytes, r.Bytes, r.Name)
		count(metricOther, r.Other, r.Name)
		count(metricCorrupted, r.BadChecksum, r.Name, "checksum")
		count(metricCorrupted, r.BadHeader, r.Name, "header")
		count(metricCorrupted, r.BadLength, r.Name, "length")
		count(metricCorrupted, r.BadPayload, r.Name, "payload")
		count(metricReordered, r.Reordered, r.Name)
		count(metricLost, r.Lost, r.Name)
		count(metricDuplicated, r.Duplicated, r.Name)
		count(metricClones, r.Clones, r.Name)
		out <- prometheus.MustNewConstHistogram(metricLatency.desc, r.Latency.Samples, float64(r.Latency.Sum)/1e9, cumulative(&r.Latency), Printable(r.Name))
	}
}

// unique makes a name differ from those seen: two may have become one when they were made printable.
func unique(seen map[string]bool, name string) string {
	u := name
	for n := 2; seen[u]; n++ {
		u = name + "#" + strconv.Itoa(n)
	}
	seen[u] = true
	return u
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// The buckets of the histogram end at powers of two of ns: from 1.024 us to 68.7 s.
const (
	firstPower = 10
	lastPower  = 36
)

// cumulative counts by upper bounds in s, as Prometheus does: those up to a bound. A latency that is one exactly,
// counts above it.
func cumulative(l *pktgen.Latency) map[float64]uint64 {
	var per [lastPower + 1]uint64
	for _, b := range l.Buckets {
		if b.To == 0 {
			continue
		}
		p := min(max(bits.Len64(b.To-1), firstPower), lastPower)
		per[p] += b.N
	}
	m, n := make(map[float64]uint64, lastPower-firstPower+1), uint64(0)
	for p := firstPower; p <= lastPower; p++ {
		n += per[p]
		m[float64(uint64(1)<<p)/1e9] = n
	}
	return m
}
