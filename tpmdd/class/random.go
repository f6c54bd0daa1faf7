package class

import (
	"strings"

	"github.com/ring3dev/ring3/sysfs"
)

// AddRandom puts the random number generator of a TPM into a tree that stands for /sys: hw_random, of which it is the only
// source.
func AddRandom(sys *sysfs.Dir, name string) {
	const at = "/devices/virtual/misc/hw_random"
	source := "tpm-rng-" + strings.TrimPrefix(name, "tpm")
	d := sys.MkdirAll(at)
	node(d, "hwrng", miscMajor, 183)
	d.Put("rng_available", sysfs.Showf("%s", source))
	d.Put("rng_current", sysfs.Showf("%s", source))
	d.Put("rng_selected", sysfs.Showf("0"))
	d.Put("subsystem", &sysfs.Link{Target: sysfs.Rel(at, "/class/misc")})
	sys.MkdirAll("/class/misc").Put("hw_random", &sysfs.Link{Target: sysfs.Rel("/class/misc", at)})
}
