package fabric

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Topology is what a fabric is made of.
type Topology struct {
	IDs       rapidio.IDSize // 0: Small
	Switches  []Switch
	Endpoints []Endpoint
	Links     []Link
}

// Kinds of switches.
const (
	Standard = "standard" // one table for all ports, behind the standard route registers
	Tsi500   = "tsi500"   // 4 ports, 8-bit IDs, a table of 4-bit ports for each port
)

// Switch is a switch of a Topology.
type Switch struct {
	Name  string
	Ports int
	Kind  string // "": Standard
}

// Endpoint is an endpoint of a Topology.
type Endpoint struct {
	Name        string
	NoMailboxes bool // it sends and takes no messages
	NoSerial    bool // it has no LP-serial block, as early ones
}

// Link is a link of a Topology. An end is an endpoint's name, or a switch's and a port: "sw0:3".
type Link struct {
	Ends  [2]string
	Width int           // lanes: 1, 2, 4, 8 or 16; 0: 1
	Rate  int64         // bits a second; 0: no limit
	Delay time.Duration // of each packet
	Loss  float64       // of the packets, 0 to 1
	// Trust says that the nodes at both ends, which are endpoints, may share memory. Such a link takes no port and carries nothing
	// in this model: whoever runs the fabric makes it.
	Trust bool
}

// Limits of a topology.
const (
	MaxEndpoints = 65534
	MaxSwitches  = 1024
	maxName      = 32
	maxRate      = 100_000_000_000_000
	minRate      = 1000
	maxDelay     = 10 * time.Second
)

// Trusts are the trust links, each as the indices of its endpoints, the lower one first.
func (t *Topology) Trusts() [][2]int {
	index := make(map[string]int, len(t.Endpoints))
	for i, e := range t.Endpoints {
		index[e.Name] = i
	}
	var out [][2]int
	for _, l := range t.Links {
		if l.Trust {
			a, b := index[l.Ends[0]], index[l.Ends[1]]
			out = append(out, [2]int{min(a, b), max(a, b)})
		}
	}
	return out
}

// list names a list of a Topology.
type list int

const (
	listNone list = iota
	listSwitches
	listEndpoints
	listLinks
)

// fault is why a Topology is none, and where.
type fault struct {
	list  list
	index int
	msg   string
}

func (f *fault) Error() string {
	switch f.list {
	case listSwitches:
		return fmt.Sprintf("switch %d: %s", f.index, f.msg)
	case listEndpoints:
		return fmt.Sprintf("endpoint %d: %s", f.index, f.msg)
	case listLinks:
		return fmt.Sprintf("link %d: %s", f.index, f.msg)
	}
	return f.msg
}

// Check tells what is wrong with a topology that Parse did not make.
func (t *Topology) Check() error {
	if f := t.check(); f != nil {
		return fmt.Errorf("topology: %w", f)
	}
	return nil
}

func (t *Topology) check() *fault {
	if t.IDs != 0 && t.IDs != rapidio.Small && t.IDs != rapidio.Large {
		return &fault{msg: fmt.Sprintf("ids: %d; 8 or 16 are", int(t.IDs))}
	}
	most := MaxEndpoints
	if t.IDs != rapidio.Large {
		most = 0xff
	}
	if len(t.Endpoints) == 0 {
		return &fault{msg: "no endpoints"}
	}
	if n := len(t.Endpoints); n > most {
		return &fault{list: listEndpoints, index: most, msg: fmt.Sprintf("%d endpoints; %s are enough for %d", n, t.idSize(), most)}
	}
	if n := len(t.Switches); n > MaxSwitches {
		return &fault{list: listSwitches, index: MaxSwitches, msg: fmt.Sprintf("%d switches; %d are possible", n, MaxSwitches)}
	}
	names := make(map[string]int) // ports of a switch, 0 for an endpoint
	for i, s := range t.Switches {
		if msg := t.checkSwitch(s, names); msg != "" {
			return &fault{listSwitches, i, msg}
		}
		names[s.Name] = s.Ports
	}
	for i, e := range t.Endpoints {
		if msg := checkName(e.Name, names); msg != "" {
			return &fault{listEndpoints, i, msg}
		}
		names[e.Name] = 0
	}
	used := make(map[string]bool)
	for i, l := range t.Links {
		if msg := checkLink(l, names, used); msg != "" {
			return &fault{listLinks, i, msg}
		}
	}
	return nil
}

func (t *Topology) idSize() rapidio.IDSize {
	if t.IDs == 0 {
		return rapidio.Small
	}
	return t.IDs
}

