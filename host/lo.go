package host

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/sysfs"
)

// loopbackName is the device that a kernel has without anybody asking for it.
const loopbackName = "lo"

// loopback is lo: for pktgen a device that receives what it sends. Among the machine's files it stands for the
// machine's own, so it counts that one's traffic too: nobody who looks at lo in the shell misses anything.
type loopback struct {
	*netdev.Loopback
	machine *os.File // the machine's /proc/net/dev; nil: it is opened each time
}

// newLoopback makes it, unless the user has given that name to a device of his.
func newLoopback(ctx context.Context, p *Plan, outside Outside) (*loopback, error) {
	if p.find(loopbackName) != nil {
		return nil, nil
	}
	l := &loopback{Loopback: netdev.NewLoopback(loopbackName)}
	if outside != nil {
		var err error
		if l.machine, err = outside.File(ctx, useNetDev, ""); err != nil {
			return nil, fmt.Errorf("lo: %w", err)
		}
	}
	return l, nil
}

// close ends what it reads from.
func (l *loopback) close() error {
	if l == nil || l.machine == nil {
		return nil
	}
	return l.machine.Close()
}

// machineNetDev is the machine's /proc/net/dev as it is now.
func (l *loopback) machineNetDev() []byte {
	if l.machine == nil {
		b, _ := os.ReadFile("/proc/self/net/dev")
		return b
	}
	// Reading at 0 makes it anew.
	b, _ := io.ReadAll(io.NewSectionReader(l.machine, 0, maxNetDev))
	return b
}

// maxNetDev is as much as is read of it: thousands of interfaces.
const maxNetDev = 1 << 20

// Stats are ours and the machine's together.
func (l *loopback) Stats() netdev.Stats {
	s := l.Loopback.Stats()
	b := l.machineNetDev()
	for line := range strings.Lines(string(b)) {
		if name, rest, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && name == loopbackName {
			addMachine(&s, strings.Fields(rest))
		}
	}
	return s
}

// addMachine adds the columns of a line of /proc/net/dev that a loopback device has.
func addMachine(s *netdev.Stats, columns []string) {
	for column, to := range map[int]*uint64{
		0: &s.RxBytes, 1: &s.RxPackets, 2: &s.RxErrors, 3: &s.RxDropped, 8: &s.TxBytes, 9: &s.TxPackets, 10: &s.TxErrors, 11: &s.TxDropped,
	} {
		if column < len(columns) {
			n, _ := strconv.ParseUint(columns[column], 10, 64)
			*to += n
		}
	}
}

// loopbackPath is where lo stands in /sys: below no bus.
const loopbackPath = "/devices/virtual/net/" + loopbackName

// exportLoopback puts lo into sys/, and where the shell lays it over the machine's.
func (s *System) exportLoopback(sys, ns *node.Dir) {
	if s.lo == nil {
		return
	}
	dir := netdev.ClassDir(s.lo, netdev.ClassOptions{Subsystem: sysfs.Rel(loopbackPath, classNet), IfIndex: 1})
	virtual, name := strings.TrimSuffix(loopbackPath, "/"+loopbackName), loopbackName
	sys.MkdirAll(virtual).Put(name, dir)
	sys.MkdirAll(classNet).Put(name, &sysfs.Link{Target: sysfs.Rel(classNet, loopbackPath)})
	ns.MkdirAll("sys"+virtual).Put(name, dir)
}

// collisions are the machine's network interfaces that one of our devices hides in the shell. lo hides nothing, and a device whose TAP has
// its name is that interface.
func (s *System) collisions() []string {
	names := slices.DeleteFunc(s.tree.class.Hidden(), func(n string) bool {
		b := s.boundOf(n)
		return b != nil && b.tap != nil && b.tap.Name() == n
	})
	if s.lo != nil {
		names = slices.DeleteFunc(names, func(n string) bool { return n == loopbackName })
	}
	return names
}

// receiver is what takes the frames of a network device; nil if nothing does.
func (s *System) receiver(name string) netdev.Receiver {
	if s.lo != nil && name == loopbackName {
		return s.lo.Sink()
	}
	if b := s.boundOf(name); b != nil && b.sink != nil {
		return b.sink
	}
	return nil
}
