package host

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/mirror"
	"github.com/ring3dev/ring3/netdev"
)

// What several groups have, and what it is together.

// rules are for the files that more than one worker may have.
func (s *supervisor) rules() []mirror.Rule {
	drivers, ports := "/sys/bus/pci/drivers/*/", "/sys/bus/pci_express/drivers/*/"
	rules := []mirror.Rule{
		{Pattern: "/proc/net/pktgen/pgctrl", One: true, Again: true, Lasts: isStart},
		// A file of this name is one thread's; what is routed last tells whose answer it shows.
		s.threadRule(),
		{Pattern: "/proc/net/dev", Show: joinNetDev},
		{Pattern: "/proc/interrupts", Show: joinInterrupts},
		{Pattern: "/sys/bus/pci/rescan"},
		{Pattern: "/sys/bus/pci/drivers_probe", Store: s.byAddress},
		{Pattern: "/sys/bus/pci/drivers_autoprobe", One: true},
		{Pattern: "/sys/bus/pci/uevent", Store: s.firstOf},
		{Pattern: drivers + "bind", Store: s.byAddress},
		{Pattern: drivers + "unbind", Store: s.byAddress},
		{Pattern: drivers + "uevent", Store: s.firstOf},
		{Pattern: drivers + "new_id"},
		{Pattern: drivers + "remove_id"},
		{Pattern: "/sys/bus/pci_express/drivers_probe", Store: s.byAddress},
		{Pattern: "/sys/bus/pci_express/drivers_autoprobe", One: true},
		{Pattern: "/sys/bus/pci_express/uevent", Store: s.firstOf},
		{Pattern: ports + "bind", Store: s.byAddress},
		{Pattern: ports + "unbind", Store: s.byAddress},
		{Pattern: ports + "uevent", Store: s.firstOf},
		{Pattern: "/sys/module/*/parameters/*", Show: joinValues},
		{Pattern: "/sys/module/*/*", One: true},
		{Pattern: "/sys/devices/system/node/*", One: true},
		{Pattern: "/sys/devices/system/node/*/*", One: true},
	}
	for _, d := range s.c.Plan.Devices {
		rules = append(rules, s.generatorRules(d.Name)...)
	}
	return append(rules, mirror.Rule{Pattern: "/proc/net/pktgen/*", Store: s.pktgenWrote}) // of what is plugged in
}

// isStart says whether a write to pgctrl is the one that lasts as long as its run does.
func isStart(p []byte) bool { return bytes.Equal(bytes.TrimSpace(p), []byte("start")) }

// pktgenWrote lets groups' workers open the captures that are named to them.
func (s *supervisor) pktgenWrote(parts []string, p []byte) []string {
	for _, ch := range s.charges {
		if slices.Contains(parts, ch.Name) {
			ch.out.Wrote(p)
		}
	}
	return parts
}

// generatorRules are for pktgen's files of a device, which are its group's alone, whatever another worker has of that name.
func (s *supervisor) generatorRules(device string) (rules []mirror.Rule) {
	owner := func(parts []string) int {
		if ch := s.chargeOf(device); ch != nil {
			return max(0, slices.Index(parts, ch.Name))
		}
		return 0
	}
	show := func(parts []string, texts [][]byte) []byte { return texts[owner(parts)] }
	store := func(parts []string, p []byte) []string {
		// A capture that is to be replayed is opened by its name, which is the user's to say.
		if ch := s.chargeOf(device); ch != nil {
			ch.out.Wrote(p)
		}
		i := owner(parts)
		return parts[i : i+1]
	}
	for _, pattern := range []string{"", ".rx", "@*"} {
		rules = append(rules, mirror.Rule{Pattern: "/proc/net/pktgen/" + device + pattern, Show: show, Store: store})
	}
	return rules
}

// firstOf sends what concerns no device to the first group.
func (s *supervisor) firstOf(parts []string, _ []byte) []string { return parts[:1] }

// byAddress sends what names a function, or a service of a port, to the group that has it.
func (s *supervisor) byAddress(parts []string, p []byte) []string {
	name := strings.TrimSpace(string(p))
	name, _, _ = strings.Cut(name, ":pcie")
	if a, err := pci.ParseAddr(name); err == nil {
		if ch := s.chargeAt(a); ch != nil && slices.Contains(parts, ch.Name) {
			return []string{ch.Name}
		}
	}
	return parts[:1]
}

// chargeAt is the group that has an address; nil if none has.
func (s *supervisor) chargeAt(a pci.Addr) *charge {
	for _, ch := range s.charges {
		for _, d := range ch.Plan.Devices {
			if isHardware(d.Backend) && d.Device == a.String() {
				return ch
			}
		}
		if n := uint32(len(ch.Plan.groups())); a.Domain >= ch.Numbers.Domain && a.Domain < ch.Numbers.Domain+n {
			return ch
		}
	}
	return nil
}

// threadRule is for pktgen's threads: each worker has one for each CPU, and together they are one.
func (s *supervisor) threadRule() mirror.Rule {
	var mu sync.Mutex
	var last string // part whose result is the last
	return mirror.Rule{
		Pattern: "/proc/net/pktgen/kpktgend_*",
		Show: func(parts []string, texts [][]byte) []byte {
			mu.Lock()
			defer mu.Unlock()
			return joinThreads(texts, max(0, slices.Index(parts, last)))
		},
		Store: func(parts []string, p []byte) []string {
			name, ok := strings.CutPrefix(strings.TrimSpace(string(p)), "add_device ")
			to := parts[0]
			if ok {
				base, _, _ := strings.Cut(strings.TrimSpace(name), "@")
				if ch := s.chargeOf(base); ch != nil && slices.Contains(parts, ch.Name) {
					to = ch.Name
				}
			}
			mu.Lock()
			defer mu.Unlock()
			last = to
			if ok {
				return []string{to}
			}
			return parts // rem_device_all is meant for all
		},
	}
}

// joinThreads makes one text of those of a thread in several engines; the result is of the one numbered last.
func joinThreads(texts [][]byte, last int) []byte {
	var lists [2]string
	result := ""
	for i, t := range texts {
		for l := range strings.Lines(string(t)) {
			for k, key := range []string{"Running: ", "Stopped: "} {
				if v, ok := strings.CutPrefix(l, key); ok {
					lists[k] += strings.TrimSuffix(v, "\n")
				}
			}
			if strings.HasPrefix(l, "Result: ") && i == last {
				result = l
			}
		}
	}
	return fmt.Appendf(nil, "Running: %s\nStopped: %s\n%s", lists[0], lists[1], result)
}

// joinNetDev is the header once, and the lines of all.
func joinNetDev(_ []string, texts [][]byte) []byte {
	b := []byte(netdev.ProcHeader)
	for _, t := range texts {
		b = append(b, bytes.TrimPrefix(t, []byte(netdev.ProcHeader))...)
	}
	return b
}

// joinInterrupts is the first one's header, and the lines of all.
func joinInterrupts(_ []string, texts [][]byte) []byte {
	var b []byte
	for i, t := range texts {
		header, rest, _ := bytes.Cut(t, []byte("\n"))
		if i == 0 {
			b = append(append(b, header...), '\n')
		}
		b = append(b, rest...)
	}
	return b
}

// joinValues is a parameter that each device has: values joined by commas.
func joinValues(_ []string, texts [][]byte) []byte {
	var all []string
	for _, t := range texts {
		all = append(all, strings.TrimSuffix(string(t), "\n"))
	}
	return []byte(strings.Join(all, ",") + "\n")
}
