package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/internal/swtpm"
)

// held is the QEMU of a test's group.
func (s *testSupervisor) held(name string) *heldMachine {
	for _, b := range s.out.(*nearOutside).backends {
		if h, ok := b.(*heldQEMU); ok {
			return h.machines[name]
		}
	}
	s.t.Fatal("the group has no QEMU")
	return nil
}

func (m *heldMachine) pid() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.p == nil {
		return 0
	}
	return m.p.PID()
}

// TestWorkerQEMU: workers that are killed while they send, one after the other on one QEMU, and the one after QEMU itself was killed.
func TestWorkerQEMU(t *testing.T) {
	bustest.NeedQEMU(t)
	pcap := t.TempDir() + "/eth1.pcap"
	s := newTestSupervisor(t, []string{"eth0=qemu:e1000e", "eth1=qemu:e1000e"}, []string{"eth0-eth1"}, func(p *Plan) { p.Captures = map[string]string{"eth1": pcap} })
	first := 0
	for round := range 3 {
		up := s.up()
		if len(up.Devices) != 2 || up.Devices[1].MAC != "52:54:00:12:34:57" || up.Devices[0].State != stateUp {
			t.Fatalf("round %d: the devices are %+v", round, up.Devices)
		}
		if round == 0 {
			first = s.held("eth0").pid()
		} else if pid := s.held("eth0").pid(); pid != first {
			t.Errorf("round %d: QEMU is process %d, want %d still", round, pid, first)
		}
		if round == 0 { // the next worker is told by what was saved
			s.write("/proc/net/pktgen/kpktgend_0", "add_device eth0")
		}
		s.write("/proc/net/pktgen/eth0", "count 300")
		s.write("/proc/net/pktgen/pgctrl", "start")
		// A run that went on from the worker before has more.
		text, sofar := s.read("/proc/net/pktgen/eth0"), 0
		if _, after, ok := strings.Cut(text, "pkts-sofar: "); ok {
			_, _ = fmt.Sscan(after, &sofar)
		}
		if sofar < 300 || round == 0 && sofar != 300 {
			t.Errorf("round %d: eth0 says\n%s", round, text)
		}
		s.write("/proc/net/pktgen/eth0", "count 0")
		f, ctx := s.file("/proc/net/pktgen/pgctrl"), s.ctx()
		started := make(chan struct{})
		go func() {
			close(started)
			_, _ = f.Write(ctx, []byte("start\n")) // ends with the worker
		}()
		<-started
		s.until("frames on their way", func() bool { return !strings.Contains(s.read("/proc/net/pktgen/eth0"), "Idle") })
		begun := time.Now()
		s.kill()
		t.Logf("round %d: stopped in %v", round, time.Since(begun))
		last := lastAccesses(s.led, up.Devices[0], testProgram.Drivers, 64)
		if len(last) != 64 || !strings.Contains(strings.Join(last, "\n"), " TDT") {
			t.Errorf("round %d: eth0's last accesses are\n%s\nwant 64 of them, doorbells too", round, strings.Join(last, "\n"))
		}
	}
	if fi, err := os.Stat(pcap); err != nil || fi.Size() < 900*60 {
		t.Errorf("the capture is %+v, %v: want the frames of all workers", fi, err)
	}
	s.up()
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.eventually("the end of QEMU", func() bool { return strings.Contains(strings.Join(s.logs, "\n"), "ended: signal: killed") })
	s.kill()
	s.up()
	if pid := s.held("eth0").pid(); pid == first || pid == 0 {
		t.Errorf("QEMU is process %d, want another one", pid)
	}
}

