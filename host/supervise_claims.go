package host

import (
	"path"
	"strings"

	"github.com/ring3dev/ring3/bus/pci"
)

// leads says whether a link of a group's worker may lead out of the tree: to a memory window of a fabric's that the supervisor told it of.
func (s *supervisor) leads(part, at, target string) bool {
	if !strings.HasPrefix(path.Base(at), "window") {
		return false
	}
	for _, ch := range s.charges {
		if o, ok := ch.out.(*nearOutside); ok && ch.Name == part {
			for _, b := range o.backends {
				if h, ok := b.(*heldFabrics); ok && h.told(target) {
					return true
				}
			}
		}
	}
	return false
}

// may says whether a group's worker may have an entry of the tree: what is called as another group's device, or stands at another group's address, is not its to
// show, also while the other has nothing there. Names that are only of the plan count: what a worker says that it has is its own word.
func (s *supervisor) may(part, at string) bool {
	dir, name := path.Split(at)
	if a, err := pci.ParseAddr(name); err == nil {
		ch := s.chargeAt(a)
		return ch == nil || ch.Name == part
	}
	switch dir {
	case "/proc/net/pktgen/", "/sys/class/net/", "/sys/class/tpm/", "/sys/class/tpmrm/", "/dev/":
	default:
		if path.Base(dir) != "net" { // of a device
			return true
		}
	}
	name = strings.Replace(strings.TrimSuffix(name, ".rx"), "tpmrm", "tpm", 1)
	name, _, _ = strings.Cut(name, "@") // pktgen's, of a device more than once
	for _, ch := range s.charges {
		if ch.Plan.find(name) != nil {
			return ch.Name == part
		}
	}
	return true
}
