package integration

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/pci"
)

// aerCounts are a function's counters of errors: the sum, and what the lines before say.
func (p *portsRun) aerCounts(t *testing.T, addr, kind string) (total, sum int) {
	t.Helper()
	for _, l := range strings.Split(p.get(t, "sys/bus/pci/devices/"+addr+"/aer_dev_"+kind), "\n") {
		var name string
		var n int
		if _, err := fmt.Sscan(l, &name, &n); err != nil {
			t.Fatalf("aer_dev_%s of %s: %q: %v", kind, addr, l, err)
		}
		if strings.HasPrefix(name, "TOTAL_ERR_") {
			total = n
		} else {
			sum += n
		}
	}
	return total, sum
}

// cleared says that the errors of a function are worked off: its status has none any more. They are counted before they are cleared, and
// one that comes in between is one with them.
func (p *portsRun) cleared(t *testing.T, addr string) bool {
	t.Helper()
	c := []byte(p.get(t, "sys/bus/pci/devices/"+addr+"/config"))
	word := func(at int) uint32 {
		if at+4 > len(c) {
			t.Fatalf("config space of %s ends before %#x", addr, at+4)
		}
		return binary.LittleEndian.Uint32(c[at:])
	}
	at := 0x100
	for steps := 0; uint16(word(at)) != pci.ExtCapAER; steps++ {
		if at = int(word(at) >> 20); at == 0 || steps == 100 {
			t.Fatalf("%s does not report errors", addr)
		}
	}
	return word(at+int(pci.AERUncSta)) == 0 && word(at+int(pci.AERCorSta)) == 0
}

