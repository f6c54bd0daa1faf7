package portseen

import (
	"slices"
	"strings"
	"time"
)

// Device is a part of the topology.
type Device struct {
	Name, Model string
	Under       string // the port above it; "": the root complex
	Number      int    // its device number on that bus
	Slot        int    // of a port with a slot: the slot's number
	Later       bool   // it is plugged by an event
}

// Topology is what the scenario is played to, ports before what is below them.
var Topology = []Device{
	{Name: "rp0", Model: "pcie-root-port", Number: 4, Slot: 1},
	{Name: "rp1", Model: "pcie-root-port", Number: 5, Slot: 2},
	{Name: "rp2", Model: "pcie-root-port", Number: 6, Slot: 3},
	{Name: "rp3", Model: "pcie-root-port", Number: 7, Slot: 4},
	{Name: "eth0", Model: "e1000e", Under: "rp0"},
	{Name: "eth2", Model: "e1000e", Under: "rp1", Later: true},
	{Name: "sw0", Model: "x3130-upstream", Under: "rp2"},
	{Name: "dn0", Model: "xio3130-downstream", Under: "sw0", Number: 0, Slot: 5},
	{Name: "dn1", Model: "xio3130-downstream", Under: "sw0", Number: 1, Slot: 6},
	{Name: "eth1", Model: "e1000e", Under: "dn0"},
	{Name: "eth3", Model: "e1000e", Under: "dn1", Later: true},
	// No driver has it: what reports errors and cannot recover.
	{Name: "vn0", Model: "virtio-net-pci,aer=on,disable-legacy=on", Under: "rp3"},
}

// Event is a step of the scenario.
type Event struct {
	Name string
	Do   []Action
	// Until is what must have come before the event can be over: "log TEXT" a line of the log with that text since the event
	// began, "there NAME" or "gone NAME" a device in /sys/bus/pci/devices, "bound NAME" one with a driver. Names of several
	// may be given.
	Until []string
}

// between is how far apart two looks at the files must be that find the same: a slot that is switched off waits for a second, and nothing
// is said meanwhile, until its card is ejected.
func (e *Event) between() time.Duration {
	if slices.ContainsFunc(e.Until, func(s string) bool { return strings.HasPrefix(s, "gone ") }) {
		return 1200 * time.Millisecond
	}
	return 0
}

// Quiet is how long nothing may change before an event is over, and Limit how long an event may take.
const (
	Quiet = 500 * time.Millisecond
	Limit = 40 * time.Second
)

// What is written to.
const (
	slot2    = "bus/pci/slots/2/"
	pciehp   = "bus/pci_express/drivers/pciehp/"
	aer      = "bus/pci_express/drivers/aer/"
	recovery = "log device recovery "
)

