package pktgen_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/bus/sim/simtest"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
)

// park is NICs of the simulator, driven by their driver, and an engine on two threads.
type park struct {
	t       *testing.T
	machine *sim.Machine
	engine  *pktgen.Engine
	nics    map[string]netdev.Device
}

// newPark makes n NICs, eth0 and so on. Everything is closed, and must be whole, at the end of the test.
func newPark(t *testing.T, n int, options map[string]string) *park {
	t.Helper()
	bustest.NoLeaks(t)
	p := &park{t: t, nics: map[string]netdev.Device{}}
	var c sim.Config
	for i := range n {
		c.Devices = append(c.Devices, sim.DeviceSpec{Name: fmt.Sprint("eth", i), Model: "e1000e"})
	}
	p.machine = simtest.Machine(t, c)
	var drivers []pci.Instance
	for _, d := range c.Devices {
		r := pci.Bind(t.Context(), simtest.Device(t, p.machine, d.Name), pci.Env{Name: d.Name, Options: options}, []*pci.Driver{e1000.Driver})
		if r.Outcome != pci.Bound {
			t.Fatal(r.Err)
		}
		p.nics[d.Name] = r.Instance.(netdev.Device)
		drivers = append(drivers, r.Instance)
	}
	var err error
	p.engine, err = pktgen.New(pktgen.Config{CPUs: []int{0, 1}, Lookup: func(name string) (netdev.Device, error) {
		if nd := p.nics[name]; nd != nil {
			return nd, nil
		}
		return nil, unix.ENODEV
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.engine.Close()
		for _, d := range drivers {
			_ = d.Close() // one that vanished says so
		}
		p.engine.Close()
	})
	return p
}

func (p *park) write(name string, commands ...string) {
	p.t.Helper()
	for _, c := range commands {
		if _, err := file(p.t, p.engine, name).Write(p.t.Context(), []byte(c+"\n")); err != nil {
			p.t.Fatalf("%s > %s = %v", c, name, err)
		}
	}
}

func (p *park) read(name string) string {
	p.t.Helper()
	b, err := file(p.t, p.engine, name).ReadAll()
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

// start runs everything and returns what waits for the end.
func (p *park) start() (wait func()) {
	done := make(chan struct{})
	f := file(p.t, p.engine, "pgctrl")
	go func() {
		defer close(done)
		_, _ = f.Write(context.Background(), []byte("start\n"))
	}()
	return func() {
		p.t.Helper()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			p.t.Fatal("start did not return within 20 s")
		}
	}
}

// until waits until a file has a text.
func (p *park) until(name, text string) {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(p.read(name), text); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("%s does not say %q after 20 s:\n%s", name, text, p.read(name))
		}
	}
}

// The paper's machine, ten NICs on two threads: each sends all that it shall.
func TestTenNICs(t *testing.T) {
	p := newPark(t, 10, nil)
	for i := range 10 {
		name := fmt.Sprint("eth", i)
		p.write(fmt.Sprint("kpktgend_", i%2), "add_device "+name)
		p.write(name, fmt.Sprint("count ", 500+100*i), "pkt_size 60", "burst 16", "dst_mac 52:54:00:12:34:57")
	}
	p.start()()
	for i := range 10 {
		name, n := fmt.Sprint("eth", i), uint64(500+100*i)
		if text := p.read(name); !strings.Contains(text, "Result: OK: ") || !strings.Contains(text, fmt.Sprintf(" usec, %d (60byte,0frags)", n)) {
			t.Errorf("%s shows\n%s\nwant %d packets", name, text, n)
		}
		if got := p.nics[name].Stats().TxPackets; got != n {
			t.Errorf("%s has sent %d packets, want %d", name, got, n)
		}
	}
}

// Two threads on the two queues of one NIC, and both on both.
func TestThreadsShareANIC(t *testing.T) {
	p := newPark(t, 1, map[string]string{"queues": "2"})
	for i := range 2 {
		name := fmt.Sprint("eth0@", i)
		p.write(fmt.Sprint("kpktgend_", i), "add_device "+name)
		p.write(name, "count 2000", "pkt_size 60", "burst 8", "flag QUEUE_MAP_CPU")
	}
	p.start()()
	for i := range 2 {
		if text := p.read(fmt.Sprint("eth0@", i)); !strings.Contains(text, fmt.Sprintf("cur_queue_map: %d\n", i)) || !strings.Contains(text, " usec, 2000 (") {
			t.Errorf("eth0@%d shows\n%s\nwant 2000 packets on queue %d", i, text, i)
		}
		p.write(fmt.Sprint("eth0@", i), "flag !QUEUE_MAP_CPU", "queue_map_max 1")
	}
	p.start()()
	if got := p.nics["eth0"].Stats().TxPackets; got != 8000 {
		t.Errorf("eth0 has sent %d packets, want 8000", got)
	}
}

// One NIC loses its link and one is pulled out while four send. Their runs end with a result, the others go on, and a
// link that comes back is as good as before.
func TestOneNICOfMany(t *testing.T) {
	p := newPark(t, 4, nil)
	for i := range 4 {
		name := fmt.Sprint("eth", i)
		p.write(fmt.Sprint("kpktgend_", i%2), "add_device "+name)
		p.write(name, "count 0", "pkt_size 60", "burst 16")
	}
	sends := func(names ...string) {
		t.Helper()
		for _, name := range names {
			nd := p.nics[name]
			before := nd.Stats().TxPackets
			for deadline := time.Now().Add(20 * time.Second); nd.Stats().TxPackets < before+100; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s sends no more:\n%s", name, p.read(name))
				}
			}
		}
	}
	wait := p.start()
	sends("eth0", "eth1", "eth2", "eth3")
	if err := p.machine.SetLink("eth0", false); err != nil {
		t.Fatal(err)
	}
	p.until("kpktgend_0", "Running: eth2 \nStopped: eth0 \n")
	if err := p.machine.Unplug("eth1"); err != nil {
		t.Fatal(err)
	}
	p.until("kpktgend_1", "Running: eth3 \nStopped: eth1 \n")
	for _, name := range []string{"eth0", "eth1"} {
		if text := p.read(name); !strings.Contains(text, "Result: OK: ") {
			t.Errorf("%s shows\n%s\nwant a result", name, text)
		}
	}
	sends("eth2", "eth3")
	p.engine.RemoveDevice("eth1")
	if p.engine.Dir().Lookup("eth1") != nil {
		t.Error("eth1 is still there")
	}
	sends("eth2", "eth3")
	p.write("pgctrl", "stop")
	wait()
	if err := p.machine.SetLink("eth0", true); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); !p.nics["eth0"].Link().Up; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("eth0's link is not back after 20 s")
		}
	}
	for _, name := range []string{"eth0", "eth2", "eth3"} {
		p.write(name, "count 100")
	}
	p.start()()
	for _, name := range []string{"eth0", "eth2", "eth3"} {
		if text := p.read(name); !strings.Contains(text, "Result: OK: ") || !strings.Contains(text, " usec, 100 (") {
			t.Errorf("%s shows\n%s\nwant 100 packets", name, text)
		}
	}
}