// TestPortsCounted: 10,000 errors (2,000 without RING3_LONG) one after the other, correctable ones of all kinds, and each is counted once.
func TestPortsCounted(t *testing.T) {
	p := startPorts(t, "rp0=sim:root-port", "eth0=sim:e1000e,under=rp0,sim.aer=on")
	const port, nic, total = "1000:00:03.0", "1000:01:00.0", "sys/bus/pci/devices/1000:00:03.0/aer_rootport_total_err_cor"
	bits := []uint32{1 << 0, 1 << 6, 1 << 7, 1 << 8, 1 << 12} // those that are not masked
	n := long(10_000, 2_000)
	f, err := os.OpenFile(filepath.Join(p.tree, "dev/aer_inject"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range n {
		addr := port
		if i%2 == 1 {
			addr = nic
		}
		rec, err := recordOf(addr, "0", fmt.Sprint(bits[i/2%len(bits)]))
		if err == nil {
			_, err = f.Write(rec)
		}
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(5 * time.Second); p.number(t, total, `^(\d+)$`) != i+1; {
			if time.Now().After(deadline) {
				t.Fatalf("after %d errors %s of them are counted\n%s", i+1, p.get(t, total), p.lastWords())
			}
		}
	}
	for _, addr := range []string{port, nic} {
		if all, sum := p.aerCounts(t, addr, "correctable"); all != n/2 || sum != n/2 {
			t.Errorf("%s counts %d correctable errors, %d together, want %d", addr, all, sum, n/2)
		}
		for _, name := range []string{"RxErr", "BadTLP", "BadDLLP", "Rollover", "Timeout"} {
			if got := p.number(t, "sys/bus/pci/devices/"+addr+"/aer_dev_correctable", `(?m)^`+name+` (\d+)$`); got != n/2/len(bits) {
				t.Errorf("%s of %s = %d, want %d", name, addr, got, n/2/len(bits))
			}
		}
	}
	p.end(t)
}

// TestPortsStorm: errors for seconds, as fast as they can be injected, while a card comes and goes in the slot of the same port, whose services
// share a vector. Nothing grows, and what is injected after that is counted exactly.
func TestPortsStorm(t *testing.T) {
	for _, c := range []struct {
		backend                    string
		uncorrectable, correctable uint32
		kind                       string
	}{
		{"qemu", errTimeout, 0, "nonfatal"},   // through its monitor, which takes these
		{"qemu", 0, errBadTLP, "correctable"}, // and these are shown
		{"sim", 0, errBadTLP, "correctable"},
	} {
		t.Run(c.backend+" "+c.kind, func(t *testing.T) {
			p := startPorts(t, "rp0="+c.backend+":pcie-root-port", "rp1="+c.backend+":pcie-root-port", "e1="+c.backend+":e1000e,under=rp1")
			rec, err := recordOf(stormPort, fmt.Sprint(c.uncorrectable), fmt.Sprint(c.correctable))
			if err != nil {
				t.Fatal(err)
			}
			storm(t, p, c.backend, rec, c.kind)
			p.end(t)
		})
	}
}

const stormPort = "1000:00:03.0"

func storm(t *testing.T, p *portsRun, backend string, rec []byte, kind string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(p.tree, "dev/aer_inject"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var written, failed atomic.Int64
	var over atomic.Bool
	var writer sync.WaitGroup
	writer.Go(func() {
		for !over.Load() {
			if _, err := f.Write(rec); err != nil {
				failed.Add(1)
			} else {
				written.Add(1)
			}
		}
	})
	began := time.Now()
	time.Sleep(200 * time.Millisecond) // what is made once is made then
	before, cycles := p.usage(t), 0
	for time.Since(began) < time.Duration(long(25, 3))*time.Second {
		if err := p.cycle(t, backend, 0); err != nil {
			t.Errorf("a card in a storm: %v\n%s", err, p.lastWords())
			break
		}
		cycles++
	}
	over.Store(true)
	writer.Wait()
	took := time.Since(began)
	last, since := -1, time.Now()
	eventually(t, "the end of the storm", func() bool { // each message that waits may take a recovery
		if now, _ := p.aerCounts(t, stormPort, kind); now != last || !p.cleared(t, stormPort) {
			last, since = now, time.Now()
		}
		return time.Since(since) > time.Second
	})
	total, sum := p.aerCounts(t, stormPort, kind)
	messages := p.number(t, "sys/bus/pci/devices/"+stormPort+"/aer_rootport_total_err_"+strings.TrimSuffix(kind, "rectable"), `^(\d+)$`)
	t.Logf("%d errors in %v, %d refused, %d cards; counted %d, messages %d", written.Load(), took.Round(time.Millisecond), failed.Load(), cycles, total, messages)
	if failed.Load() > 0 || total != sum || total == 0 || int64(total) > written.Load() || messages > int(written.Load()) {
		t.Errorf("of %d errors, and %d that were refused, %d are counted, and %d by kind; %d messages", written.Load(), failed.Load(), total, sum, messages)
	}
	if u := p.usage(t); u.rss > before.rss+24<<10 || u.threads > before.threads+6 {
		t.Errorf("after the storm %+v, in the beginning %+v", u, before)
	} else {
		t.Logf("before %+v, after %+v", before, u)
	}
	for i := range 10 { // those that come alone are counted exactly
		if _, err := f.Write(rec); err != nil {
			t.Fatal(err)
		}
		now := 0
		for deadline := time.Now().Add(time.Minute); now != total+i+1 || !p.cleared(t, stormPort); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("after %d errors that came alone %d are counted, %d before them\n%s", i+1, now, total, p.lastWords())
			}
			now, _ = p.aerCounts(t, stormPort, kind)
		}
	}
}

// TestPortsUser: an ordinary user has all of that: errors by a program of his own, hot-plug, sleep.
func TestPortsUser(t *testing.T) {
	dir := folder(t)
	rec, err := recordOf("1000:00:03.0", fmt.Sprint(errTimeout), "0")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "record")
	if err := os.WriteFile(file, rec, 0o644); err != nil {
		t.Fatal(err)
	}
	const inside = `set -e
id -u
cat record > /dev/aer_inject
until grep -q '^CmpltTO 1$' /sys/bus/pci/devices/1000:00:03.0/aer_dev_nonfatal; do sleep 0.05; done
ring3 plug nic0=sim:e1000e,under=rp0
cat /sys/class/net/nic0/address
ring3 suspend rp0
ring3 resume rp0
echo 0 > /sys/bus/pci/slots/1/power
test ! -e /sys/class/net/nic0
echo 1000:00:03.0:pcie002 > /sys/bus/pci_express/drivers/aer/unbind
cat record > /dev/aer_inject || echo refused
`
	argv := append(asNobody(), "env", "-i", "PATH="+filepath.Dir(ring3)+":"+os.Getenv("PATH"), "TMPDIR="+dir, "LC_ALL=C", ring3, "run", "rp0=sim:root-port", "--", "sh", "-c", inside)
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("ring3 run: %v\n%s", err, out)
	}
	for _, want := range []string{"nic0: e1000 82574L at 1000:01:00.0", "52:54:00:12:34:56", "No such device\nrefused"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("ring3 run printed %q, want %q in it", out, want)
		}
	}
}
