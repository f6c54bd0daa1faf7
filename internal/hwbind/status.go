package hwbind

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/syspci"
)

// Status is a function of the machine as user space may or may not have it.
type Status struct {
	Address string   `json:"address"`
	ID      string   `json:"id"`    // vendor:device
	Class   string   `json:"class"` // six hexadecimal digits
	Kind    string   `json:"kind"`  // what that is: "Ethernet controller"
	Name    string   `json:"name"`  // vendor and device
	Driver  string   `json:"driver"`
	Bridge  bool     `json:"bridge,omitempty"`
	Group   int      `json:"group"`            // IOMMU group, -1 for none
	Members []string `json:"members"`          // of the group, itself among them
	Nodes   []string `json:"nodes"`            // that open it
	Owners  []string `json:"owners,omitempty"` // who may open the nodes, besides root
	Usable  bool     `json:"usable"`           // by this process's user, now
	Uses    []string `json:"uses,omitempty"`   // what uses it
	Why     string   `json:"why,omitempty"`    // why not, and what to do

	f *syspci.Function
}

// Status describes functions of the machine, in the order of their addresses: all, or those that
// are with a driver for user space.
func (m *Machine) Status(all bool) ([]Status, error) {
	list, err := m.Sys.Functions()
	if err != nil {
		return nil, err
	}
	out := []Status{}
	for _, f := range list {
		if !all && !slices.Contains(Drivers(), f.Driver) {
			continue
		}
		s := Status{Address: f.Addr.String(), ID: f.ID.String(), Class: fmt.Sprintf("%06x", f.ID.Class), Driver: f.Driver, Bridge: f.Bridge,
			Group: f.Group, Members: []string{f.Addr.String()}, Nodes: m.Nodes(f), Uses: m.Uses(f), f: f}
		s.Kind, s.Name = Names(f.ID)
		g, err := m.group(f)
		if err == nil && g != nil {
			s.Members = nil
			for _, o := range g.Members {
				s.Members = append(s.Members, o.Addr.String())
			}
		}
		if s.Nodes == nil {
			s.Nodes = []string{}
		}
		m.judge(&s, g)
		out = append(out, s)
	}
	return out, nil
}

// judge says who may open a function, whether we may, and why not.
func (m *Machine) judge(s *Status, g *Group) {
	for _, n := range s.Nodes {
		if uid := m.Ops.OwnerOf(n); uid != 0 {
			s.Owners = append(s.Owners, userName(uid))
		}
	}
	a := s.Address
	switch {
	case s.Driver != VFIO && s.Driver != UIO:
		s.Why = m.whyNotBound(s, g)
	case len(s.Nodes) == 0:
		s.Why = "it has no device node in " + m.Dev
	case s.Driver == UIO:
		// All of config space is root's, whoever owns the node.
		if s.Usable = os.Geteuid() == 0; !s.Usable {
			s.Why = fmt.Sprintf("UIO's config space is root's: sudo ring3 up --as %s NAME=uio:%s", userName(os.Geteuid()), a)
		}
	case g != nil && len(g.holders()) > 0:
		s.Why = fmt.Sprintf("IOMMU group %d also holds %s: sudo ring3 bind %s --driver %s", g.ID, g.holders()[0], g.holders()[0].Addr, VFIO)
	case m.isNoIOMMU(s.f):
		if s.Usable = os.Geteuid() == 0; !s.Usable {
			s.Why = "without an IOMMU it is root's"
		}
	default:
		for _, n := range s.Nodes {
			s.Usable = s.Usable || unix.Access(n, unix.R_OK|unix.W_OK) == nil
		}
		if !s.Usable {
			s.Why = fmt.Sprintf("no permission on %s: sudo ring3 bind %s --driver %s --owner %s", s.Nodes[0], a, VFIO, userName(os.Geteuid()))
		}
	}
}

// whyNotBound says what stands between a function and a driver in user space.
func (m *Machine) whyNotBound(s *Status, g *Group) string {
	has := "no driver has it"
	if s.Driver != "" {
		has = "driver " + s.Driver + " has it"
	}
	switch {
	case len(s.Uses) > 0:
		return has + ", and " + strings.Join(s.Uses, "; ")
	case s.Bridge:
		return fmt.Sprintf("%s: sudo ring3 bind %s --driver %s", has, s.Address, UIO)
	case g == nil && !m.noIOMMU():
		return fmt.Sprintf("%s, and no IOMMU: sudo ring3 bind %s --driver %s", has, s.Address, UIO)
	}
	all := s.Address
	if g != nil {
		for _, h := range g.holders() {
			if h.Addr.String() != s.Address {
				all += " " + h.Addr.String()
			}
		}
	}
	return fmt.Sprintf("%s: sudo ring3 bind %s --driver %s --owner %s", has, all, VFIO, userName(os.Geteuid()))
}
