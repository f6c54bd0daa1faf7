package figures

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
)

// begin is when the snapshots of tests begin.
var begin = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// at is a snapshot so many ms after the beginning, of eth0 that has sent n packets of 100 bytes to eth1, all since 0.
func at(ms int64, n uint64) *Snapshot {
	mono := 1e9 + ms*1e6
	s := &Snapshot{Instance: "r0", Time: begin.Add(time.Duration(ms) * time.Millisecond), Mono: mono}
	s.Devices = []Device{
		{Name: "eth0", Driver: "e1000", Model: "82574L", Up: true, Net: &Net{Link: true, Speed: 1000, FullDuplex: true, Statistics: netdev.Stats{TxPackets: n, TxBytes: 100 * n}},
			Interrupts: []Interrupt{{100, "eth0-rx-0", n / 10}, {101, "eth0-tx-0", 0}}},
		{Name: "eth1", Driver: "e1000", Up: true, Net: &Net{Statistics: netdev.Stats{RxPackets: n, RxBytes: 100 * n, RxErrors: 3}}, Interrupts: []Interrupt{}},
		{Name: "edu0", Driver: "edu", Interrupts: []Interrupt{}},
	}
	s.Pktgen = []Generator{{DeviceFigures: pktgen.DeviceFigures{Name: "eth0@1", NetDev: "eth0", Thread: "kpktgend_0", Running: true, Packets: n, Bytes: 100 * n, Started: 1e9,
		Stopped: mono, SizeLast: 100, Result: "Starting"}}}
	r := pktgen.RxFigures{Name: "eth1", Received: n, Bytes: 100 * n, Lost: 2, Started: 1e9, Stopped: mono}
	r.Latency = pktgen.Latency{Samples: n, Sum: n * 1500, Min: 1100, Max: 3000, P50: 1400, P90: 1600, P99: 2900, P999: 2990,
		Buckets: []pktgen.LatencyBucket{{From: 1024, To: 1280, N: n / 2}, {From: 1280, To: 1536, N: n - n/2 - 1}, {From: 2560, To: 3072, N: 1}}}
	s.Receivers = []Receiver{{RxFigures: r}}
	return s
}

func TestStream(t *testing.T) {
	var st Stream
	one := at(0, 100)
	st.Next(one)
	if one.Interval != 0 || one.Devices[0].Net.Tx != nil || one.Pktgen[0].Rate != nil || one.Receivers[0].Rate != nil || one.Devices[0].Rate != nil {
		t.Errorf("the first snapshot has rates: %+v", one)
	}
	two := at(500, 1100)
	st.Next(two)
	want := Rate{PPS: 2000, BPS: 2000 * 800}
	for name, got := range map[string]*Rate{"eth0 sent": two.Devices[0].Net.Tx, "eth1 received": two.Devices[1].Net.Rx, "pktgen": two.Pktgen[0].Rate, "receiver": two.Receivers[0].Rate} {
		if got == nil || *got != want {
			t.Errorf("rate of %s = %v, want %v", name, got, want)
		}
	}
	if r := two.Devices[0].Rate; r == nil || *r != 200 {
		t.Errorf("rate of interrupts = %v, want 200", r)
	}
	if two.Devices[2].Rate == nil || *two.Devices[2].Rate != 0 || two.Devices[2].Net != nil {
		t.Errorf("a device without interrupts: %+v", two.Devices[2])
	}
}

