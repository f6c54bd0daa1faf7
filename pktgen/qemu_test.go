package pktgen_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/internal/frame"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
	"github.com/ring3dev/ring3/procfs"
	"golang.org/x/sys/unix"
)

// rig is pktgen on one real device model on a hub without peer.
type rig struct {
	t       testing.TB
	machine *qemu.Machine
	nic     pci.Instance
	engine  *pktgen.Engine
	capture *os.File
}

func newRig(t testing.TB, model, ring string, capture bool) *rig {
	t.Helper()
	if _, err := exec.LookPath(qemu.Binary); err != nil {
		t.Skip("no QEMU: ", err)
	}
	r := &rig{t: t}
	spec := qemu.DeviceSpec{Name: "eth0", Model: model}
	if capture {
		f, err := os.CreateTemp(t.TempDir(), "*.pcap")
		if err != nil {
			t.Fatal(err)
		}
		r.capture, spec.Capture = f, f
		t.Cleanup(func() { f.Close() })
	}
	var err error
	if r.machine, err = qemu.Start(t.Context(), qemu.Config{Devices: []qemu.DeviceSpec{spec}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.machine.Close() })
	dev, err := r.machine.Device("eth0")
	if err != nil {
		t.Fatal(err)
	}
	res := pci.Bind(t.Context(), dev, pci.Env{Name: "eth0", Options: map[string]string{"ring": ring}}, []*pci.Driver{e1000.Driver})
	if res.Outcome != pci.Bound {
		t.Fatalf("binding eth0: %s, %v", res.Outcome, res.Err)
	}
	r.nic = res.Instance
	t.Cleanup(func() { _ = r.nic.Close() })
	r.engine, err = pktgen.New(pktgen.Config{CPUs: []int{0}, Lookup: func(name string) (netdev.Device, error) {
		if name != "eth0" {
			return nil, unix.ENODEV
		}
		return r.nic.(netdev.Device), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.engine.Close)
	r.write("kpktgend_0", "add_device eth0")
	return r
}

func (r *rig) write(file string, texts ...string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	for _, text := range texts {
		n, err := r.engine.Dir().Lookup(file).(*procfs.File).Write(ctx, []byte(text))
		if err != nil || n != len(text) || ctx.Err() != nil {
			r.t.Fatalf("writing %q to %s = %d, %v, %v", text, file, n, err, ctx.Err())
		}
	}
}

func (r *rig) read(file string) string {
	r.t.Helper()
	p, err := r.engine.Dir().Lookup(file).(*procfs.File).ReadAll()
	if err != nil {
		r.t.Fatal(err)
	}
	return string(p)
}

// frames ends everything and decodes the capture.
func (r *rig) frames() (ps []frame.Packet) {
	r.t.Helper()
	r.engine.Close()
	if err := errors.Join(r.nic.Close(), r.machine.Close()); err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.capture.Seek(0, io.SeekStart); err != nil {
		r.t.Fatal(err)
	}
	c, err := frame.NewPcap(r.capture)
	if err != nil {
		r.t.Fatal(err)
	}
	for {
		b, _, err := c.Next()
		if err == io.EOF {
			return ps
		}
		if err != nil {
			r.t.Fatal(err)
		}
		p, err := frame.Decode(b)
		if err != nil {
			r.t.Fatalf("frame %d: %v", len(ps), err)
		}
		ps = append(ps, p)
	}
}

// TestQEMU sends through the driver on QEMU's models and decodes what QEMU captured.
func TestQEMU(t *testing.T) {
	base := []string{"dst 10.0.0.2", "src_min 10.0.0.1", "dst_mac 00:1b:21:3c:9d:f8", "flag UDPCSUM"}
	for _, model := range []string{"e1000e", "e1000"} {
		for _, c := range []struct {
			name  string
			cmds  []string
			count int
			check func(i int, p frame.Packet) bool
		}{
			{"plain", []string{"pkt_size 60", "burst 32"}, 20000, func(i int, p frame.Packet) bool { return p.Len == 60 && p.Seq == uint32(i+1) && p.ID == uint16(i) }},
			{"burst 1", []string{"pkt_size 1514"}, 2000, func(i int, p frame.Packet) bool { return p.Len == 1514 && p.Seq == uint32(i+1) }},
			{"clones", []string{"pkt_size 60", "burst 10", "clone_skb 2"}, 2000, func(i int, p frame.Packet) bool { return p.Seq == uint32(i/20*20+1) }},
			{"IPv6", []string{"dst6 fd00::2", "src6 fd00::1", "burst 256"}, 5000, func(i int, p frame.Packet) bool {
				return p.Seq == uint32(i+1) && p.DstIP == netip.MustParseAddr("fd00::2") && p.SrcIP == netip.MustParseAddr("fd00::1") && p.Len == 78
			}},
			{"ranges", []string{"dst_max 10.0.0.5", "udp_src_min 100", "udp_src_max 103", "min_pkt_size 60", "max_pkt_size 1000", "burst 64", "vlan_id 7"}, 5000,
				func(i int, p frame.Packet) bool {
					return p.Seq == uint32(i+1) && p.DstIP.As4()[3] == byte(2+(i+1)%4) && p.SrcPort == uint16(100+(i+1)%3) &&
						p.Len == max(62, 60+(i+1)%941) && slices.Equal(p.VLANs, []uint16{7})
				}},
		} {
			t.Run(model+"/"+c.name, func(t *testing.T) {
				r := newRig(t, model, "256", true)
				start := time.Now().Add(-time.Millisecond)
				r.write("eth0", base...)
				r.write("eth0", c.cmds...)
				r.write("eth0", fmt.Sprintf("count %d", c.count))
				r.write("pgctrl", "start")
				text := r.read("eth0")
				for _, want := range []string{fmt.Sprintf("pkts-sofar: %d  errors: 0\n", c.count), fmt.Sprintf("seq_num: %d ", c.count+1), "\nResult: OK: "} {
					if !strings.Contains(text, want) {
						t.Errorf("eth0 shows\n%s want %q", text, want)
					}
				}
				mac := [6]byte(r.nic.(netdev.Device).MAC())
				ps := r.frames()
				if len(ps) != c.count {
					t.Errorf("%d frames captured, want %d", len(ps), c.count)
				}
				for i, p := range ps {
					if !c.check(i, p) || !p.IPChecksumOK || !p.UDPChecksumOK || !p.Pktgen || p.Src != mac || p.Dst != [6]byte{0, 0x1b, 0x21, 0x3c, 0x9d, 0xf8} ||
						p.Time().Before(start) || p.Time().After(time.Now()) {
						t.Fatalf("frame %d: %v, checksums %v %v", i, p, p.IPChecksumOK, p.UDPChecksumOK)
					}
				}
			})
		}
	}
}

// A QEMU that dies ends the run, with a result.
func TestQEMUDies(t *testing.T) {
	r := newRig(t, "e1000e", "256", false)
	r.write("eth0", "count 0", "burst 32")
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = r.engine.Dir().Lookup("pgctrl").(*procfs.File).Write(context.Background(), []byte("start"))
	}()
	time.Sleep(50 * time.Millisecond)
	_ = r.machine.Close()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("start still waits for a device that died")
	}
	if text := r.read("eth0"); !strings.Contains(text, "\nResult: OK: ") {
		t.Errorf("eth0 shows\n%s", text)
	}
	r.engine.RemoveDevice("eth0")
	if r.engine.Dir().Lookup("eth0") != nil {
		t.Error("the file is still there")
	}
}

