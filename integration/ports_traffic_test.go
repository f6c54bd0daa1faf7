package integration

import (
	"strings"
	"testing"
	"time"
)

const (
	errTimeout = 0x4000 // Completion Timeout: not fatal
	errDLP     = 0x10   // Data Link Protocol: fatal
	errBadTLP  = 0x40   // correctable
	sofar      = `pkts-sofar: (\d+) `
)

// TestPortsRecoverTraffic: errors while pktgen sends. The device recovers, the run goes on to its end, and each frame either came or is counted
// as lost.
func TestPortsRecoverTraffic(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		devices []string
		places  []string // where errors are
		count   int      // so many that it is still sending then
	}{
		{"two ports", []string{
			"rp0=qemu:pcie-root-port", "eth0=qemu:e1000e,under=rp0", "rp1=qemu:pcie-root-port", "eth1=qemu:e1000e,under=rp1",
		}, []string{"1000:00:03.0", "1000:01:00.0", "1000:00:04.0"}, 600_000},
		{"a switch", []string{
			"rp0=qemu:pcie-root-port", "sw0=qemu:x3130-upstream,under=rp0", "dn0=qemu:xio3130-downstream,under=sw0", "eth0=qemu:e1000e,under=dn0",
			"dn1=qemu:xio3130-downstream,under=sw0", "eth1=qemu:e1000e,under=dn1",
		}, []string{"1000:00:03.0"}, 600_000},
		{"sim", []string{
			"rp0=sim:root-port", "eth0=sim:e1000e,under=rp0,sim.aer=on", "rp1=sim:root-port", "eth1=sim:e1000e,under=rp1,sim.aer=on",
		}, []string{"1000:00:03.0", "1000:01:00.0", "1000:00:04.0"}, 3_000_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := startPorts(t, append(c.devices, "--wire", "eth0-eth1")...)
			count := long(10*c.count, c.count)
			recoverTraffic(t, p, c.places, count)
			accounted(t, p, count, 2*len(c.places))
		})
	}
}

// recoverTraffic has two errors at each place while pktgen sends.
func recoverTraffic(t *testing.T, p *portsRun, places []string, count int) {
	t.Helper()
	p.pktgen(t, 0, "eth0", p.get(t, "sys/class/net/eth1/address"), count)
	done := p.start()
	eventually(t, "the first packets", func() bool { return p.number(t, "proc/net/pktgen/eth0", sofar) > 1000 })
	during := 0
	for round := 0; round < 2*len(places); round++ {
		bits, most := uint32(errTimeout), "Non-Fatal"
		if round >= len(places) {
			bits, most = errDLP, "Fatal"
		}
		place, mark := places[round%len(places)], p.mark()
		p.inject(t, place, bits, 0)
		got, mark := p.hear(t, mark, "("+most+") error message received")
		end, _ := p.hear(t, mark, "AER: device recovery ")
		if !strings.HasSuffix(end.Text, "successful") {
			t.Fatalf("%s: %s\n%s", place, end.Text, p.lastWords())
		}
		took := time.Duration(end.NS - got.NS)
		t.Logf("%s error at %s: recovered after %v", most, place, took)
		switch {
		case took > 2*time.Second:
			t.Errorf("%s error at %s: recovered after %v, want 200 ms", most, place, took)
		case took > 200*time.Millisecond:
			t.Logf("that is more than 200 ms")
		}
		if sent := p.number(t, "proc/net/pktgen/eth0", sofar); sent < count {
			during++
		}
	}
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatalf("pktgen does not come to an end: %s\n%s", p.get(t, "proc/net/pktgen/eth0"), p.lastWords())
	}
	t.Logf("%d of %d errors while it sent", during, 2*len(places))
	if during == 0 {
		t.Errorf("no error came while pktgen sent")
	}
	if got := p.number(t, "proc/net/pktgen/eth0", sofar); got != count || !strings.Contains(p.get(t, "proc/net/pktgen/eth0"), "Result: OK:") {
		t.Errorf("pktgen sent %d, want %d: %s", got, count, p.get(t, "proc/net/pktgen/eth0"))
	}
}

// inFlight is what may be lost of what is under way while a receiver is reset, which nobody counts but pktgen's receiver.
const inFlight = 64

// accounted: each frame was received or is counted as lost, and the devices dropped what was lost, but for what was under way at an error.
func accounted(t *testing.T, p *portsRun, count, errors int) {
	t.Helper()
	const rx = "proc/net/pktgen/eth1.rx"
	var received, lost int
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		received, lost = p.number(t, rx, `received: (\d+) `), p.number(t, rx, `lost: (\d+) `)
		if received+lost == count {
			break
		}
	}
	txDropped, rxDropped := p.stat(t, "eth0", "tx_dropped"), p.stat(t, "eth1", "rx_dropped")
	missed := p.stat(t, "eth1", "rx_missed_errors")
	t.Logf("received %d, lost %d, dropped by the sender %d, by the receiver %d, missed %d", received, lost, txDropped, rxDropped, missed)
	if received+lost != count {
		t.Errorf("received %d, lost %d of %d: %s", received, lost, count, p.get(t, rx))
	}
	if n := lost - txDropped - rxDropped - missed; n < 0 || n > errors*inFlight {
		t.Errorf("%d frames are lost, and the devices dropped %d, %d and %d: want at most %d under way", lost, txDropped, rxDropped, missed, errors*inFlight)
	}
	if tx := p.stat(t, "eth0", "tx_packets"); tx+txDropped != count {
		t.Errorf("eth0 sent %d and dropped %d, want %d together", tx, txDropped, count)
	}
}
