package host

import (
	"path"
	"strings"

	"github.com/ring3dev/ring3/bus/pci"
)

// leads says whether a link of a group's worker may lead out of the tree: to a memory window of a fabric's that the supervisor told it of. It is called as such a
// link is, window0, and no other way: the bytes of a window are some worker's, and by a name of its choice more than memory could be made of them.
func (s *supervisor) leads(part, at, target string) bool {
	number, is := strings.CutPrefix(path.Base(at), "window")
	if !is || number == "" || strings.Trim(number, "0123456789") != "" {
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
//
// No worker has a name that ends in .so, not even a directory's or of a link within the tree. By qtest's module_load it could have QEMU open it. A link leads
// on to a memory window, which may be executed; and where a directory x.so stands beside a file x.so.la, GLib takes that for libtool's and loads what the file names, such
// as a descriptor of QEMU's RAM.
func (s *supervisor) may(part, at string) bool {
	dir, name := path.Split(at)
	if strings.HasSuffix(name, ".so") {
		return false
	}
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
