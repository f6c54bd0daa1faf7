package class

import (
	"bytes"
	"context"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/sysfs"
)

// AddRandom puts the random number generator of a TPM into a tree that stands for /sys: hw_random, of which it is the only
// source.
func AddRandom(sys *sysfs.Dir, name string) {
	const at = "/devices/virtual/misc/hw_random"
	source := "tpm-rng-" + strings.TrimPrefix(name, "tpm")
	d := sys.MkdirAll(at)
	node(d, "hwrng", miscMajor, 183)
	power(d)
	var selected atomic.Bool // by the user
	d.Put("rng_available", sysfs.Showf("%s ", source))
	d.Put("rng_current", sysfs.Attr(0o644, func(w *bytes.Buffer) error { w.WriteString(source + "\n"); return nil },
		func(_ context.Context, p []byte) (int, error) {
			switch strings.TrimSuffix(string(p), "\n") {
			case source:
				selected.Store(true)
			case "": // whichever is best
				selected.Store(false)
			default:
				return 0, unix.ENODEV
			}
			return len(p), nil
		}))
	d.Put("rng_selected", sysfs.Show(func() string { return map[bool]string{false: "0", true: "1"}[selected.Load()] }))
	d.Put("rng_quality", number(1024))
	d.Put("subsystem", &sysfs.Link{Target: sysfs.Rel(at, "/class/misc")})
	sys.MkdirAll("/class/misc").Put("hw_random", &sysfs.Link{Target: sysfs.Rel("/class/misc", at)})
}
