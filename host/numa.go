package host

import (
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/cpuset"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/sysfs"
)

// nodePath is where a kernel with CONFIG_NUMA has its nodes.
const nodePath = "/devices/system/node"

// exportNodes gives a machine whose kernel has no NUMA nodes the one that it would have, with all CPUs: scripts ask for
// the CPUs of a device's node.
func exportNodes(sys *node.Dir, facts Facts) error {
	if facts.Nodes != "" {
		return nil
	}
	all, err := cpuset.Online()
	if err != nil {
		return err
	}
	nodes := sys.MkdirAll(nodePath)
	nodes.Put("online", sysfs.Showf("0"))
	nodes.Put("possible", sysfs.Showf("0"))
	node0 := nodes.MkdirAll("node0")
	for name, format := range map[string]func(unix.CPUSet, int) string{"cpulist": cpuset.FormatList, "cpumap": cpuset.FormatMask} {
		node0.Put(name, sysfs.Showf("%s", format(all, cpuset.Max(all)+1)))
	}
	return nil
}
