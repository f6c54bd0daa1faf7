package host

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/link"
)

// FuzzOutside: what a worker asks for is an answer or an error, and nothing that its plan does not say.
func FuzzOutside(f *testing.F) {
	f.Add(uint16(outsideFile), []byte(`{"use":"pcap","name":"eth0"}`))
	f.Add(uint16(outsideFile), []byte(`{"use":"net/dev"}`))
	f.Add(uint16(outsideBegin), []byte(`{"use":"trace","name":"eth0"}`))
	f.Add(uint16(0x0310), []byte(`{"group":"eth0"}`))
	f.Add(uint16(0x0320), []byte(`null`))
	f.Add(uint16(outsideTook), []byte(`{"device":"uio0"}`))
	f.Add(uint16(outsideJoin), []byte(`{"device":"rio0"}`))
	f.Add(uint16(outsideWindows), []byte(`{"device":"rio0","seen":1}`))
	f.Add(uint16(outsideServed), []byte(`{"device":"eth1"}`))
	f.Add(uint16(outsideShared), []byte(`{"device":"eth1","size":4096}`))
	f.Fuzz(func(t *testing.T, m uint16, body []byte) {
		plan, err := ParsePlan([]string{"eth0=sim:e1000e", "uio0=uio:uio7", "rio0=fabric:/none.sock,node=pe0", "eth1=vfio-user:/none.sock"}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		o, err := newOutside(Config{Plan: plan}, groupPlan{Name: "eth0", Plan: plan})
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // some wait for news
		defer cancel()
		_, files, err := o.Call(ctx, link.Method(m), body, nil, func([]byte) error { return nil })
		defer closeOpen(files)
		if err != nil && len(files) > 0 {
			t.Errorf("an error and %d files", len(files))
		}
		var a fileArgs
		if len(files) > 0 && (json.Unmarshal(body, &a) != nil || a.Use != useNetDev) {
			t.Errorf("method %#x of %q gave a file", m, body)
		}
	})
}

// FuzzSaved: what another program saved is a plan that can be used, or an error.
func FuzzSaved(f *testing.F) {
	plan, err := ParsePlan([]string{"rp0=sim:pcie-root-port", "eth0=sim:e1000e,under=rp0", "eth1=sim:e1000e"}, []string{"eth0-eth1"}, nil)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(Saved{Version: savedVersion, Plan: wirePlan(plan), Numbers: map[string]savedNumbers{"eth0": {Given: map[int]int{0: 1}, IRQs: map[int]int{0: 100}}},
		Overrides: map[string]string{"1000:00:03.0": "e1000"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := newSystem(Config{Plan: plan, Facts: Facts{CPUs: "0"}})
		defer s.cancel()
		v := s.inherit(raw)
		if v == nil && len(raw) > 0 && len(s.Lost()) == 0 {
			t.Error("nothing was inherited, and nothing lost")
		}
		if err := s.plan.check(); err != nil {
			t.Error(err)
		}
		s.plan.groups()
	})
}