func (t *Topology) checkSwitch(s Switch, names map[string]int) string {
	if msg := checkName(s.Name, names); msg != "" {
		return msg
	}
	most := rapidio.MaxPorts
	switch s.Kind {
	case "", Standard:
	case Tsi500:
		most = tsiPorts
		if t.IDs == rapidio.Large {
			return fmt.Sprintf("switch %s: kind %s routes 8-bit IDs only", s.Name, Tsi500)
		}
	default:
		return fmt.Sprintf("switch %s: kind %q; %s and %s are known", s.Name, clip(s.Kind), Standard, Tsi500)
	}
	if s.Ports < 1 || s.Ports > most {
		return fmt.Sprintf("switch %s: %d ports; 1 to %d are possible", s.Name, s.Ports, most)
	}
	return ""
}

// checkName accepts what may also be the name of a file and of a member of a command line.
func checkName(name string, names map[string]int) string {
	if name == "" {
		return "no name"
	}
	if len(name) > maxName {
		return fmt.Sprintf("name %.40q: longer than %d characters", name, maxName)
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
		if !letter && (i == 0 || c != '-' && c != '.') {
			return fmt.Sprintf("name %q: letters, digits, _, and then - and . make a name", name)
		}
	}
	if _, ok := names[name]; ok {
		return fmt.Sprintf("name %s: given twice", name)
	}
	return ""
}

func checkLink(l Link, names map[string]int, used map[string]bool) string {
	if msg := checkNumbers(l); msg != "" {
		return msg
	}
	if l.Ends[0] == l.Ends[1] {
		return fmt.Sprintf("%s is linked to itself", clip(l.Ends[0]))
	}
	for _, end := range l.Ends {
		name, _, isSwitch := strings.Cut(end, ":")
		ports, ok := names[name]
		_, n, valid := splitEnd(end)
		switch {
		case !ok:
			return fmt.Sprintf("end %q: no endpoint or switch has this name", clip(end))
		case isSwitch && ports == 0:
			return fmt.Sprintf("end %q: %s is an endpoint, which has one port without a number", end, name)
		case !isSwitch && ports != 0:
			return fmt.Sprintf("end %q: %s is a switch; which port, as in \"%s:0\"?", end, name, name)
		case isSwitch && (!valid || n >= ports):
			return fmt.Sprintf("end %q: switch %s has ports 0 to %d", end, name, ports-1)
		case l.Trust && isSwitch:
			return fmt.Sprintf("end %q: only endpoints trust each other", end)
		case l.Trust:
		case used[end] && isSwitch:
			return fmt.Sprintf("end %q: this port has a link already", end)
		case used[end]:
			return fmt.Sprintf("end %q: this endpoint has a link already", end)
		default:
			used[end] = true
		}
	}
	if l.Trust {
		pair := "trust " + min(l.Ends[0], l.Ends[1]) + " " + max(l.Ends[0], l.Ends[1])
		if used[pair] {
			return fmt.Sprintf("%s and %s trust each other already", l.Ends[0], l.Ends[1])
		}
		used[pair] = true
	}
	return ""
}

func checkNumbers(l Link) string {
	switch l.Width {
	case 0, 1, 2, 4, 8, 16:
	default:
		return fmt.Sprintf("width: %d; 1, 2, 4, 8 or 16 lanes make a link", l.Width)
	}
	if l.Rate != 0 && (l.Rate < minRate || l.Rate > maxRate) {
		return fmt.Sprintf("rate: %d bits a second; 1k to 100T are possible", l.Rate)
	}
	if l.Delay < 0 || l.Delay > maxDelay {
		return fmt.Sprintf("delay: %v; 0 to %v are possible", l.Delay, maxDelay)
	}
	if !(l.Loss >= 0 && l.Loss <= 1) {
		return fmt.Sprintf("loss: %v; 0 to 1 are possible", l.Loss)
	}
	if l.Trust && (l.Width != 0 || l.Rate != 0 || l.Delay != 0 || l.Loss != 0) {
		return "a trust link is shared memory: it has no width, rate, delay or loss"
	}
	return ""
}

// splitEnd takes an end apart; the port of an endpoint is 0.
func splitEnd(end string) (name string, port int, ok bool) {
	name, num, isSwitch := strings.Cut(end, ":")
	if !isSwitch {
		return name, 0, true
	}
	n, err := strconv.ParseUint(num, 10, 16)
	// One way to write each port: a link's end is also its name.
	return name, int(n), err == nil && strconv.FormatUint(n, 10) == num
}
