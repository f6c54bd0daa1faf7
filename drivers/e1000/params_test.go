package e1000

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/netdev"
)

var (
	_ pci.ParamUser    = (*nic)(nil)
	_ netdev.Ethtooler = (*nic)(nil)
)

// param is a parameter of an instance.
func param(t *testing.T, n *nic, name string) pci.Param {
	t.Helper()
	for _, p := range n.Params() {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("no parameter %s", name)
	return pci.Param{}
}

// TestParams reads every parameter, and writes each with what it takes and what it does not.
func TestParams(t *testing.T) {
	m := newModel(device82574)
	n := probeModel(t, m, map[string]string{"ring": "128", "itr": "3", "flow": "rx", "bus": "intx"})
	ctx := context.Background()
	for _, c := range []struct {
		name, value, want string
		err               error
	}{
		{"FlowControl", "", "1", nil}, {"FlowControl", "3", "3", nil}, {"FlowControl", "4", "3", unix.ERANGE}, {"FlowControl", "full", "3", unix.EINVAL}, {"FlowControl", "0", "0", nil},
		{"InterruptThrottleRate", "", "3", nil}, {"InterruptThrottleRate", "8000", "8000", nil}, {"InterruptThrottleRate", "2", "8000", unix.ERANGE},
		{"InterruptThrottleRate", "99", "8000", unix.ERANGE}, {"InterruptThrottleRate", "100001", "8000", unix.ERANGE}, {"InterruptThrottleRate", "-1", "8000", unix.EINVAL},
		{"InterruptThrottleRate", "1", "1", nil}, {"InterruptThrottleRate", "0", "0", nil},
		{"RxIntDelay", "", "0", nil}, {"RxIntDelay", "32", "32", nil}, {"RxIntDelay", "65536", "32", unix.ERANGE}, {"RxIntDelay", "", "32", nil},
		{"RxAbsIntDelay", "65535", "65535", nil}, {"TxIntDelay", "8", "8", nil}, {"TxAbsIntDelay", "x", "0", unix.EINVAL}, {"TxAbsIntDelay", "64", "64", nil},
		{"TxDescriptors", "", "128", nil}, {"RxDescriptors", "", "128", nil}, {"queues", "", "1", nil}, {"IntMode", "", "0", nil},
		{"XsumRX", "", "1", nil}, {"XsumRX", "0", "0", nil}, {"XsumRX", "2", "0", unix.ERANGE}, {"XsumRX", "yes", "0", unix.EINVAL}, {"XsumRX", "1", "1", nil},
		{"weight", "", "64", nil}, {"weight", "16", "16", nil}, {"weight", "0", "16", unix.ERANGE}, {"weight", "65", "16", unix.ERANGE}, {"weight", "all", "16", unix.EINVAL},
	} {
		p := param(t, n, c.name)
		if c.value != "" {
			if err := p.Set(ctx, c.value); !errors.Is(err, c.err) {
				t.Errorf("%s = %s: %v, want %v", c.name, c.value, err, c.err)
			}
		}
		if got := p.Get(); got != c.want {
			t.Errorf("%s after %q = %s, want %s", c.name, c.value, got, c.want)
		}
	}
	for _, ro := range []string{"TxDescriptors", "RxDescriptors", "queues", "IntMode"} {
		if param(t, n, ro).Set != nil {
			t.Errorf("%s can be set", ro)
		}
	}
	m.mu.Lock()
	for reg, want := range map[bus.Off]uint32{regRDTR: 32, regRADV: 0xffff, regTIDV: 8, regTADV: 64} {
		if got := m.reg[reg/4]; got != want {
			t.Errorf("register %#x = %d, want %d", reg, got, want)
		}
	}
	m.mu.Unlock()
	if n.tx[0].report != txRS|txIDE {
		t.Errorf("a transmit delay is not asked for: %#x", n.tx[0].report)
	}
	if err := param(t, n, "TxIntDelay").Set(ctx, "0"); err != nil || n.tx[0].report != txRS {
		t.Errorf("TxIntDelay = 0: %v, then %#x", err, n.tx[0].report)
	}
	n.Close()
	for _, p := range n.Params() {
		p.Get()
		if p.Set != nil {
			if err := p.Set(ctx, "1"); !errors.Is(err, bus.ErrClosed) && p.Name != "weight" {
				t.Errorf("%s of a closed device: %v, want %v", p.Name, err, bus.ErrClosed)
			}
		}
	}
	for _, p := range probeModel(t, newModel(device82540), nil).Params() {
		if p.Name == "IntMode" {
			t.Error("the 82540EM has a parameter IntMode")
		}
	}
}

// TestCounters: every register counts under the kernel's name, and every name stands once.
func TestCounters(t *testing.T) {
	m := newModel(device82574)
	n := probeModel(t, m, map[string]string{"queues": "2"})
	want := map[string]uint64{}
	m.mu.Lock()
	for i, c := range map[bus.Off]string{
		regBPRC: "rx_broadcast", regBPTC: "tx_broadcast", regMPRC: "rx_multicast", regMPTC: "tx_multicast", regRNBC: "rx_no_buffer_count", regMPC: "rx_missed_errors",
		regECOL: "tx_aborted_errors", regLATECOL: "tx_abort_late_coll", regDC: "tx_deferred_ok", regSCC: "tx_single_coll_ok", regMCC: "tx_multi_coll_ok",
		regROC: "rx_long_length_errors", regRUC: "rx_short_length_errors", regALGNERRC: "rx_align_errors", regTSCTC: "tx_tcp_seg_good", regTSCTFC: "tx_tcp_seg_failed",
		regXONRXC: "rx_flow_control_xon", regXOFFRXC: "rx_flow_control_xoff", regXONTXC: "tx_flow_control_xon", regXOFFTXC: "tx_flow_control_xoff",
		regMGTPTC: "tx_smbus", regMGTPRC: "rx_smbus", regMGTPDC: "dropped_smbus", regCRCERRS: "rx_crc_errors", regGPTC: "tx_packets", regGPRC: "rx_packets",
	} {
		m.reg[i/4] = uint32(i)
		want[c] = uint64(i)
	}
	m.mu.Unlock()
	for range 2 { // what was read is kept
		seen := map[string]bool{}
		for _, c := range n.Counters() {
			if seen[c.Name] {
				t.Errorf("%s stands twice", c.Name)
			}
			seen[c.Name] = true
			if w, ok := want[c.Name]; ok && c.Value != w {
				t.Errorf("%s = %d, want %d", c.Name, c.Value, w)
			}
		}
		for name := range want {
			if !seen[name] {
				t.Errorf("no counter %s", name)
			}
		}
		for _, name := range []string{"rx_csum_offload_good", "rx_queue_1_packets", "tx_queue_1_bytes", "tx_queue_0_restart", "rx_queue_0_csum_err"} {
			if !seen[name] {
				t.Errorf("no counter %s", name)
			}
		}
	}
	m.mu.Lock()
	m.die()
	m.mu.Unlock()
	if got := n.Counters(); len(got) == 0 || strings.Contains(got[0].Name, " ") {
		t.Errorf("%d counters of a dead device", len(got))
	}
}
