//go:build linux

package main

import (
	"strings"
	"testing"
)

func TestResultRate(t *testing.T) {
	for text, want := range map[string][]string{
		// Linux 6.1's, and ring3's.
		"Result: OK: 4025(c3977+d48) usec, 1000 (60byte,0frags)\n  248426pps 119Mb/sec (119244480bps) errors: 0\n": {"1000", "248426"},
		"Result: OK: 10(c10+d0) nsec, 5 (60byte,0frags)\n     7pps 0Mb/sec (0bps) errors: 0\n":                     {"5", "7"},
		"Result: ERROR: no link\n": nil,
	} {
		m := resultRate.FindStringSubmatch(text)
		if (m == nil) != (want == nil) || m != nil && (m[1] != want[0] || m[2] != want[1]) {
			t.Errorf("%q: %q, want %q", text, m, want)
		}
	}
}

func TestIRQLine(t *testing.T) {
	line := "          <idle>-0       [001] d.h2.   123.000456: irq_handler_entry: irq=28 name=vfio-msi[0](0000:00:08.0)"
	if m := irqLine.FindStringSubmatch(line); m == nil || m[1] != "123" || m[2] != "000456" {
		t.Errorf("a line of trace gives %q, want 123 and 000456", m)
	}
}

func TestPmdRate(t *testing.T) {
	said := "  Throughput (since last show)\r\n  Rx-pps:            0          Rx-bps:            0\r\n  Tx-pps:       792178          Tx-bps:    380245536\r\n"
	if m := pmdRate.FindStringSubmatch(said); m == nil || m[1] != "792178" {
		t.Errorf("testpmd's statistics give %q, want 792178", m)
	}
	if s := lastLines("a\r\n\n b\nc", 2); s != "b | c" {
		t.Errorf("lastLines = %q, want b and c", s)
	}
}

func TestBusy(t *testing.T) {
	a := cpuTimes{idle: 100, all: 1000}
	if v := a.busy(cpuTimes{idle: 175, all: 1100}); v != 25 {
		t.Errorf("75 of 100 ticks idle: busy %v%%, want 25", v)
	}
	if v := a.busy(a); v != 0 {
		t.Errorf("no time at all: busy %v%%, want 0", v)
	}
}

func TestSendCase(t *testing.T) {
	got := strings.Join(sendCase{Size: 60, Burst: 8, Clone: 1, Rate: 20_000}.commands(), ", ")
	want := "count 0, pkt_size 60, clone_skb 1, burst 8, delay 50000, dst_mac " + nobodyMAC + ", dst_min " + nobodyIP + ", dst_max " + nobodyIP
	if got != want {
		t.Errorf("commands = %q, want %q", got, want)
	}
	if n := mtuFor([]sendCase{{Size: 1514}}); n != 0 {
		t.Errorf("mtuFor 1514 = %d, want 0: the usual one", n)
	}
	if n := mtuFor([]sendCase{{Size: 60}, {Size: 9000}}); n != 8986 {
		t.Errorf("mtuFor 9000 = %d, want 8986", n)
	}
}
