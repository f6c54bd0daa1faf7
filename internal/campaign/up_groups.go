package campaign

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/host"
	"github.com/ring3dev/ring3/internal/osthread"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/crb"
	"github.com/ring3dev/ring3/tpmdd/tis"
)

// upGroup is what an instance has beside the pair that must see nothing of it.
type upGroup struct {
	name    string
	devices []string // a %d stands for the lane's number
	wires   []string
	lanes   int  // how many of it; 0: one
	sends   bool // controllers, with rings in memory: its use is a `start` of pgctrl, which has the pair beside send too
	lane    func(ctx context.Context, l *upLane) error
}

// upPart says what a scenario is on the backend up.
type upPart struct {
	group *upGroup
	fails string // the device
}

// upParallel is how many runs there are at a time: most of them wait, for a slot's second or for a watchdog's eight.
const upParallel = 16

// arguments are the group's words of the command line.
func (g *upGroup) arguments() (args []string) {
	for n := range max(g.lanes, 1) {
		for _, d := range g.devices {
			args = append(args, strings.ReplaceAll(d, "%d", strconv.Itoa(n)))
		}
	}
	for _, w := range g.wires {
		args = append(args, "--wire", w)
	}
	return args
}

// upScenarios are those of the backends up and up-qemu.
func upScenarios() (all []*Scenario) {
	backend := upBackend
	add := func(name, about, driver string, weight int, regs []bus.Register, g *upGroup, fails string) {
		all = append(all, &Scenario{Name: name, About: about, Driver: driver, Registers: regs, Weight: weight, backends: []string{backend}, up: &upPart{g, fails}})
	}
	pair := func(name, on, model string, id pci.FunctionID) {
		g := &upGroup{name: name, sends: true, devices: []string{"eth0=" + on + ":" + model, "eth1=" + on + ":" + model}, wires: []string{"eth0-eth1"}, lane: nicLane}
		regs := e1000.Driver.Registers(id)
		add(g.name, "ring3 up: pktgen sends a count between two "+model+", the sender fails", e1000.Driver.Name, 6, regs, g, "eth0")
		add(g.name+"-rx", "the same, the receiver fails", e1000.Driver.Name, 4, regs, g, "eth1")
	}
	chip82574, chip82540 := pci.FunctionID{Vendor: 0x8086, Device: 0x10d3}, pci.FunctionID{Vendor: 0x8086, Device: 0x100e}
	pair("up-e1000e", "sim", "e1000e", chip82574)
	pair("up-e1000", "sim", "e1000", chip82540)
	for _, d := range []*pci.Driver{tis.Driver, crb.Driver} {
		model := strings.ReplaceAll(d.Name, "_", "-")
		g := &upGroup{name: "up-" + model, devices: []string{"tpm0=sim:" + model}, lane: tpmLane}
		var regs []bus.Register
		if d.Registers != nil {
			regs = d.Registers(pci.FunctionID{})
		}
		add(g.name, "ring3 up: a TPM is asked by /dev/tpmrm0", d.Name, 2, regs, g, "tpm0")
	}
	g := &upGroup{name: "up-port", devices: []string{"rp%d=sim:root-port"}, lanes: 6, lane: portLane}
	add(g.name, "ring3 up: a card comes into a slot and goes, its port fails", "pcieport", 1, nil, g, "rp%d")
	backend = upQEMU
	pair("up-qemu-e1000e", "qemu", "e1000e", chip82574)
	return all
}

// Frames of a use, and of the pair beside meanwhile.
const (
	upFrames       = 100
	upBesideFrames = 200
)

const pktgenDir = "proc/net/pktgen/"

// generator has pktgen send from a to b, on a thread.
func (in *upInstance) generator(ctx context.Context, thread int, a, b string, count int) error {
	if err := in.write(ctx, fmt.Sprintf("%skpktgend_%d", pktgenDir, thread), "add_device "+a); err != nil {
		return err
	}
	for _, line := range []string{fmt.Sprintf("count %d", count), "burst 8", "dst_mac " + in.macs[b]} {
		if err := in.write(ctx, pktgenDir+a, line); err != nil {
			return err
		}
	}
	return nil
}

