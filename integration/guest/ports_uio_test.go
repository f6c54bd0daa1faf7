//go:build vm

package guest

import (
	"bytes"
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
	resetMask(t, rp0)
	must(t, "bind", rp0, rp1, "--driver", "uio_pci_generic")
	defer func() {
		must(t, "unbind", rp0, rp1)
		for _, slot := range []string{"1", "2"} {
			if _, err := os.Stat("/sys/bus/pci/slots/" + slot + "/power"); err != nil {
				t.Errorf("the kernel does not serve slot %s again: %v", slot, err)
			}
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
	log, err := portseen.CommandLog(own("dmesg")...)
	if err != nil {
		return "", err
	}
	events, stop, err := portseen.CommandEvents(own("events", "-w", "--property")...)
	if err != nil {
		return "", err
	}
	defer stop()
	a := &admin{dmesg: own("dmesg"), had: map[string]int{}}
	r := portseen.Recorder{
		Roots:  portseen.Roots{Sys: filepath.Join(tree, "sys"), Dev: filepath.Join(tree, "dev"), Kernel: "/sys"},
		Player: monitor{}, Log: log, Events: events,
	}
	return r.Record(t.Context(), a.events())
}

// notOurs are events that concern files of the kernel's, or ports that stay with it.
var notOurs = []string{
	"plug below a switch", "remove", "rescan", "fatal at a downstream port", "non-fatal, no driver", "fatal, no driver",
	"correctable by record", "non-fatal by record", "fatal and correctable by record",
}

// admin is root, who reads what ring3 asks for and does it.
type admin struct {
	dmesg []string
	had   map[string]int // how often a message came that was acted on
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
			root("removes eth2", func() error { return errors.Join(a.asked("still the kernel's, and going off"), remove("eth2")) })
		case slices.Contains(e.Until, "gone eth2"): // in time, within the 5 s of the button
			root("removes eth2", func() error { return remove("eth2") })
		case e.Name == "fatal at a root port":
			root("renews eth0", func() error { return a.renew("eth0") })
		case e.Name == "severity changed":
			root("renews eth2", func() error { return a.renew("eth2") })
		}
		e.Do = do
		e.Until = slices.DeleteFunc(slices.Clone(e.Until), func(u string) bool { return strings.HasSuffix(u, " eth3") })
		all = append(all, e)
	}
	return all
}

// asked waits until ring3 says something once more.
func (a *admin) asked(text string) error {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, err := exec.Command(a.dmesg[0], a.dmesg[1:]...).Output()
		if err != nil {
			return err
		}
		if n := bytes.Count(out, []byte(text)); n > a.had[text] {
			a.had[text] = n
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("ring3 dmesg has no new line with %q", text)
		}
	}
}

// renew gives a device that was reset under its driver back to it.
func (a *admin) renew(name string) error {
	return errors.Join(a.asked("reset under the kernel's driver"), remove(name), rescan())
}

func remove(name string) error {
	addr, err := monitor{}.Address(name)
	if err != nil {
		return err
	}
	return writeRoot("/sys/bus/pci/devices/"+addr+"/remove", "1")
}

func rescan() error { return writeRoot("/sys/bus/pci/rescan", "1") }

func writeRoot(path, data string) error {
	return try(wire.OpWrite, wire.File{Path: path, Data: []byte(data)}, nil)
}