// TestWorkerQEMUPlugged: what was plugged in is there for the next worker, also on the next QEMU; and it can be taken out.
func TestWorkerQEMUPlugged(t *testing.T) {
	bustest.NeedQEMU(t)
	s := newTestSupervisor(t, []string{"rp0=qemu:pcie-root-port", "rp1=qemu:pcie-root-port", "eth0=qemu:e1000e,under=rp0"}, nil)
	s.up()
	var card DeviceInfo
	if err := s.control(opPlug, plugArgs{Device: "eth7=qemu:e1000e,under=rp1"}, &card); err != nil {
		t.Fatal(err)
	}
	if err := s.control(opPlug, plugArgs{Device: "x=qemu:vfio-pci,under=rp1"}, nil); err == nil {
		t.Error("a model that reaches a device of the host's was plugged in")
	}
	for _, spoil := range []func(){func() {}, func() { _ = syscall.Kill(s.held("rp0").pid(), syscall.SIGKILL) }} {
		spoil()
		s.kill()
		var found *DeviceInfo
		up := s.up()
		for i := range up.Devices {
			if up.Devices[i].Name == "eth7" {
				found = &up.Devices[i]
			}
		}
		if found == nil || found.MAC != card.MAC || found.State != stateUp {
			t.Fatalf("eth7 is %+v, want it up with %s", found, card.MAC)
		}
	}
	if err := s.control(opUnplug, plugArgs{Device: "eth7"}, nil); err != nil {
		t.Fatal(err)
	}
	s.kill()
	if up := s.up(); len(up.Devices) != 3 {
		t.Errorf("the devices are %+v, want three", up.Devices)
	}
}

// TestWorkerQEMUTPM: a TPM is not reset with its driver.
func TestWorkerQEMUTPM(t *testing.T) {
	bustest.NeedQEMU(t)
	if _, err := exec.LookPath(swtpm.Binary); err != nil {
		t.Skip("no swtpm here")
	}
	for _, model := range []string{"tpm-tis", "tpm-crb"} {
		t.Run(model, func(t *testing.T) {
			s := newTestSupervisor(t, []string{"tpm0=qemu:" + model}, nil)
			s.up()
			const pcr = "/sys/class/tpm/tpm0/pcr-sha256/16"
			empty := s.read(pcr)
			var extended string
			for round := range 3 {
				stream, err := s.stream("/dev/tpm0")
				if err != nil {
					t.Fatal(err)
				}
				if round == 0 {
					// TPM2_PCR_Extend of PCR 16, SHA-256, with an empty password.
					cmd := "\x80\x02\x00\x00\x00\x41\x00\x00\x01\x82\x00\x00\x00\x10\x00\x00\x00\x09\x40\x00\x00\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x0b" + strings.Repeat("x", 32)
					if _, err := stream.Write(s.ctx(), []byte(cmd), 0); err != nil {
						t.Fatal(err)
					}
					if _, err := stream.Read(s.ctx(), make([]byte, 4096), 0); err != nil {
						t.Fatal(err)
					}
					if extended = s.read(pcr); extended == empty {
						t.Fatal("PCR 16 was not extended")
					}
				}
				// A command that takes long: RSA keys are made of chance. TPM2_CreatePrimary, owner.
				create := "\x80\x02\x00\x00\x00\x43\x00\x00\x01\x31\x40\x00\x00\x01\x00\x00\x00\x09\x40\x00\x00\x09\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00" +
					"\x00\x1a\x00\x01\x00\x0b\x00\x03\x04\x72\x00\x00\x00\x06\x00\x80\x00\x43\x00\x10\x08\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00"
				if _, err := stream.Write(s.ctx(), []byte(create), 0); err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				s.kill()
				t.Logf("round %d: stopped in %v", round, time.Since(begun))
				_ = stream.Close()
				s.up()
				if got := s.read(pcr); got != extended {
					t.Fatalf("round %d: PCR 16 is %q after its driver's death, want %q", round, got, extended)
				}
			}
		})
	}
}

