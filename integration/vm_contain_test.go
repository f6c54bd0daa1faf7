package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/integration/vm"
)

// containTests is how the names of tests begin, after Root, that are about ring3 up with workers on VFIO.
const containTests = "Contain"

// TestVMContain runs drivers of real functions in workers, in a VM with an IOMMU, and has them die: -run 'TestVMContain/TestRootContainKilled'.
func TestVMContain(t *testing.T) {
	t.Parallel()
	vm.Need(t, vmArch)
	limit := 10 * time.Minute
	if os.Getenv("RING3_FAULTS") != "" {
		limit = time.Hour
	}
	s := vm.Suite{
		Package: "integration/guest", Dir: filepath.Dir(ring3),
		Config:  vm.Config{Arch: vmArch, Devices: nics, Image: image(t), Host: host},
		Timeout: limit,
		Want:    func(name string) bool { return strings.HasPrefix(name, "TestRoot"+containTests) },
	}
	s.Run(t)
}
