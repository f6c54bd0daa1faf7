package sim

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/ring3dev/ring3/bus/pci"
)

// Config says what machine to start.
type Config struct {
	Devices []DeviceSpec // at least one
	Wires   [][2]string  // pairs of network device names that are connected
	Domain  uint32       // PCI domain of the machine's functions; 0 means DefaultDomain
	Clock   Clock        // how time passes; RealTime if nothing is said
	Log     *slog.Logger // nil discards
	// Reserve is what ports with hot-plug keep for what is plugged in later.
	Reserve pci.Reserve
	// Ejected, if it is not nil, is told the name of each card that left its slot because software let go of it. It is called by whoever
	// made the access, who may hold locks of his own: it must not wait for anybody.
	Ejected func(name string)
}

// DefaultDomain is the PCI domain of a machine that is given none. Real machines rarely
// use any but 0, so its functions do not meet the machine's own.
const DefaultDomain = 0x1000

// DeviceSpec is one device of the machine.
type DeviceSpec struct {
	Name  string   // what the user calls it: letters, digits, '-', '_', '.'
	Model string   // one of Models: "e1000e"
	Bus   string   // name of the port it stands under, which is named before it; "" is the root bus
	Props []string // properties of the model, "key=value"
	// Capture, if it is not nil, is shown every frame on the device's side of its wire, sent or
	// received. It is called under the machine's lock, and neither keeps nor changes the frame.
	Capture func(frame []byte)
	// Number, of a platform device, is the least that it has in its address: others of its kind may be in other machines.
	Number int
	// TPM, if it is not nil, is what stands behind a TPM's registers instead of the built-in one.
	TPM TPM
}

// model is a device model. Those that there are stand in models.
type model struct {
	name    string
	aliases []string
	about   string // one line: what it is
	net     bool   // the chip is a netChip
	port    bool   // the chip is a port: others may stand under it
	// platform: no PCI function, and takes no slot; its header says what firmware calls it.
	platform bool
	tpm      bool              // has a TPM behind its registers
	props    map[string]string // the properties that it has, a line each
	make     func(s slot, o options) (chip, header, error)
}

// options is what a model is made with. An error about a property begins with its name.
type options struct {
	index int               // of the device in the machine, from 0
	nth   int               // of the platform devices in the machine, from 0
	tpm   TPM               // nil: the built-in one
	props map[string]string // only those that the model has
}

// Model describes a device model.
type Model struct {
	Name    string
	Aliases []string
	About   string // one line
	Network bool   // it can be wired
	Port    bool   // others may stand under it
	// Platform says that it is no PCI function (bus.Platform).
	Platform bool
	Props    map[string]string
}

// Models lists the device models that there are.
func Models() []Model {
	var out []Model
	for _, m := range models() {
		out = append(out, Model{Name: m.name, Aliases: slices.Clone(m.aliases), About: m.about, Network: m.net, Port: m.port, Platform: m.platform, Props: maps.Clone(m.props)})
	}
	return out
}

func modelOf(name string) *model {
	for _, m := range models() {
		if m.name == name || slices.Contains(m.aliases, name) {
			return m
		}
	}
	return nil
}

// IsNetwork says whether a model is a network adapter that can be wired.
func IsNetwork(name string) bool {
	m := modelOf(name)
	return m != nil && m.net
}

// HasSlot says whether a model is a port with a slot, whose number is its property slot.
func HasSlot(name string) bool {
	m := modelOf(name)
	return m != nil && m.props["slot"] != ""
}

// Slots of the root bus, the same that package qemu gives: 0 is a host bridge.
const (
	firstSlot = 3
	lastSlot  = 23
)

// maxPlatform is how many platform devices one machine has: what fits where they stand.
const maxPlatform = 8

func validName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for _, c := range s {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.", c)) {
			return false
		}
	}
	return true
}

func (c *Config) check() error {
	if err := c.checkCount(); err != nil {
		return err
	}
	if c.Clock > Eager {
		return fmt.Errorf("sim: clock %d: want RealTime, Stepped or Eager", c.Clock)
	}
	seen := map[string]*DeviceSpec{}
	for i := range c.Devices {
		d := &c.Devices[i]
		if err := d.check(); err != nil {
			return err
		}
		if seen[d.Name] != nil {
			return fmt.Errorf("sim: two devices are named %s", d.Name)
		}
		if err := c.checkPlace(d, i, seen); err != nil {
			return err
		}
		seen[d.Name] = d
	}
	return c.checkWires(seen)
}

// check is about the device alone.
func (d *DeviceSpec) check() error {
	switch {
	case !validName(d.Name):
		return fmt.Errorf("sim: device name %q: want letters, digits, '-', '_' or '.'", d.Name)
	case modelOf(d.Model) == nil:
		return fmt.Errorf("sim: %s: no model is named %q: there are %s", d.Name, d.Model, strings.Join(modelNames(), ", "))
	}
	if _, err := d.props(); err != nil {
		return err
	}
	if d.Capture != nil && !IsNetwork(d.Model) {
		return fmt.Errorf("sim: %s: model %s is no network adapter, so there is nothing to capture", d.Name, d.Model)
	}
	if d.TPM != nil && !modelOf(d.Model).tpm {
		return fmt.Errorf("sim: %s: model %s has no TPM that another could stand for", d.Name, d.Model)
	}
	return d.checkKind(nil)
}

