// Package profile says whose strings are followed. What a program reads back (file contents,
// result texts, error numbers) is interface, and differs a little from kernel to kernel. A
// profile is one kernel, and the table here is all that differs between those that ring3 knows.
//
// A row is a field of [Profile] or [Pktgen]; its comment tells what the kernels do and since when.
// The facts are those of the kernels' sources: mainline's for 6.12 and 6.15, and for 6.1 the stable branch as
// Debian 12 ships it (6.1.192), which has some later repairs of pktgen and lacks others.
//
// Two differences are followed by no profile. Kernels before 6.15 answer what pktgen cannot do with
// ENOTSUPP (524), which the FUSE protocol cannot carry: it is EOPNOTSUPP here. And kernel 6.1 takes
// numbers too large for napi_defer_hard_irqs and shows them as negative ones: they give ERANGE here.
package profile

import (
	"fmt"
	"strings"
)

// Default is the profile that is followed where nobody asks for another.
const Default = "6.12"

// Profile is one kernel.
type Profile struct {
	Name   string // as --profile takes it: "6.12"
	pktgen string // whose pktgen it has, where that is another kernel's

	// MSIPerDevice: /proc/interrupts names the controller of a message by its device, and gives it the
	// vector's own number, "PCI-MSIX-1000:00:03.0   1-edge". Before 6.2 all devices have
	// "PCI-MSI", and the number holds domain, function and vector: see HWIRQ.
	MSIPerDevice bool

	Pktgen Pktgen
	Ports  Ports
}

// Ports is what differs in what PCI Express ports say and show.
type Ports struct {
	// Corrected and Uncorrected are how messages call the two kinds of errors: "Correctable", "Uncorrectable" (since 6.12; "Corrected" and
	// "Uncorrected" before).
	Corrected, Uncorrected string
	// AEREverywhere: every port with the capability offers the service, not root ports and event collectors alone (before 6.2).
	AEREverywhere bool
	// RecoveryPrefix begins messages about recovery: "AER: ".
	RecoveryPrefix string
	// Bandwidth: the service of bandwidth notification has a driver (since 6.13; 6.12 has it here too, since it does no harm).
	Bandwidth bool
	// ButtonPress: an attention button's message says what follows, "Button press: will power off in 5 sec"; before, it is two
	// messages.
	ButtonPress bool
	// DPCOneLine: a containment event is one message, which names a source only where there is one; before, it is two, the first of which
	// has both registers. Mainline's since 6.16: the profile 6.12 is ahead of its kernel here, as it is in pktgen.
	DPCOneLine bool
	// SurpriseDown: that a card was pulled out of a hot-plug slot is no error for containment (since 6.9).
	SurpriseDown bool
}

// Pktgen is what differs in /proc/net/pktgen.
type Pktgen struct {
	// Strict: what is better here than in all kernels is as it is there. The packets of a burst are
	// copies of one, also without clone_skb. A run sends whole bursts, though they are more than count. Of several devices
	// of a thread the one is served whose packet is due first, which without delay means one after the other; and a
	// device's very first packet is not one that delay counts. src_mac_count without src_mac keeps only the first byte
	// of the interface's address. imix_weights and mpls that fail leave what they read until then. There are no files
	// NAME.rx, which a script that takes all of eth0* would read.
	Strict bool
	// Shared: there is the flag SHARED (0x40000), which is on at first (since 6.7). Without
	// it every device behaves as if it were on.
	Shared bool
	// Flags is the list in the result of an unknown flag. Empty: all names in the order of
	// their bits (since 6.7).
	Flags string
	// Assign: '=' ends a name or a word, so that "count=5" is a command (since 6.15). Before, it only
	// may stand beside the blank between them.
	Assign bool
	// LastByte: pgctrl takes a write for what it is without its last byte, whatever that is, so
	// that "stop" needs its newline (before 6.15).
	LastByte bool
	// ShortRate: "rate 0" and "ratep 0" change nothing and tell the writer that only the digits
	// were taken (before 6.15); since then they give EINVAL.
	ShortRate bool
	// ShortHex: a label of less than eight digits is sixteen times what they say (before 6.15).
	ShortHex bool
	// ZeroLabel: "mpls 0" is a label, and mpls without a value switches labels off (before 6.15). Since
	// then 0 switches them off, and without a value it gives EINVAL.
	ZeroLabel bool
}

// table is the profiles, the default one first.
var table = []*Profile{
	{
		Name: Default, pktgen: "6.15",
		MSIPerDevice: true,
		Pktgen:       Pktgen{Shared: true, Assign: true},
		Ports:        Ports{Corrected: "Correctable", Uncorrected: "Uncorrectable", RecoveryPrefix: "AER: ", Bandwidth: true, ButtonPress: true, DPCOneLine: true, SurpriseDown: true},
	},
	{
		Name: "6.1",
		Pktgen: Pktgen{
			Flags: "IPSRC_RND, IPDST_RND, UDPSRC_RND, UDPDST_RND, MACSRC_RND, MACDST_RND, TXSIZE_RND, IPV6, " +
				"MPLS_RND, VID_RND, SVID_RND, FLOW_SEQ, QUEUE_MAP_RND, QUEUE_MAP_CPU, UDPCSUM, NO_TIMESTAMP, IPSEC, NODE_ALLOC\n",
			Strict: true, LastByte: true, ShortRate: true, ShortHex: true, ZeroLabel: true,
		},
		Ports: Ports{Corrected: "Corrected", Uncorrected: "Uncorrected", AEREverywhere: true, RecoveryPrefix: "AER: "},
	},
}

// Find is the profile of that name; "" means the default one. The error lists the names there are.
func Find(name string) (*Profile, error) {
	if name == "" {
		name = Default
	}
	for _, p := range table {
		if p.Name == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("profile %q: there are %s", name, strings.Join(Names(), ", "))
}

// Names lists the profiles, the default one first.
func Names() []string {
	var names []string
	for _, p := range table {
		names = append(names, p.Name)
	}
	return names
}

// String is the profile for people: "6.12 (pktgen as of 6.15)".
func (p *Profile) String() string {
	if p.pktgen == "" {
		return p.Name
	}
	return fmt.Sprintf("%s (pktgen as of %s)", p.Name, p.pktgen)
}

// HWIRQ is the number of a message in hardware, as /proc/interrupts shows it: of vector n of a function whose
// bus, device and function number are bdf, in a PCI domain.
func (p *Profile) HWIRQ(domain uint32, bdf uint16, n int) uint64 {
	if p.MSIPerDevice {
		return uint64(n)
	}
	return uint64(domain)<<27 | uint64(bdf)<<11 | uint64(n)
}