// Scenario are the events, 30 of them. Three unplugs are by the button, the last two at once: it takes 5 s each time.
var Scenario = []Event{
	{"plug", []Action{Plug{"eth2", "rp1"}}, []string{"bound eth2"}},
	{"attention on, then blinking", []Action{Write{slot2 + "attention", "1\n"}, Write{slot2 + "attention", "2\n"}}, nil},
	{"attention off, by words too", []Action{Write{slot2 + "attention", "x\n"}, Write{slot2 + "attention", "7\n"}, Write{slot2 + "attention", "0\n"}}, nil},
	{"power on when on", []Action{Write{slot2 + "power", "1\n"}}, nil},
	{"illegal power", []Action{Write{slot2 + "power", "7\n"}, Write{slot2 + "power", "99999999999\n"}}, nil},
	{"power off by file", []Action{Write{slot2 + "power", "0\n"}}, []string{"gone eth2"}},
	{"power off when off", []Action{Write{slot2 + "power", "0\n"}, Write{slot2 + "power", "x\n"}, Write{slot2 + "power", "256\n"}}, nil},
	{"power on with nothing there", []Action{Write{slot2 + "power", "1\n"}}, nil},
	// Without interrupts of the slot nobody notices what is plugged, until the power file is written. They come back when the service is bound anew.
	{"power on by file", []Action{Config{"rp1", SlotControl, slotHPIE, 0}, Plug{"eth2", "rp1"}, Write{slot2 + "power", "1\n"}, ClearSlot{"rp1"}}, []string{"bound eth2"}},
	{"hot-plug service unbound", []Action{Write{pciehp + "unbind", "{rp1}:pcie004\n"}, Write{pciehp + "unbind", "{rp1}:pcie004\n"}}, nil},
	{"bound, with a card there", []Action{Write{pciehp + "bind", "{rp1}:pcie002\n"}, Write{pciehp + "bind", "{rp1}:pcie004\n"}, Write{pciehp + "bind", "{rp1}:pcie004\n"}}, []string{"log Slot #2"}},
	{"unplug by button", []Action{Unplug{"eth2"}}, []string{"gone eth2", "unplugged eth2"}},
	{"plug while unbound", []Action{Write{pciehp + "unbind", "{rp1}:pcie004\n"}, Plug{"eth2", "rp1"}, Write{pciehp + "bind", "{rp1}:pcie004\n"}}, []string{"bound eth2"}},
	{"plug below a switch", []Action{Plug{"eth3", "dn1"}}, []string{"bound eth3"}},
	{"remove", []Action{Write{"bus/pci/devices/{eth2}/remove", "x\n"}, Write{"bus/pci/devices/{eth2}/remove", "0\n"}, Write{"bus/pci/devices/{eth2}/remove", "1\n"}}, []string{"gone eth2"}},
	{"rescan", []Action{Write{"bus/pci/rescan", "x\n"}, Write{"bus/pci/rescan", "1\n"}}, []string{"bound eth2"}},
	{"non-fatal at a root port", []Action{Inject{"rp0", "COMP_TIME", nil}}, []string{recovery}},
	{"fatal at a root port", []Action{Inject{"rp0", "DLP", nil}}, []string{recovery}},
	{"fatal at a downstream port", []Action{Inject{"dn0", "MALF_TLP", []uint32{0x11, 0x22, 0x33, 0x44}}}, []string{recovery}},
	{"severity changed", []Action{Config{"rp1", AERSeverity, 1 << 14, 1 << 14}, Inject{"rp1", "COMP_TIME", nil}}, []string{recovery}},
	{"severity changed back, another bit", []Action{Config{"rp1", AERSeverity, 1<<14 | 1<<18, 0}, Inject{"rp1", "MALF_TLP", []uint32{1, 2, 3, 4}}}, []string{recovery}},
	{"non-fatal, no driver", []Action{Inject{"vn0", "UNSUP", []uint32{1, 2, 3, 4}}}, []string{recovery}},
	{"fatal, no driver", []Action{Inject{"vn0", "MALF_TLP", []uint32{5, 6, 7, 8}}}, []string{recovery}},
	{"correctable by record", []Action{Record{Device: "eth0", Cor: 0x40}}, []string{"log BadTLP"}},
	{"two correctable by record", []Action{Record{Device: "rp0", Cor: 0x1001}}, []string{"log Timeout"}},
	{"non-fatal by record", []Action{Record{Device: "eth0", Uncor: 0x1000, Header: [4]uint32{0x11, 0x22, 0x33, 0x44}}}, []string{recovery}},
	{"fatal and correctable by record", []Action{Record{Device: "eth1", Uncor: 0x40000, Cor: 0x40}}, []string{recovery}},
	{"correctable masked, then not", []Action{Record{Device: "rp0", Cor: 0x2000}, Config{"rp0", AERCorMask, 0x2000, 0}, Record{Device: "rp0", Cor: 0x2000}}, []string{"log NonFatalErr"}},
	{"error service unbound and bound", []Action{Write{aer + "unbind", "{rp0}:pcie002\n"}, Record{Device: "rp0", Cor: 0x40}, Write{aer + "bind", "{rp0}:pcie002\n"}}, []string{"log AER: enabled"}},
	{"unplug two by button at once", []Action{Unplug{"eth2"}, Pause{1500 * time.Millisecond}, Unplug{"eth3"}}, []string{"gone eth2", "gone eth3", "unplugged eth2", "unplugged eth3"}},
}