// checkKind checks what a port may stand under, where that is known: nil is not yet.
func (d *DeviceSpec) checkKind(above *model) error {
	m := modelOf(d.Model)
	switch {
	case m.platform && d.Bus != "":
		return fmt.Errorf("sim: %s: model %s is a platform device, and stands under no port", d.Name, d.Model)
	case (m == &upstreamModel || m == &downstreamModel) && d.Bus == "":
		return fmt.Errorf("sim: %s: model %s is part of a switch: an upstream port stands under a root port or downstream port, and downstream ports under it", d.Name, d.Model)
	case above == nil:
	case (m == &downstreamModel) != (above == &upstreamModel):
		return fmt.Errorf("sim: %s: model %s cannot stand under %s (%s): under an upstream port stand downstream ports, and only there", d.Name, d.Model, d.Bus, above.name)
	case m == &rootPortModel || m == &ioh3420Model:
		return fmt.Errorf("sim: %s: model %s stands on the root bus only", d.Name, d.Model)
	}
	return nil
}

// maxDownstream is how many ports a switch has: device numbers.
const maxDownstream = 32

// checkPlace checks that there is a port that the device, which is the one of number i, can stand under.
func (c *Config) checkPlace(d *DeviceSpec, i int, seen map[string]*DeviceSpec) error {
	if d.Bus == "" {
		return nil
	}
	up := seen[d.Bus]
	if up == nil || !IsPort(up.Model) {
		return fmt.Errorf("sim: %s stands under %s, which is not a port named before it", d.Name, d.Bus)
	}
	if err := d.checkKind(modelOf(up.Model)); err != nil {
		return err
	}
	n, most := 0, 1
	for _, x := range c.Devices[:i] {
		if x.Bus == d.Bus {
			n++
		}
	}
	if modelOf(up.Model) == &upstreamModel {
		most = maxDownstream
	}
	if n >= most {
		return fmt.Errorf("sim: %s stands under %s, where there is room for %d", d.Name, d.Bus, most)
	}
	return nil
}

// IsPort says whether a model is a port, under which others may stand.
func IsPort(name string) bool {
	m := modelOf(name)
	return m != nil && m.port
}

// checkCount checks that all devices have a place.
func (c *Config) checkCount() error {
	platform, roots := 0, 0
	for _, d := range c.Devices {
		if m := modelOf(d.Model); m != nil && m.platform {
			platform++
		} else if d.Bus == "" {
			roots++
		}
	}
	if n := lastSlot - firstSlot + 1; len(c.Devices) == 0 || roots > n {
		return fmt.Errorf("sim: %d devices: want 1 to %d", roots, n)
	}
	if platform > maxPlatform {
		return fmt.Errorf("sim: %d platform devices: want at most %d", platform, maxPlatform)
	}
	return nil
}

func (c *Config) checkWires(seen map[string]*DeviceSpec) error {
	wired := map[string]string{}
	for _, w := range c.Wires {
		for i, name := range w {
			d := seen[name]
			switch {
			case d == nil:
				return fmt.Errorf("sim: wire %s-%s: no device is named %s", w[0], w[1], name)
			case modelOf(d.Model) == &nullModel:
				return fmt.Errorf("sim: wire %s-%s: %s (%s) swallows what it sends, so it has no wire", w[0], w[1], name, d.Model)
			case !IsNetwork(d.Model):
				return fmt.Errorf("sim: wire %s-%s: %s (%s) is no network adapter", w[0], w[1], name, d.Model)
			case wired[name] != "":
				return fmt.Errorf("sim: wire %s-%s: %s is wired to %s already", w[0], w[1], name, wired[name])
			}
			wired[name] = w[1-i]
		}
		if w[0] == w[1] {
			return fmt.Errorf("sim: wire %s-%s: both ends are the same device", w[0], w[1])
		}
	}
	return nil
}

func modelNames() (names []string) {
	for _, m := range models() {
		names = append(names, m.name)
	}
	return names
}

// props takes the properties apart.
func (d *DeviceSpec) props() (map[string]string, error) {
	m := modelOf(d.Model)
	out := map[string]string{}
	for _, p := range d.Props {
		k, v, ok := strings.Cut(p, "=")
		if !ok || !validName(k) {
			return nil, fmt.Errorf("sim: %s: property %q: want key=value", d.Name, p)
		}
		if _, ok := m.props[k]; !ok {
			return nil, fmt.Errorf("sim: %s: model %s has no property %q: %s", d.Name, d.Model, k, m.propList())
		}
		if _, ok := out[k]; ok {
			return nil, fmt.Errorf("sim: %s: property %q is given twice", d.Name, k)
		}
		out[k] = v
	}
	return out, nil
}

func (m *model) propList() string {
	if len(m.props) == 0 {
		return "it has none"
	}
	return "it has " + strings.Join(slices.Sorted(maps.Keys(m.props)), ", ")
}
