package e1000_test

import (
	"context"
	"fmt"
	"testing"
	"time"
	"strings"
	"os"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
)

func TestZZ(t *testing.T) {
	m, err := qemu.Start(t.Context(), qemu.Config{Devices: []qemu.DeviceSpec{{Name: "eth0", Model: os.Getenv("MODEL")}}})
	if err != nil { t.Fatal(err) }
	defer m.Close()
	d, _ := m.Device("eth0")
	b := pci.Bind(t.Context(), d, pci.Env{Name: "eth0", Options: map[string]string{"ring": "4096"}}, []*pci.Driver{&e1000.Driver})
	if b.Err != nil { t.Fatal(b.Err) }
	defer b.Instance.Close()
	g, err := pktgen.New(pktgen.Config{Lookup: func(string) (netdev.Device, error) { return b.Instance.(netdev.Device), nil }})
	if err != nil { t.Fatal(err) }
	defer g.Close()
	w := func(f, s string) {
		n, err := g.Dir().Walk(f)
		if err != nil { t.Fatal(f, err) }
		if _, err := n.(*node.File).Write(context.Background(), []byte(s+"\n")); err != nil { t.Fatal(f, s, err) }
	}
	w("kpktgend_0", "add_device eth0")
	for _, burst := range []int{1, 8, 32, 64, 256, 1024} {
		for range 3 {
			l, err := e1000.BareTransmit(t.Context(), b.Instance, make([]byte, 60), burst, 300*time.Millisecond)
			if err != nil { t.Fatal(err) }
			for _, s := range []string{fmt.Sprintf("count %d", int(l*0.3)), "pkt_size 60", fmt.Sprintf("burst %d", burst), "dst_mac 02:00:00:00:00:02", "dst 10.0.0.2"} { w("eth0", s) }
			w("pgctrl", "start")
			n, _ := g.Dir().Walk("eth0")
			o, _ := n.(*node.File).ReadAll()
			i := strings.Index(string(o), "Result:")
			var pps float64
			fmt.Sscanf(strings.Split(string(o)[i:], "\n")[1], " %fpps", &pps)
			fmt.Printf("burst %d limit %.0f pps %.0f ratio %.3f\n", burst, l, pps, pps/l)
		}
	}
}
