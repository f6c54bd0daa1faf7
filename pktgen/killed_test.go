package pktgen_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/internal/frame"
	"github.com/ring3dev/ring3/internal/ledger"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
	"github.com/ring3dev/ring3/procfs"
)

// TestMain is also the process that is killed: two NICs, one of which sends to the other.
func TestMain(m *testing.M) {
	if kind := os.Getenv("PKTGEN_VICTIM"); kind != "" {
		if err := victim(kind); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// seenCounters are the receiver's, as the test counts: frames, and numbers that came twice. A number's bit is in the area "seen".
const seenWords = 1 << 16

// victim is the life of one process: it takes over what the one before left, goes on, and says what came of it.
func victim(kind string) error {
	ctx := context.Background()
	l, err := ledger.Open(os.NewFile(3, "ledger"))
	if err != nil {
		return err
	}
	nds, closeAll, err := victimDevices(ctx, kind)
	if err != nil {
		return err
	}
	defer closeAll()
	state := os.Getenv("PKTGEN_STATE")
	var e *pktgen.Engine
	e, err = pktgen.New(pktgen.Config{
		CPUs: []int{0}, Ledger: l,
		Lookup: func(name string) (netdev.Device, error) {
			if nd := nds[name]; nd != nil {
				return nd, nil
			}
			return nil, unix.ENODEV
		},
		Changed: func() {
			if err := os.WriteFile(state+".new", e.Save(), 0o600); err != nil {
				panic(err)
			}
			if err := os.Rename(state+".new", state); err != nil {
				panic(err)
			}
		},
	})
	if err != nil {
		return err
	}
	defer e.Close()
	rx, err := e.AddRx("eth1")
	if err != nil {
		return err
	}
	sink, err := netdev.NewSink(nds["eth1"])
	if err != nil {
		return err
	}
	defer sink.Close()
	seen, _, err := l.Area("seen", seenWords)
	if err != nil {
		return err
	}
	repeated, err := l.Counter("repeated")
	if err != nil {
		return err
	}
	sink.Watch(func(frames []*dma.Buf) {
		for _, b := range frames {
			if !pktgen.Generated(b) {
				continue
			}
			seq := int(binary.BigEndian.Uint32(b.Data[14+20+8+4:]))
			word, bit := seq/64%seenWords, uint64(1)<<(seq%64)
			if seen.Load(word)&bit != 0 {
				repeated.Add(1)
			}
			seen.Store(word, seen.Load(word)|bit)
		}
		rx.Take(frames)
	})
	write := func(name, text string) error {
		_, err := e.Dir().Lookup(name).(*procfs.File).Write(ctx, []byte(text+"\n"))
		return err
	}
	if saved, err := os.ReadFile(state); err == nil {
		if err := e.Restore(saved); err != nil {
			return err
		}
	} else {
		if err := write("kpktgend_0", "add_device eth0"); err != nil {
			return err
		}
		for _, c := range []string{"pkt_size 60", "burst 32", "dst_mac " + nds["eth1"].MAC().String(), "src_min 10.0.0.1", "dst_min 10.0.0.2", "count " + os.Getenv("PKTGEN_COUNT")} {
			if err := write("eth0", c); err != nil {
				return fmt.Errorf("%s: %w", c, err)
			}
		}
	}
	fmt.Println("up")
	if err := write("pgctrl", "start"); err != nil {
		return err
	}
	sent := e.Figures()[0]
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if f := rx.Figures(); f.Received+f.Lost >= sent.Packets {
			break
		}
	}
	text := map[string]string{}
	for _, name := range []string{"eth0", "eth1.rx"} {
		b, err := e.Dir().Lookup(name).(*procfs.File).ReadAll()
		if err != nil {
			return err
		}
		text[name] = string(b)
	}
	return json.NewEncoder(os.Stdout).Encode(text)
}

// victimDevices are eth0 and eth1, wired.
func victimDevices(ctx context.Context, kind string) (_ map[string]netdev.Device, closeAll func(), err error) {
	var closers []io.Closer
	closeAll = func() {
		for i := len(closers) - 1; i >= 0; i-- {
			_ = closers[i].Close() // it ends anyway
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	var device func(name string) (bus.Device, error)
	if kind == "sim" {
		m, err := sim.Start(ctx, sim.Config{
			Devices: []sim.DeviceSpec{{Name: "eth0", Model: "e1000e"}, {Name: "eth1", Model: "e1000e"}},
			Wires:   [][2]string{{"eth0", "eth1"}},
		})
		if err != nil {
			return nil, closeAll, err
		}
		closers = append(closers, m)
		device = m.Device
	} else {
		c := qemu.Config{
			Devices: []qemu.DeviceSpec{{Name: "eth0", Model: "e1000e"}, {Name: "eth1", Model: "e1000e"}},
			Wires:   [][2]string{{"eth0", "eth1"}},
		}
		pcap, err := os.OpenFile(os.Getenv("PKTGEN_PCAP"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, closeAll, err
		}
		closers = append(closers, pcap)
		c.Devices[0].Capture = pcap
		m, err := qemu.Start(ctx, c)
		if err != nil {
			return nil, closeAll, err
		}
		closers = append(closers, m)
		device = m.Device
	}
	nds := map[string]netdev.Device{}
	for _, name := range []string{"eth0", "eth1"} {
		dev, err := device(name)
		if err != nil {
			return nil, closeAll, err
		}
		res := pci.Bind(ctx, dev, pci.Env{Name: name, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}, []*pci.Driver{e1000.Driver})
		if res.Outcome != pci.Bound {
			return nil, closeAll, fmt.Errorf("binding %s: %s: %w", name, res.Outcome, res.Err)
		}
		closers = append(closers, res.Instance)
		nds[name] = res.Instance.(netdev.Device)
	}
	return nds, closeAll, netdev.Wire(nds["eth0"], nds["eth1"])
}

func TestKilledSim(t *testing.T) { testKilled(t, "sim", 1_000_000, 25) }

func TestKilledQEMU(t *testing.T) {
	bustest.NeedQEMU(t)
	testKilled(t, "qemu", 200_000, 8)
}

// testKilled kills a sender, and the receiver in the same process, over and over at any time while they run, until it sent its count. Both sides' numbers
// are exact then, and no sequence number came twice.
func testKilled(t *testing.T, kind string, count uint64, kills int) {
	bustest.NoLeaks(t)
	l, f, err := ledger.Create("ledger")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer f.Close()
	sofar, err := l.Counter("pktgen/eth0/sofar")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(uint64(os.Getpid()), 1))
	text := map[string]string{}
	var pcaps []string
	for n := 0; len(text) == 0; n++ {
		pcap := filepath.Join(dir, fmt.Sprintf("%d.pcap", n))
		pcaps = append(pcaps, pcap)
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "PKTGEN_VICTIM="+kind, "PKTGEN_STATE="+filepath.Join(dir, "state"), "PKTGEN_COUNT="+strconv.FormatUint(count, 10), "PKTGEN_PCAP="+pcap)
		cmd.ExtraFiles = []*os.File{f}
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		before := sofar.Load()
		if n < kills && before < count*6/10 {
			if n%5 != 4 { // else it is killed while it comes up
				if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
					_ = cmd.Wait()
					t.Fatalf("process %d did not come up: %v", n, err)
				}
				// It sends for a while; not so long that it could come to the end.
				want := before + rng.Uint64N(count/2/uint64(kills))
				for end := time.Now().Add(20 * time.Second); sofar.Load() <= want; {
					if time.Now().After(end) {
						_ = cmd.Process.Kill()
						_ = cmd.Wait()
						t.Fatalf("process %d: %d of %d packets after 20 s, %d before it", n, sofar.Load(), count, before)
					}
				}
			} else {
				time.Sleep(time.Duration(rng.Uint64N(uint64(20 * time.Millisecond))))
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed
			if now := sofar.Load(); now < before {
				t.Fatalf("process %d: %d packets, and there were %d before it", n, now, before)
			} else if now > count*9/10 {
				t.Skipf("the machine is too busy: process %d had sent %d of %d packets when it was to be killed at about %d", n, now, count, before)
			}
			continue
		}
		dec := json.NewDecoder(out)
		_, _ = io.ReadFull(out, make([]byte, 3)) // "up"; where it is not, decoding fails
		err = dec.Decode(&text)
		if err = errors.Join(err, cmd.Wait()); err != nil {
			t.Fatalf("the last process: %v", err)
		}
	}
	number := func(name, pattern string) uint64 {
		m := regexp.MustCompile(pattern).FindStringSubmatch(text[name])
		if m == nil {
			t.Fatalf("%s has no %q:\n%s", name, pattern, text[name])
		}
		v, _ := strconv.ParseUint(m[1], 10, 64)
		return v
	}
	received, lost := number("eth1.rx", `received: (\d+) `), number("eth1.rx", `lost: (\d+) `)
	if received+lost != count || number("eth0", `pkts-sofar: (\d+) `) != count || number("eth1.rx", `runs: (\d+) `) != 1 {
		t.Errorf("%d packets: received %d and lost %d, %d in all, in one run\n%s\n%s", count, received, lost, received+lost, text["eth0"], text["eth1.rx"])
	}
	if flow := number("eth1.rx", `dst: .*  received: (\d+) `); flow != received || number("eth1.rx", `dst: .*  lost: (\d+) `) != lost {
		t.Errorf("the flow has other numbers:\n%s", text["eth1.rx"])
	}
	if n := number("eth1.rx", `restarts: (\d+) `); n == 0 || number("eth1.rx", `lost_in_restarts: (\d+)`) != lost {
		t.Errorf("%d restarts, and not all that was lost was lost in them:\n%s", n, text["eth1.rx"])
	}
	number("eth0", `Result: OK: (\d+)\(`)
	repeated, err := l.Counter("repeated")
	if err != nil {
		t.Fatal(err)
	}
	if n := repeated.Load(); n > 0 {
		t.Errorf("%d sequence numbers came twice", n)
	}
	if kind == "qemu" {
		onWire(t, pcaps, count, received)
	}
	t.Logf("%d packets, %d processes: %d lost", count, len(pcaps), lost)
}

// onWire looks at what was on the wire in all processes' lives.
func onWire(t *testing.T, pcaps []string, count, received uint64) {
	seen := make([]bool, count+1)
	n := uint64(0)
	for _, name := range pcaps {
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // it was killed before
		}
		if err != nil {
			t.Fatal(err)
		}
		c, err := frame.NewPcap(f)
		for err == nil {
			var b []byte
			if b, _, err = c.Next(); err == nil && len(b) >= 46 && binary.BigEndian.Uint32(b[42:]) == frame.Magic {
				seq := binary.BigEndian.Uint32(b[46:])
				if seq == 0 || uint64(seq) > count || seen[seq] {
					t.Errorf("%s: number %d, of %d, again", filepath.Base(name), seq, count)
				} else {
					seen[seq] = true
					n++
				}
			}
		}
		f.Close()
	}
	if n < received || n > count {
		t.Errorf("%d frames were on the wire, %d of %d were received", n, received, count)
	}
}
