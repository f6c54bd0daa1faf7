//go:build vm

package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/integration/portseen"
	"github.com/ring3dev/ring3/integration/vm/wire"
)

// TestRootPortsUIO plays those events that concern the ports rp0 and rp1 themselves to ring3, which is nobody and has the two by UIO. What is
// behind them stays with the kernel, so the test is root beside it: it writes remove before a card goes and rescan after one came, as ring3's
// messages ask. integration/ports_vm_test.go compares what is seen with what the kernel's own drivers of ports did.
func TestRootPortsUIO(t *testing.T) {
	leaveNothing(t)
	Modprobe(t, "e1000e")
	rp0, rp1 := Address(t, "rp0"), Address(t, "rp1")
	// After the scenario was played to the kernel its module still shows what was injected instead of what ports have, to all that reads config
	// space, so to ring3 too.
	if err := unix.DeleteModule("aer_inject", unix.O_NONBLOCK); err != nil && !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	resetMask(t, rp0)
	must(t, "bind", rp0, rp1, "--driver", "uio_pci_generic")
	defer func() {
		must(t, "unbind", rp0, rp1)
		for _, slot := range []string{"1", "2"} {
			if _, err := os.Stat("/sys/bus/pci/slots/" + slot + "/power"); err != nil {
				t.Errorf("the kernel does not serve slot %s again: %v", slot, err)
			}
		}
		if !mastering(t, rp0) {
			t.Error("what is behind the port cannot do DMA when the kernel has the port again")
		}
	}()
	in := start(t, exec.Command(ring3, "up", "--as", "nobody", "--profile", "6.1", "rp0=uio:"+rp0, "rp1=uio:"+rp1))
	var text string
	if err := asNobody(func() (err error) { text, err = recordUIO(t, in.tree); return err }); err != nil {
		t.Errorf("%v\n%s", err, text)
	} else if err := try(wire.OpHost+"ports-uio", text, nil); err != nil {
		t.Error(err)
	}
	if out, code := command(t, false, "dmesg"); code != 0 || t.Failed() {
		t.Logf("ring3 dmesg (%d):\n%s", code, out)
	}
	if code := in.end(unix.SIGINT); code != 0 {
		t.Errorf("ring3 up ends with %d: %s", code, in.stderr())
	}
	if mastering(t, rp0) {
		t.Error("uio_pci_generic left bus mastering on, which package uio's manual says it clears")
	}
}

// mastering says whether a port passes on what devices behind it send.
func mastering(t *testing.T, addr string) bool {
	t.Helper()
	b, err := os.ReadFile("/sys/bus/pci/devices/" + addr + "/config")
	if err != nil {
		t.Fatal(err)
	}
	return pci.Command(b[pci.CfgCommand])&pci.CmdMaster != 0
}

// resetMask has a port mask the correctable errors again that it masks at first: the scenario, which was played to the kernel before, ends with
// one of them let through.
func resetMask(t *testing.T, addr string) {
	t.Helper()
	f, err := os.OpenFile("/sys/bus/pci/devices/"+addr+"/config", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const aer, corMask, advisory = 0x100, 0x14, 0x20 // of QEMU's port; bit 13 is in the second byte
	var p [1]byte
	if _, err := f.ReadAt(p[:], aer+corMask+1); err != nil {
		t.Fatal(err)
	}
	p[0] |= advisory
	if _, err := f.WriteAt(p[:], aer+corMask+1); err != nil {
		t.Fatal(err)
	}
}

// asNobody runs f on a thread that is nobody's, since nobody else sees the tree of an instance of nobody's, not even root.
func asNobody(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this
		for _, c := range [][4]uintptr{{unix.SYS_SETGROUPS}, {unix.SYS_SETRESGID, Nobody, Nobody, Nobody}, {unix.SYS_SETRESUID, Nobody, Nobody, Nobody}} {
			if _, _, errno := syscall.RawSyscall(c[0], c[1], c[2], c[3]); errno != 0 {
				done <- fmt.Errorf("becoming nobody: %w", errno)
				return
			}
		}
		done <- f()
	}()
	return <-done
}

