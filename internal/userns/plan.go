package userns

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"github.com/ring3dev/ring3/internal/node"
)

// ViewName is the name of the directory at the top of an instance's tree that View made.
const ViewName = "ns"

// Plan says what stands where inside.
type Plan struct {
	Tree string   // where the instance's tree is mounted: proc/, sys/, dev/, ns/ are inside
	Old  string   // an empty directory; inside it holds the kernel's own proc/ and sys/
	Over []string // absolute paths at which Tree/ns's entry replaces the kernel's
	Add  []string // absolute directories that get the entries of Tree's in addition

	Programs map[string]string // scripts that stand first in PATH inside, by name
	Files    map[string]string // absolute paths of files that have another text inside
	OwnNet   bool              // inside is a network of its own, with lo alone
}

// overDirs are the directories in which ring3 adds names at any time.
var overDirs = []string{"/proc/net", "/proc/irq", "/sys/class/net", "/sys/bus/pci/devices", "/sys/bus/pci/drivers", "/sys/module",
	"/sys/bus/pci/slots", "/sys/bus/pci_express/devices", "/sys/bus/pci_express/drivers"}

// BusFiles are files of a bus that mean our devices inside, and not the machine's, which only root reaches.
var BusFiles = []string{"/sys/bus/pci/rescan", "/sys/bus/pci/drivers_probe", "/sys/bus/pci/drivers_autoprobe",
	"/sys/bus/pci_express/drivers_probe", "/sys/bus/pci_express/drivers_autoprobe"}

// overOthers are files that show the kernel's lines, then ours, and lo.
var overOthers = []string{"/proc/interrupts", "/sys/devices/virtual/net/lo"}

// DefaultPlan is the plan for what View made. What is no merged directory is left to the kernel if ns/ has
// none.
func DefaultPlan(tree, old string) Plan {
	return Plan{
		Tree: tree,
		Old:  old,
		Over: slices.Concat(overDirs, overOthers, BusFiles),
		Add:  []string{"/sys/devices", "/sys/class", "/sys/bus", "/sys/kernel"},

		Programs: map[string]string{"modprobe": modprobe},
	}
}

// View makes the directory that root serves as ns/: for each path in which the kernel has
// entries too, a directory merged of root's own and the kernel's. What is missing in root is
// made. old is Plan.Old. The caller adds merged files to the result (proc/interrupts,
// proc/net/dev) and puts it into root as ViewName.
func View(root *node.Dir, old string) *node.Dir {
	ns := &node.Dir{}
	for _, path := range overDirs {
		d := &node.Dir{Ours: root.MkdirAll(path), Kernel: path, Keep: old + path}
		if path == "/proc/net" {
			// Each process has its own, and so do these links.
			d.Kernel, d.Keep = "/proc/self/net", "/proc/self/net"
		}
		ns.MkdirAll(filepath.Dir(path)).Put(filepath.Base(path), d)
	}
	return ns
}

// Collisions lists the network interfaces that both the machine and the tree mounted at
// tree have, and which are the tree's inside. The process that serves the tree must not call
// it: its own view's sys/class/net knows by Hidden.
func Collisions(tree string) ([]string, error) {
	ours, err := os.ReadDir(filepath.Join(tree, "sys/class/net"))
	if err != nil {
		return nil, fmt.Errorf("comparing names with the machine's: %w", err)
	}
	var both []string
	for _, e := range ours {
		if _, err := os.Lstat(filepath.Join("/sys/class/net", e.Name())); err == nil {
			both = append(both, e.Name())
		}
	}
	sort.Strings(both)
	return both, nil
}