// TestHeldQEMU: what a worker may ask about QEMU, and when.
func TestHeldQEMU(t *testing.T) {
	bustest.NeedQEMU(t)
	plan, err := ParsePlan([]string{"edu0=qemu:edu"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := holdQEMU(Config{Plan: plan}, groupPlan{Plan: plan})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ask := func(what func() (any, []*os.File, error)) error {
		_, files, err := what()
		closeOpen(files)
		return err
	}
	h, ctx := b.(*heldQEMU), t.Context()
	open := func(body string) error {
		return ask(func() (any, []*os.File, error) { return h.open(ctx, []byte(body), nil) })
	}
	execute := func(body string) error {
		return ask(func() (any, []*os.File, error) { return h.execute(ctx, []byte(body), nil) })
	}
	for body, want := range map[string]error{
		`{`:                               syscall.EINVAL,
		`{"machine":"other"}`:             bus.ErrNotSupported,
		`{"machine":"edu0","from":1}`:     bus.ErrProtocol,
		`{"machine":"edu0","from":-1}`:    bus.ErrProtocol,
		`{"machine":"../edu0","from":99}`: bus.ErrNotSupported,
	} {
		if err := open(body); !errors.Is(err, want) {
			t.Errorf("open(%s) = %v, want %v", body, err, want)
		}
	}
	if err := execute(`{"machine":"edu0","command":"query-status"}`); !errors.Is(err, bus.ErrProtocol) {
		t.Errorf("execute before it was opened = %v, want ErrProtocol", err)
	}
	if err := open(`{"machine":"edu0"}`); err != nil {
		t.Fatal(err)
	}
	if err := open(`{"machine":"edu0"}`); !errors.Is(err, bus.ErrBusy) {
		t.Errorf("a second open = %v, want ErrBusy", err)
	}
	if err := open(`{"machine":"edu0","from":9999}`); !errors.Is(err, bus.ErrProtocol) {
		t.Errorf("a page that there is not = %v, want ErrProtocol", err)
	}
	if err := execute(`{"machine":"edu0","command":"quit"}`); !errors.Is(err, syscall.EPERM) {
		t.Errorf("execute(quit) = %v, want EPERM", err)
	}
	if err := execute(`{"machine":"edu0","command":"query-status"}`); err != nil {
		t.Errorf("execute(query-status) = %v", err)
	}
	if err := b.Quiesce(ctx); err != nil {
		t.Fatal(err)
	}
	if err := open(`{"machine":"edu0"}`); err != nil {
		t.Errorf("open after Quiesce = %v", err)
	}
	// More events than a worker asks for are bounded, and those that are left are the last.
	m := h.machines["edu0"]
	for range 3 * maxNews {
		m.tell(qemu.Event{Removed: "x"})
	}
	r, _, err := h.wait(ctx, []byte(`{"machine":"edu0","seen":5}`), nil)
	if n, ok := r.(qemuNews); err != nil || !ok || len(n.Events) != maxNews || n.Seen != 3*maxNews {
		t.Errorf("wait = %d events up to %d, %v, want %d up to %d", len(n.Events), n.Seen, err, maxNews, 3*maxNews)
	}
}

// TestSuperviseQEMUEnds: the end of a QEMU is a death as another: the group goes on with a new one.
func TestSuperviseQEMUEnds(t *testing.T) {
	bustest.NeedQEMU(t)
	s, _ := supervise(t, nil, "edu0=qemu:edu")
	ch := s.chargeOf("edu0")
	held := func() *heldMachine { return (&testSupervisor{t: t, out: ch.out}).held("edu0") }
	for deaths := range 2 {
		pid := held().pid()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(testPatience); ; time.Sleep(5 * time.Millisecond) {
			ch.mu.Lock()
			n, up := ch.deaths.count, ch.cur != nil
			ch.mu.Unlock()
			if n == deaths+1 && up {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("the group died %d times, and has a worker: %v; want %d, true", n, up, deaths+1)
			}
		}
		if now := held().pid(); now == pid || now == 0 {
			t.Errorf("QEMU is process %d, want another one than %d", now, pid)
		}
	}
	select {
	case <-s.Done():
		t.Error("Done, though the group lives")
	default:
	}
}

// stream opens a device of the supervisor's tree.
func (s *testSupervisor) stream(path string) (node.Stream, error) {
	return s.file(path).Open(os.O_RDWR)
}
