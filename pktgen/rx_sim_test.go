package pktgen_test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/bus/sim/simtest"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
	"golang.org/x/sys/unix"
)

// pair is two wired NICs: pktgen sends from eth0, twice, and accounts for what eth1 receives.
type pair struct {
	t    *testing.T
	m    *sim.Machine
	nds  map[string]netdev.Device
	e    *pktgen.Engine
	sink *netdev.Sink
	took atomic.Uint64 // frames that the receiver was shown
}

// newPair makes a pair; network is between the receive queues and the receiver.
func newPair(t *testing.T, options map[string]string, network func(frames []*dma.Buf) []*dma.Buf) *pair {
	t.Helper()
	m := simtest.Machine(t, sim.Config{
		Devices: []sim.DeviceSpec{{Name: "eth0", Model: "e1000e"}, {Name: "eth1", Model: "e1000e"}},
		Wires:   [][2]string{{"eth0", "eth1"}},
	})
	nds := map[string]netdev.Device{}
	for _, name := range []string{"eth0", "eth1"} {
		nds[name] = simtest.Bind(t, simtest.Device(t, m, name), e1000.Driver, options).(netdev.Device)
	}
	if err := netdev.Wire(nds["eth0"], nds["eth1"]); err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, m: m, nds: nds}
	var err error
	p.e, err = pktgen.New(pktgen.Config{CPUs: []int{0, 1}, Log: bustest.Log(t), Lookup: func(name string) (netdev.Device, error) {
		if nd := nds[name]; nd != nil {
			return nd, nil
		}
		return nil, unix.ENODEV
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.e.Close)
	r, err := p.e.AddRx("eth1")
	if err != nil {
		t.Fatal(err)
	}
	if p.sink, err = netdev.NewSink(nds["eth1"]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.sink.Close(); err != nil {
			t.Error(err)
		}
	})
	p.sink.Watch(func(frames []*dma.Buf) {
		p.took.Add(uint64(len(frames)))
		if network != nil {
			frames = network(frames)
		}
		r.Take(frames)
	})
	p.write("kpktgend_0", "add_device eth0")
	return p
}

func (p *pair) write(name string, commands ...string) {
	p.t.Helper()
	for _, c := range commands {
		if _, err := file(p.t, p.e, name).Write(p.t.Context(), []byte(c+"\n")); err != nil {
			p.t.Fatalf("%s > %s: %v", c, name, err)
		}
	}
}

// run sends and waits until all frames were received.
func (p *pair) run(count uint64) {
	p.t.Helper()
	before := p.took.Load()
	p.write("pgctrl", "start")
	for end := time.Now().Add(20 * time.Second); p.took.Load()-before < count; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("%d of %d frames arrived within 20 s", p.took.Load()-before, count)
		}
	}
}

func (p *pair) read() string {
	p.t.Helper()
	text, err := file(p.t, p.e, "eth1.rx").ReadAll()
	if err != nil {
		p.t.Fatal(err)
	}
	return string(text)
}