// counters reads "key: number" of a file of pktgen's, the first of each key.
func counters(text string) map[string]int {
	out := map[string]int{}
	words := strings.Fields(text)
	for i, w := range words[:max(0, len(words)-1)] {
		key, ok := strings.CutSuffix(w, ":")
		if n, err := strconv.Atoi(words[i+1]); ok && err == nil {
			if _, have := out[key]; !have {
				out[key] = n
			}
		}
	}
	return out
}

func (in *upInstance) counters(ctx context.Context, file string) (map[string]int, error) {
	text, err := in.read(ctx, pktgenDir+file)
	return counters(text), err
}

// send has everything send that pktgen has, and looks that the pair beside did.
func (in *upInstance) send(ctx context.Context) error {
	err := unbounded(ctx, "start of pgctrl", func() error {
		// A signal would end the run: pktgen, the kernel's too, stops when whoever wrote `start` gets one.
		return osthread.Undisturbed(func() error { return in.echo(pktgenDir+"pgctrl", "start") })
	})
	if err != nil {
		return err
	}
	in.rounds.Add(1)
	c, err := in.counters(ctx, besideTx)
	if err == nil && (c["pkts-sofar"] != upBesideFrames || c["errors"] != 0) {
		return foreign("the pair beside sent %d of %d, with %d errors", c["pkts-sofar"], upBesideFrames, c["errors"])
	}
	return err
}

// besideCounts wants each frame received that the pair beside ever sent.
func (in *upInstance) besideCounts(ctx context.Context) error {
	for end := time.Now().Add(upMute); ; time.Sleep(upRetry) {
		c, err := in.counters(ctx, besideRx+".rx")
		if err != nil {
			return err
		}
		text, err := in.read(ctx, "sys/class/net/"+besideTx+"/statistics/tx_packets")
		if err != nil {
			return err
		}
		sent, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			return err
		}
		bad := c["lost"] + c["duplicated"] + c["reordered"] + c["corrupted"] + c["other"]
		if bad == 0 && c["received"] == sent && sent > 0 {
			return nil
		}
		if bad > 0 || ctx.Err() != nil || time.Now().After(end) {
			return fmt.Errorf("the pair beside sent %d frames, and received %d, lost %d, twice %d, corrupted %d, foreign %d", sent, c["received"], c["lost"], c["duplicated"], c["corrupted"], c["other"])
		}
	}
}

// nicLane is two wired controllers: eth0 sends to eth1.
func nicLane(ctx context.Context, l *upLane) error {
	l.devices = []string{"eth0", "eth1"}
	l.use = func(ctx context.Context) error { return nicUse(ctx, l.in) }
	return l.in.generator(ctx, 1, "eth0", "eth1", upFrames)
}

// nicUse sends a count of frames, and wants each received, as it was sent and once.
func nicUse(ctx context.Context, in *upInstance) error {
	before, err := in.counters(ctx, "eth1.rx")
	if err != nil {
		return err
	}
	sent := in.send(ctx)
	tx, err := in.counters(ctx, "eth0")
	if err = errors.Join(sent, err); err != nil {
		return err
	}
	for _, name := range []string{"eth0", "eth1"} { // its registers are looked at
		if _, err := in.read(ctx, "sys/class/net/"+name+"/statistics/rx_packets"); err != nil {
			return err
		}
	}
	var after map[string]int
	got := func(key string) int { return after[key] - before[key] }
	for end := time.Now().Add(500 * time.Millisecond); ; time.Sleep(time.Millisecond) {
		if after, err = in.counters(ctx, "eth1.rx"); err != nil {
			return err
		}
		if got("received")+got("lost") >= upFrames || time.Now().After(end) || ctx.Err() != nil {
			break
		}
	}
	bad := got("corrupted") + got("checksum") + got("header") + got("length") + got("payload") + got("other")
	switch {
	case bad != 0:
		return silent("wrong data: %d frames that were not sent so", bad)
	case tx["pkts-sofar"] != upFrames || tx["errors"] != 0:
		return fmt.Errorf("eth0 sent %d of %d, with %d errors", tx["pkts-sofar"], upFrames, tx["errors"])
	case got("received") != upFrames || got("lost") != 0 || got("duplicated") != 0:
		return lost("of %d frames %d were received, %d lost, %d twice", upFrames, got("received"), got("lost"), got("duplicated"))
	}
	return nil
}

