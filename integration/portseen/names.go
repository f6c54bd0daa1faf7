package portseen

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// names are the addresses that devices of the topology have, or will have.
type names struct {
	address map[string]string // by name
	to      *strings.Replacer // names for addresses
	from    *strings.Replacer // addresses for {NAME}
}

// newNames finds them: those of root ports are given, the others follow from the numbers of the buses below ports.
func newNames(roots Roots, rootPort func(name string) (string, error)) (*names, error) {
	n := &names{address: map[string]string{}}
	bus := map[string]string{} // below a port
	for _, d := range Topology {
		if d.Under == "" {
			addr, err := rootPort(d.Name)
			if err != nil {
				return nil, fmt.Errorf("address of %s: %w", d.Name, err)
			}
			n.address[d.Name] = addr
		} else {
			n.address[d.Name] = fmt.Sprintf("%s:%02x.0", bus[d.Under], d.Number)
		}
		if !slices.ContainsFunc(Topology, func(below Device) bool { return below.Under == d.Name }) {
			continue
		}
		below, err := busBelow(roots.device(n.address[d.Name]))
		if err != nil {
			return nil, fmt.Errorf("bus below %s: %w", d.Name, err)
		}
		bus[d.Name] = below
	}
	var to, from []string
	for _, d := range Topology {
		to = append(to, n.address[d.Name], d.Name)
		from = append(from, "{"+d.Name+"}", n.address[d.Name])
	}
	for _, d := range Topology { // a root complex may be each port's own
		if d.Under == "" {
			to = append(to, "pci"+n.address[d.Name][:len("0000:00")], "pci")
		}
	}
	for port, b := range bus {
		to = append(to, b+":00", port+">:00", "pci_bus/"+b, "pci_bus/"+port+">")
	}
	n.to, n.from = strings.NewReplacer(to...), strings.NewReplacer(from...)
	return n, nil
}

// busBelow is the bus that the bridge of a folder leads to, as "0000:05": its secondary bus number (PCI-to-PCI Bridge Architecture
// Specification, 3.2.5.3).
func busBelow(dir string) (string, error) {
	f, err := os.Open(filepath.Join(dir, "config"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	var p [1]byte
	if _, err := f.ReadAt(p[:], 0x19); err != nil {
		return "", err
	}
	if p[0] == 0 {
		return "", errors.New("it is 0")
	}
	return fmt.Sprintf("%s:%02x", filepath.Base(dir)[:4], p[0]), nil
}

// What a boot has of its own: numbers of interrupts, and how long ago something was.
var irq, ago = regexp.MustCompile(`\bIRQ \d+`), regexp.MustCompile(`\bissued \d+ msec`)

// normal is a text with names for addresses, and without numbers of interrupts.
func (n *names) normal(s string) string {
	return ago.ReplaceAllString(irq.ReplaceAllString(n.to.Replace(s), "IRQ N"), "issued N msec")
}

// has tells whether a text has an address of the topology in it.
func (n *names) has(s string) bool { return n.to.Replace(s) != s }

// expand puts addresses into a text.
func (n *names) expand(s string) string { return n.from.Replace(s) }

// name is the name of the device at an address; "" if it is none of the topology's.
func (n *names) name(addr string) string {
	for name, a := range n.address {
		if a == addr {
			return name
		}
	}
	return ""
}