// recordUIO records what is seen of an instance with this tree.
func recordUIO(t *testing.T, tree string) (string, error) {
	own := func(args ...string) []string {
		return append([]string{"env", "XDG_RUNTIME_DIR=/run/user/65534", ring3}, args...)
	}
	log, end, err := portseen.CommandFollow(own("dmesg", "-w")...)
	if err != nil {
		return "", err
	}
	defer end()
	events, stop, err := portseen.CommandEvents(own("events", "-w", "--property")...)
	if err != nil {
		return "", err
	}
	defer stop()
	a := &admin{log: log}
	// What came before is told first, and is no part of the recording.
	if err := a.asked("Slot #2 "); err != nil {
		return "", err
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		u, err := events.Uevents()
		if err != nil || time.Now().After(end) {
			return "", errors.Join(err, errors.New("no uevents of the ports' beginning"))
		}
		if len(u) > 0 {
			break
		}
	}
	r := portseen.Recorder{
		Roots:  portseen.Roots{Sys: filepath.Join(tree, "sys"), Dev: filepath.Join(tree, "dev"), Kernel: "/sys"},
		Player: monitor{}, Log: a, Events: events, Once: true,
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	return r.Record(ctx, a.events())
}

// notOurs are events that concern files of the kernel's, or ports that stay with it.
var notOurs = []string{
	"plug below a switch", "remove", "rescan", "fatal at a downstream port", "non-fatal, no driver", "fatal, no driver",
	"correctable by record", "non-fatal by record", "fatal and correctable by record",
}

// admin is root, who reads the log for what ring3 asks for, and does it; portseen.Log.
type admin struct {
	log  portseen.Log
	read []portseen.Line // by admin, and not by the recorder yet
	done int             // of those: how many need nothing any more
}

// Lines are for the recorder.
func (a *admin) Lines() ([]portseen.Line, error) {
	err := a.more()
	lines := a.read
	a.read, a.done = nil, 0
	return lines, err
}

func (a *admin) more() error {
	lines, err := a.log.Lines()
	a.read = append(a.read, lines...)
	return err
}

// events are the scenario's, with what root does.
func (a *admin) events() (all []portseen.Event) {
	for _, e := range portseen.Scenario {
		if slices.Contains(notOurs, e.Name) {
			continue
		}
		var do []portseen.Action
		for _, x := range e.Do {
			switch x := x.(type) {
			case portseen.Pause: // between two unplugs, of which one is another port's
				continue
			case portseen.Unplug:
				if x.Name != "eth2" {
					continue
				}
			}
			do = append(do, x)
		}
		root := func(what string, f func() error) { do = append(do, portseen.Func{What: "root " + what, Do: f}) }
		switch {
		case slices.Contains(e.Until, "bound eth2"):
			root("rescans", func() error { return errors.Join(a.asked("when root writes 1 to /sys/bus/pci/rescan"), rescan()) })
		case e.Name == "power off by file": // late, after ring3 said so
			root("removes eth2", func() error { return errors.Join(a.asked("still the kernel's, and going off"), remove("rp1")) })
		case slices.Contains(e.Until, "gone eth2"): // in time, within the 5 s of the button
			root("removes eth2", func() error { return remove("rp1") })
			root("sees eth2 leave", leaves)
		case e.Name == "fatal at a root port":
			root("renews eth0", func() error { return a.renew("rp0") })
		case e.Name == "severity changed":
			root("renews eth2", func() error { return a.renew("rp1") })
		}
		e.Do = do
		e.Until = slices.DeleteFunc(slices.Clone(e.Until), func(u string) bool { return strings.HasSuffix(u, " eth3") })
		all = append(all, e)
	}
	return all
}

// asked waits until ring3 says something once more.
func (a *admin) asked(text string) error {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err := a.more(); err != nil {
			return err
		}
		for ; a.done < len(a.read); a.done++ {
			if strings.Contains(a.read[a.done].Text, text) {
				a.done++
				return nil
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("ring3 does not say %q", text)
		}
	}
}

// renew gives what was reset under its driver back to it.
func (a *admin) renew(port string) error {
	return errors.Join(a.asked("reset under the kernel's driver"), remove(port), rescan())
}

// remove removes what is behind a port.
func remove(port string) error {
	addr, err := monitor{}.Address(port)
	if err != nil {
		return err
	}
	below, err := filepath.Glob("/sys/bus/pci/devices/" + addr + "/????:??:??.?/remove")
	if err != nil || len(below) != 1 {
		return fmt.Errorf("behind %s is %v, %v; want one function", port, below, err)
	}
	return writeRoot(below[0], "1")
}

// leaves waits until eth2, whose button was pressed just now, has left its slot, and is strict about when: the kernel has it leave after 6.14 s
// (5 s to press again, 1 s after power off).
func leaves() error {
	const wanted = 6140 * time.Millisecond
	const least, most = wanted * 8 / 10, wanted*12/10 + time.Second // a busy machine may be late
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		gone, err := monitor{}.Unplugged("eth2")
		took := time.Since(began)
		switch {
		case err != nil:
			return err
		case took > most, gone && took < least:
			return fmt.Errorf("eth2 has left its slot: %v, %v after its button was pressed, want that at %v", gone, took, wanted)
		case gone:
			return nil
		}
	}
}

func rescan() error { return writeRoot("/sys/bus/pci/rescan", "1") }

func writeRoot(path, data string) error {
	return try(wire.OpWrite, wire.File{Path: path, Data: []byte(data)}, nil)
}
