package host

import (
	"os"
	"path/filepath"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
)

// Others are the functions behind a real port that the kernel has; pci.Foreign. Whoever carries a port by UIO has that port only: what is behind it stays
// with the kernel's drivers.
func (h hierarchy) Others(port pci.Addr) []string {
	b := h.s.at(port)
	if b == nil || !isHardware(b.spec.Backend) {
		return nil
	}
	return h.s.kernelsBelow(syspci.Sys, port)
}

// kernelsBelow lists the functions in a bridge's folder, but for those that are ours.
func (s *System) kernelsBelow(root syspci.Root, port pci.Addr) (out []string) {
	entries, err := os.ReadDir(root.Path(port))
	if err != nil {
		return nil // it was removed, which its device tells of
	}
	for _, e := range entries {
		a, err := pci.ParseAddr(e.Name())
		if err != nil {
			continue
		}
		if s.at(a) == nil {
			driver := "pci"
			if to, err := os.Readlink(root.Path(a, "driver")); err == nil {
				driver = filepath.Base(to)
			}
			out = append(out, driver+" "+a.String())
		}
		out = append(out, s.kernelsBelow(root, a)...)
	}
	return out
}