// tpmLane is a TPM.
func tpmLane(_ context.Context, l *upLane) error {
	l.devices = []string{"tpm0"}
	l.use = func(ctx context.Context) error {
		return unbounded(ctx, "a TPM command", func() error { return tpmUse(l.in.path("dev/tpmrm0")) })
	}
	return nil
}

// readPCR is TPM2_PCR_Read of register 16 in SHA-256, which nobody extends, and what it answers behind its header and counter.
var (
	readPCR = tpmdd.Command(tpmdd.TagNoSessions, 0x17e, 0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 1)
	zeroPCR = append([]byte{0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 1, 0, 0, 0, 1, 0, 32}, make([]byte, 32)...)
)

// tpmUse asks by the resource manager's file: random bytes, a register, a session.
func tpmUse(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	ask := func(command []byte) ([]byte, error) {
		if _, err := f.Write(command); err != nil {
			return nil, err
		}
		n, err := f.Read(buf)
		if err != nil {
			return nil, err
		}
		if h, ok := tpmdd.ParseHeader(buf[:n]); !ok || h.Code != 0 {
			return nil, fmt.Errorf("the TPM answers % x", buf[:min(n, 16)])
		}
		return buf[:n], nil
	}
	if rsp, err := ask(tpmdd.GetRandom(tpmdd.TPM20, 8)); err != nil || len(rsp) != 20 {
		return errors.Join(fmt.Errorf("random bytes: %d of 20", len(rsp)), err)
	}
	rsp, err := ask(readPCR)
	switch {
	case err != nil:
		return fmt.Errorf("reading a register: %w", err)
	case len(rsp) < 14 || !bytes.Equal(rsp[14:], zeroPCR):
		return silent("wrong data: a register that nobody extended is % x", rsp)
	}
	rsp, err = ask(startSession)
	if err != nil || len(rsp) < 14 {
		return errors.Join(fmt.Errorf("beginning a session: %d bytes", len(rsp)), err)
	}
	if _, err := ask(tpmdd.Command(tpmdd.TagNoSessions, tpmdd.CCFlushContext, slices.Clone(rsp[10:14])...)); err != nil {
		return fmt.Errorf("ending a session: %w", err)
	}
	return nil
}

// portLane is a root port.
func portLane(_ context.Context, l *upLane) error {
	port, card := l.name("rp%d"), l.name("nic%d")
	l.devices = []string{port}
	l.use = func(ctx context.Context) error { return portUse(ctx, l, port, card) }
	return nil
}

// portUse has a card come and go. One that is there already, since a use before was cut short, goes first.
func portUse(ctx context.Context, l *upLane, port, card string) error {
	there := func() (*host.DeviceInfo, error) {
		var all []host.DeviceInfo
		if err := l.call(ctx, opDevices, nil, &all); err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(all, func(d host.DeviceInfo) bool { return d.Name == card }); i >= 0 {
			return &all[i], nil
		}
		return nil, nil
	}
	unplug := func() error { return l.call(ctx, opUnplug, map[string]any{"device": card, "now": true}, nil) }
	if d, err := there(); err != nil {
		return err
	} else if d != nil {
		if err := unplug(); err != nil {
			return err
		}
	}
	if err := l.call(ctx, opPlug, map[string]any{"device": card + "=sim:e1000e,under=" + port}, nil); err != nil {
		return err
	}
	switch d, err := there(); {
	case err != nil:
		return err
	case d == nil || d.State != "up" || d.Driver != e1000.Driver.Name:
		return lost("a card was plugged in, and is not in service: %+v", d)
	}
	if err := unplug(); err != nil {
		return err
	}
	if d, err := there(); err != nil || d != nil {
		return errors.Join(lost("a card was pulled out, and is listed: %+v", d), err)
	}
	return nil
}