// BenchmarkQEMU compares pktgen with the bare doorbell loop, in one machine, in turns.
func BenchmarkQEMU(b *testing.B) {
	for _, model := range []string{"e1000e", "e1000"} {
		for _, ring := range []string{"256", "4096"} {
			for _, burst := range []int{1, 32, 256, 1024} {
				b.Run(fmt.Sprintf("%s/ring=%s/burst=%d", model, ring, burst), func(b *testing.B) {
					r := newRig(b, model, ring, false)
					total := 300_000
					if burst == 1 {
						total = 30_000
					}
					r.write("eth0", "pkt_size 60", fmt.Sprintf("burst %d", burst), fmt.Sprintf("count %d", total))
					var limit, got float64
					for range b.N {
						l, err := e1000.BareTransmit(b.Context(), r.nic, make([]byte, 60), burst, 200*time.Millisecond)
						if err != nil {
							b.Fatal(err)
						}
						r.write("pgctrl", "start")
						var pps uint64
						text := r.read("eth0")
						if _, err := fmt.Sscanf(text[strings.LastIndex(text, "\n  ")+3:], "%dpps", &pps); err != nil {
							b.Fatalf("%v in %q", err, text)
						}
						limit, got = max(limit, l), max(got, float64(pps))
					}
					b.ReportMetric(0, "ns/op")
					b.ReportMetric(limit/1e6, "bare-Mpps")
					b.ReportMetric(got/1e6, "Mpps")
					b.ReportMetric(got/limit, "ratio")
				})
			}
		}
	}
}
