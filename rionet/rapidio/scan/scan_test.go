package scan

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// TestPaper is the example of the 2005 paper: a switch, four endpoints, the host at port 0.
func TestPaper(t *testing.T) {
	for _, kind := range []string{"standard", "tsi500"} {
		t.Run(kind, func(t *testing.T) {
			f := newFabric(t, star(4, kind).String())
			var peers []*peer
			for i := range 4 {
				peers = append(peers, join(t, f, fmt.Sprintf("pe%d", i), -min(i, 1), quick))
			}
			peers[0].mustScan()
			if got, want := peers[0].seen(), "00:s:0002 00:e:0003=1 00:e:0004=2 00:e:0005=3"; got != want {
				t.Errorf("the host's devices = %s, want %s", got, want)
			}
			eventually(t, "routes of sw0", func() string { return routes(f, "sw0") }, "0>0 1>1 2>2 3>3")
			for i, n := range f.Nodes() {
				if int(n.DestID) != i {
					t.Errorf("ID of %s = %d, want %d", n.Name, n.DestID, i)
				}
			}
			sw := peers[0].bus.Devices()[0]
			if got := fmt.Sprint(sw.Routes()[:4], sw.Next(0), sw.Next(1), sw.Next(3), sw.Hop, " ", sw.Switch.Ops.Name()); got != "[0 1 2 3] <nil> 00:e:0003 00:e:0005 0 "+kind {
				t.Errorf("the switch = %s", got)
			}
			unlocked(t, peers[0])
			for _, p := range peers[1:] {
				p.mustScan()
			}
			if got, want := peers[2].seen(), "00:s:0002 00:e:0001=0 00:e:0003=1 00:e:0005=3"; got != want {
				t.Errorf("the devices of pe2 = %s, want %s", got, want)
			}
			sw = peers[2].bus.Devices()[0]
			if got := fmt.Sprint(sw.Routes(), sw.Next(0), sw.Next(2), sw.Next(3)); got != "[0 1 2 3] 00:e:0001 <nil> 00:e:0005" {
				t.Errorf("the switch, as pe2 sees it = %s", got)
			}
			connected(t, peers...)
			if log := peers[0].log.String(); !strings.Contains(log, "RIO: enumerate master port 0, rapidio0") || strings.Contains(log, "WARN") {
				t.Errorf("the host's log:\n%s", log)
			}
			if log := peers[1].log.String(); !strings.Contains(log, "RIO: discover master port 0, rapidio0") || strings.Contains(log, "WARN") {
				t.Errorf("an agent's log:\n%s", log)
			}
		})
	}
}

// TestComplete checks what an endpoint is left with: how completion is told, who enumerated it, where its errors go.
func TestComplete(t *testing.T) {
	y := star(3, "standard")
	y.endpoints[2] = "- {name: pe2, serial: false}\n"
	f := newFabric(t, y.String())
	host, a, b := join(t, f, "pe0", 0, quick), join(t, f, "pe1", -1, quick), join(t, f, "pe2", -1, quick)
	host.mustScan()
	ctx := context.Background()
	gen := func(p *peer) uint32 {
		d, err := rapidio.ReadDevice(ctx, rapidio.Local{Mport: p.m})
		if err != nil {
			t.Fatal(err)
		}
		if d.PHY == 0 {
			return 0
		}
		v, err := p.m.LocalRead32(ctx, d.PHY+rapidio.PHYGenControl)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if got, want := gen(host), rapidio.GenHost|rapidio.GenMaster|rapidio.GenDiscovered; got != want {
		t.Errorf("Port General Control of the host = %#x, want %#x", got, want)
	}
	if got, want := gen(a), rapidio.GenMaster|rapidio.GenDiscovered; got != want {
		t.Errorf("Port General Control of pe1 = %#x, want %#x", got, want)
	}
	if v, err := b.m.LocalRead32(ctx, rapidio.RegComponentTag); err != nil || v != rapidio.EnumComplete {
		t.Errorf("component tag of an endpoint without LP-serial block = %#x, %v, want %#x", v, err, rapidio.EnumComplete)
	}
	d := host.bus.Devices()[1]
	if v, err := d.Read32(ctx, d.ErrMgmt+rapidio.EMPortWriteTgt); err != nil || v != 0 {
		t.Errorf("port-write target of pe1 = %#x, %v, want the host's ID, 0", v, err)
	}
	a.mustScan()
	b.mustScan()
	if got, want := a.seen(), "00:s:0002 00:e:0001=0 00:e:10002=2"; got != want {
		t.Errorf("devices of pe1 = %s, want %s", got, want)
	}
	connected(t, host, a, b)
	before := host.bus.Devices()
	host.mustScan()
	for i, d := range host.bus.Devices() {
		if d != before[i] {
			t.Errorf("after another scan %s is another device", d.Name())
		}
	}
}