// value is a number of the receiver's file.
func (p *pair) value(name string) uint64 {
	p.t.Helper()
	m := regexp.MustCompile(`[ \n]` + name + `: ([0-9]+)`).FindStringSubmatch(p.read())
	if m == nil {
		p.t.Fatalf("no %s in\n%s", name, p.read())
	}
	v, err := strconv.ParseUint(m[1], 10, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// wants compares "received 5 lost 0" with the file.
func (p *pair) wants(what, want string) {
	p.t.Helper()
	f := strings.Fields(want)
	for i := 0; i < len(f); i += 2 {
		if got := fmt.Sprint(p.value(f[i])); got != f[i+1] {
			p.t.Errorf("%s: %s %s, want %s\n%s", what, f[i], got, f[i+1], p.read())
		}
	}
}

// Whatever pktgen can be told to send arrives whole on a wire that loses nothing, and is one run.
func TestReceiveWired(t *testing.T) {
	bustest.NoLeaks(t)
	const count = 3000
	p := newPair(t, nil, nil)
	for _, c := range []struct{ commands, want string }{
		{"burst 32", "clones 0 flows 1"},
		{"burst 1", "clones 0 flows 1"},
		{"burst 8,dst_min 10.0.0.1,dst_max 10.0.0.200,udp_src_min 9,udp_src_max 12", "flows 600"},
		{"flag IPSRC_RND,src_min 10.0.0.1,src_max 10.0.0.4,flag IPDST_RND,dst_max 10.0.0.4,flag UDPSRC_RND,flag UDPDST_RND,udp_dst_max 20,flag MACSRC_RND,src_mac_count 100", "clones 0"},
		{"flows 50,flowlen 7,flag FLOW_SEQ", "clones 0"},
		{"flows 0,flag !FLOW_SEQ,min_pkt_size 60,max_pkt_size 1500", "clones 0"},
		{"vlan_id 7,svlan_id 9,flag UDPCSUM", "clones 0"},
		{"flag VID_RND,flag SVID_RND", "clones 0"},
		{"flag !VID_RND,flag !SVID_RND,mpls 00010120,flag MPLS_RND", "clones 0"},
		{"dst6_min fec0::1,dst6_max fec0::ffff,src6 fec0::2", "clones 0"},
		{"mpls 0,flag NO_TIMESTAMP,flag !IPV6", "no_timestamp 3000 samples 0"},
		{"dst_max 10.0.0.1,udp_src_max 9,udp_dst_max 9,clone_skb 5", "duplicated 0"},
		{"flag !NO_TIMESTAMP,clone_skb 1000", "no_timestamp 0"},
		{"burst 32,clone_skb 1", "bad_timestamp 0"},
		{"clone_skb 0,imix_weights 60,7 576,4 1500,1", "clones 0"},
	} {
		var commands []string
		if strings.HasPrefix(c.commands, "clone_skb 0,imix") {
			commands = strings.SplitN(c.commands, ",", 2)
		} else {
			commands = strings.Split(c.commands, ",")
		}
		p.write("eth0", "dst_mac 52:54:00:12:34:57", "flag !MACDST_RND", fmt.Sprint("count ", count))
		p.write("eth0", commands...)
		p.write("eth1.rx", "clear_counters", "verify 2000")
		p.run(count)
		p.wants(c.commands, fmt.Sprintf("received %d lost 0 duplicated 0 reordered 0 corrupted 0 other 0 bad_timestamp 0 runs 1 %s", count, c.want))
	}
	// Several senders with the same headers.
	p.write("kpktgend_1", "add_device eth0@1")
	for _, d := range []string{"eth0", "eth0@1"} {
		p.write(d, "dst_mac 52:54:00:12:34:57", "count 20000", "burst 8", "imix_weights 60,1")
	}
	p.write("eth1.rx", "clear_counters")
	p.run(40000)
	p.wants("two senders", "received 40000 lost 0 duplicated 0 reordered 0 runs 2")
	if text := p.read(); strings.Count(text, "     seq: 20000  received: 20000  lost: 0 ") != 2 {
		t.Errorf("two senders:\n%s", text)
	}
}

// What is done to frames between sender and receiver is what the file shows.
func TestReceiveBetween(t *testing.T) {
	bustest.NoLeaks(t)
	var n, lost, doubled, moved, spoiled uint64
	var out []*dma.Buf
	p := newPair(t, nil, func(frames []*dma.Buf) []*dma.Buf {
		out = out[:0]
		for i := 0; i < len(frames); i++ {
			b := frames[i]
			switch n++; {
			case n%100 == 10:
				lost++
			case n%100 == 20 && i+1 < len(frames):
				out = append(out, frames[i+1], b)
				i++
				n++
				moved++
			case n%100 == 30:
				out = append(out, b, b)
				doubled++
			case n%100 == 40:
				b.Data[30] ^= 0x10 // the destination's first byte
				out = append(out, b)
				spoiled++
			default:
				out = append(out, b)
			}
		}
		return out
	})
	const count = 20005
	p.write("eth0", "dst_mac 52:54:00:12:34:57", "dst_min 10.0.0.1", "dst_max 10.0.0.20", fmt.Sprint("count ", count), "burst 32")
	p.run(count)
	p.wants("between", fmt.Sprintf("received %d lost %d duplicated %d reordered %d checksum %d corrupted %d runs 1 flows 20",
		count+doubled-lost-spoiled, lost+spoiled, doubled, moved, spoiled, spoiled))
	if lost == 0 || doubled == 0 || moved == 0 || spoiled == 0 {
		t.Errorf("%d lost, %d doubled, %d moved, %d spoiled: this tests nothing", lost, doubled, moved, spoiled)
	}
}

// A sender's frames may arrive in two queues.
func TestReceiveTwoQueues(t *testing.T) {
	bustest.NoLeaks(t)
	p := newPair(t, map[string]string{"queues": "2"}, nil)
	p.write("eth0", "dst_mac 52:54:00:12:34:57", "flag UDPSRC_RND", "udp_src_min 1", "udp_src_max 500", "count 30000", "burst 32")
	p.run(30000)
	p.wants("two queues", "received 30000 lost 0 duplicated 0 corrupted 0 runs 1")
}
