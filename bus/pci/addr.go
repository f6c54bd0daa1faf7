package pci

import (
	"fmt"
	"strconv"
	"strings"
)

// Addr is the address of a function: domain, bus, device (0 to 31) and function (0 to
// 7). Domains above 0xffff are allowed, as the kernel allows them: ring3's own lie
// above those that the machine uses.
type Addr struct {
	Domain       uint32
	Bus, Dev, Fn uint8
}

// String is "dddd:bb:dd.f", as the kernel and lspci write it.
func (a Addr) String() string {
	return fmt.Sprintf("%04x:%02x:%02x.%x", a.Domain, a.Bus, a.Dev, a.Fn)
}

// Devfn is device and function as one byte, as a requester ID has them.
func (a Addr) Devfn() uint8 { return a.Dev<<3 | a.Fn&7 }

// Less orders addresses as the kernel lists them.
func (a Addr) Less(b Addr) bool {
	if a.Domain != b.Domain {
		return a.Domain < b.Domain
	}
	if a.Bus != b.Bus {
		return a.Bus < b.Bus
	}
	return a.Devfn() < b.Devfn()
}

// ParseAddr reads what String writes, and no other form: lower or upper case hex, four
// to eight digits of domain, two of bus, two of device, one of function.
func ParseAddr(s string) (Addr, error) {
	bad := func() (Addr, error) {
		return Addr{}, fmt.Errorf("reading the PCI address %q: want dddd:bb:dd.f in hex, as in 0000:03:00.0", s)
	}
	f := strings.Split(s, ":")
	if len(f) != 3 {
		return bad()
	}
	dev, fn, ok := strings.Cut(f[2], ".")
	if !ok || len(f[0]) < 4 || len(f[0]) > 8 || len(f[1]) != 2 || len(dev) != 2 || len(fn) != 1 {
		return bad()
	}
	if len(f[0]) > 4 && f[0][0] == '0' {
		return bad() // not what String writes
	}
	var v [4]uint64
	for i, p := range []string{f[0], f[1], dev, fn} {
		var err error
		// ParseUint takes no sign, and no underscore or prefix with an explicit base.
		if v[i], err = strconv.ParseUint(p, 16, 32); err != nil {
			return bad()
		}
	}
	if v[2] > 31 || v[3] > 7 {
		return bad()
	}
	return Addr{Domain: uint32(v[0]), Bus: uint8(v[1]), Dev: uint8(v[2]), Fn: uint8(v[3])}, nil
}