// TestStreamAgain: rates of what began anew, was cleared, or was not there before.
func TestStreamAgain(t *testing.T) {
	next := func(one, two *Snapshot) *Snapshot {
		var st Stream
		st.Next(one)
		st.Next(two)
		return two
	}
	// A run that began half way.
	two := at(1000, 300)
	two.Pktgen[0].Started = 1e9 + 500*1e6
	if r := next(at(0, 1000), two).Pktgen[0].Rate; r == nil || r.PPS != 600 {
		t.Errorf("rate of a new run = %v, want 600 a second since it began", r)
	}
	// One that began just before the snapshot's time, which was long before its counters were read.
	two = at(1000, 300)
	two.Pktgen[0].Started, two.Pktgen[0].Stopped = two.Mono-1e3, two.Mono+3e6-1e3
	if r := next(at(0, 1000), two).Pktgen[0].Rate; r == nil || r.PPS != 1e5 || r.BPS != 1e5*800 {
		t.Errorf("rate of a new run, read 3 ms late = %v, want 100000 a second", r)
	}
	// One that ended half way, and then did nothing.
	two = at(1000, 300)
	two.Pktgen[0].Running, two.Pktgen[0].Stopped = false, 1.5e9
	if r := next(at(0, 100), two).Pktgen[0].Rate; r == nil || r.PPS != 400 {
		t.Errorf("rate of a run that ended = %v, want 400 a second until then", r)
	}
	three := at(2000, 300)
	three.Pktgen[0].Running, three.Pktgen[0].Stopped = false, 1.5e9
	if r := next(two, three).Pktgen[0].Rate; r == nil || *r != (Rate{}) {
		t.Errorf("rate of what has ended before = %v, want 0", r)
	}
	// One that began and ended in between.
	two = at(1000, 300)
	two.Pktgen[0].Running, two.Pktgen[0].Started, two.Pktgen[0].Stopped = false, 1.25e9, 1.5e9
	if r := next(at(0, 1000), two).Pktgen[0].Rate; r == nil || r.PPS != 1200 {
		t.Errorf("rate of a run in between = %v, want 1200 a second", r)
	}
	// A device that has never run.
	one := at(0, 0)
	two = at(1000, 0)
	for _, s := range []*Snapshot{one, two} {
		s.Pktgen[0].Running, s.Pktgen[0].Started, s.Pktgen[0].Stopped = false, 0, 0
	}
	if r := next(one, two).Pktgen[0].Rate; r == nil || *r != (Rate{}) {
		t.Errorf("rate of what never ran = %v, want 0", r)
	}
	// clear_counters, after which larger packets were sent: fewer of them, and more bytes.
	one, two = at(0, 1000), at(1000, 300)
	one.Pktgen[0].Bytes, two.Pktgen[0].Bytes = 60000, 90000
	if r := next(one, two).Pktgen[0].Rate; r.PPS != 300 || r.BPS != 8*90000 {
		t.Errorf("rate after clear_counters = %v, want 300 packets and 90000 bytes a second", r)
	}
	// clear_counters.
	if s := next(at(0, 1000), at(1000, 300)); s.Pktgen[0].Rate.PPS != 300 || s.Receivers[0].Rate.PPS != 300 {
		t.Errorf("rates after clear_counters: %v, %v, want 300", s.Pktgen[0].Rate, s.Receivers[0].Rate)
	}
	// A device that was added.
	one = at(0, 0)
	one.Pktgen, one.Devices, one.Receivers = nil, nil, nil
	if s := next(one, at(1000, 300)); s.Pktgen[0].Rate.PPS != 300 || s.Devices[0].Net.Tx != nil || s.Receivers[0].Rate != nil {
		t.Errorf("rates of what was not there before: %+v", s)
	}
	// Other sizes than before: those of now count, as in Result.
	two = at(1000, 200)
	two.Pktgen[0].SizeLast, two.Pktgen[0].Bytes = 60, 200*60
	if r := next(at(0, 100), two).Pktgen[0].Rate; r.PPS != 100 || r.BPS != 100*480 {
		t.Errorf("rate with a new size = %v, want 100 packets of 480 bits", r)
	}
	// A capture: its bytes are counted one by one.
	two = at(1000, 200)
	two.Pktgen[0].Bytes = 15000
	if r := next(at(0, 100), two).Pktgen[0].Rate; r.BPS != 5000*8 {
		t.Errorf("rate of a capture = %v, want 40000 bit/s", r)
	}
	// No time went by.
	if s := next(at(0, 100), at(0, 200)); s.Interval != 0 || s.Pktgen[0].Rate != nil {
		t.Errorf("rates of no time: %+v", s)
	}
}

// TestJSON: a snapshot comes back as it was.
func TestJSON(t *testing.T) {
	var st Stream
	st.Next(at(0, 100))
	s := at(100, 200)
	st.Next(s)
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	got := &Snapshot{}
	if err := json.Unmarshal(b, got); err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("a snapshot came back as %+v, %v, want %+v", got, err, s)
	}
	for _, field := range []string{`"tx_packets":200`, `"tx_rate":{"pps":1000,`, `"name":"eth0@1"`, `"p999_ns":2990`, `"from_ns":1024`, `"net":null`} {
		if !strings.Contains(string(b), field) {
			t.Errorf("no %s in %s", field, b)
		}
	}
}

func TestText(t *testing.T) {
	var st Stream
	st.Next(at(0, 100))
	s := at(500, 1100)
	st.Next(s)
	s.Pktgen[0].Name = "eth0@\x1b[2J\xff"
	var b strings.Builder
	if err := s.Text(&b); err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(b.String(), "\n") // the time is local
	const want = `DEVICE  DRIVER  LINK      RX PACKETS  RX BYTES  RX PPS  RX MBIT/S  TX PACKETS  TX BYTES  TX PPS  TX MBIT/S  ERRORS  DROPPED  IRQS  IRQ/S
eth0    e1000   1000Mb/s           0         0       0        0.0        1100    110000    2000        1.6       0        0   110    200
eth1    e1000   down            1100    110000    2000        1.6           0         0       0        0.0       3        0     0      0
edu0    edu     gone               -         -       -          -           -         -       -          -       -        -     0      0
PKTGEN      THREAD      STATE    PACKETS       OF   PPS  MBIT/S  ERRORS  SECONDS
eth0@?[2J?  kpktgend_0  running     1100  forever  2000     1.6       0    0.500
RECEIVED  PACKETS   BYTES   PPS  MBIT/S  LOST  DUPLICATED  REORDERED  CORRUPTED  OTHER
eth1         1100  110000  2000     1.6     2           0          0          0      0
LATENCY US  SAMPLES  MIN  MEAN  P50  P90  P99  P99.9  MAX
eth1           1100  1.1   1.5  1.4  1.6  2.9    3.0  3.0
`
	if got != want {
		t.Errorf("a snapshot is\n%swant\n%s", got, want)
	}
	if !strings.Contains(b.String(), "rates of the last 0.5 s") {
		t.Errorf("the interval is not told: %s", b.String())
	}
}
