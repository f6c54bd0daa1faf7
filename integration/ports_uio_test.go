package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/integration/portseen"
)

// uioEvents is how many events of the scenario concern the two ports that ring3 has by UIO.
const uioEvents = 21

// comparePorts is told by TestRootPortsUIO in the VM what was seen of ring3's ports by UIO. It compares that with what the kernel's drivers of
// these ports did.
func comparePorts(args json.RawMessage) (any, error) {
	var text string
	if err := json.Unmarshal(args, &text); err != nil {
		return nil, err
	}
	kept, err := os.ReadFile(portsFile)
	if err != nil {
		return nil, err
	}
	got, names := ofPorts(text, nil)
	if n := len(names) - 1; n != uioEvents {
		return nil, fmt.Errorf("%d events were recorded, want %d", n, uioEvents)
	}
	want, _ := ofPorts(string(kept), names)
	var bad []string
	for _, line := range portseen.Compare(want, got, portseen.Tolerance{Part: portsPart, Late: time.Second}) {
		if !expected(line) && !slices.ContainsFunc(uioDifferences, func(d *regexp.Regexp) bool { return d.MatchString(line) }) {
			bad = append(bad, line)
		}
	}
	if len(bad) > 0 {
		return nil, fmt.Errorf("ring3's ports by UIO are not as the kernel's:\n%s", strings.Join(bad, "\n"))
	}
	return nil, nil
}

var (
	// others are devices that the kernel keeps, and their slots. What ring3 says of what it has not taken is among it, and is waited for by
	// the test: which of them root is to remove.
	others = regexp.MustCompile(`\b(rp[23]|sw0|dn[01]|vn0|eth[0-9]|slots/[3-6])\b`)
	// elsewhere are actions on them, and what root does, who is the kernel's friend here.
	elsewhere = regexp.MustCompile(`^do +(root |wait |.*\b(eth3|dn[01])\b)`)
	number    = regexp.MustCompile(`^== [0-9]+ `)
)

// ofPorts is what of a recording is about rp0 and rp1, of events with these names (nil: all), and the names of its events.
func ofPorts(text string, events []string) (string, []string) {
	var b strings.Builder
	var names []string
	in := false
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "== "):
			name := strings.TrimSpace(number.ReplaceAllString(line, ""))
			if in = events == nil || slices.Contains(events, name); in {
				names = append(names, name)
				b.WriteString(number.ReplaceAllString(line, "== "))
			}
		case !in || elsewhere.MatchString(line):
		case strings.HasPrefix(line, "do "), !others.MatchString(line):
			b.WriteString(line)
		}
	}
	return b.String(), names
}

// uioDifferences are where ring3's ports by UIO are not as the kernel's, by line, beside portDifferences.
var uioDifferences = []*regexp.Regexp{
	// Root bound the port to uio_pci_generic, and what is shown is the kernel's file.
	regexp.MustCompile(`bus/pci/devices/rp[01]/driver_override: (-rw-r--r-- \(null\)|-r--r--r-- uio_pci_generic)$`),
	// The card is found by the kernel, when root has it look.
	regexp.MustCompile(`^got:  log  pcieport rp1: pciehp: Slot\(2\): It is on; the kernel, whose bus it is, finds the card when root writes 1 to /sys/bus/pci/rescan$`),
	// The kernel's port had one correctable error more before these events: a record's about the device behind it, which ring3 has not, and so refuses.
	regexp.MustCompile(`^want: ([-+])    bus/pci/devices/rp0/aer_rootport_total_err_cor: -r--r--r-- ([123])$`),
	regexp.MustCompile(`^got:  ([-+])    bus/pci/devices/rp0/aer_rootport_total_err_cor: -r--r--r-- ([012])$`),
	// Where the kernel had the scenario before, in the same boot, the link of the empty slot keeps the speed that it had last, and QEMU's port has
	// forgotten its highest, which the kernel had read at boot.
	regexp.MustCompile(`bus/pci/slots/2/cur_bus_speed: -r--r--r-- (16\.0|2\.5) GT/s PCIe$`),
	regexp.MustCompile(`bus/pci/slots/[12]/max_bus_speed: -r--r--r-- (16\.0 GT/s PCIe|Unknown)$`),
}

func TestOfPorts(t *testing.T) {
	t.Parallel()
	const text = "== state\n     bus/pci/devices/rp1/class: x\n     bus/pci/devices/rp2/class: x\n== 7 one\ndo   plug eth2 into rp1: ok\ndo   root rescans: ok ~2.00s\n" +
		"uev  add /devices/pci/rp1/eth2 SUBSYSTEM=pci\n== 9 two\nlog  pcieport rp0: x\nlog  pcieport dn1: x\n"
	for _, test := range []struct {
		events []string
		want   string
	}{
		{nil, "== state\n     bus/pci/devices/rp1/class: x\n== one\ndo   plug eth2 into rp1: ok\n== two\nlog  pcieport rp0: x\n"},
		{[]string{"two"}, "== two\nlog  pcieport rp0: x\n"},
	} {
		if got, _ := ofPorts(text, test.events); got != test.want {
			t.Errorf("ofPorts(%q) = %q, want %q", test.events, got, test.want)
		}
	}
}
