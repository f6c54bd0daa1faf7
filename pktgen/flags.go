package pktgen

import (
	"math/bits"
	"strings"
)

// flags are the switches of a device, with the kernel's numbers.
type flags uint32

const (
	flagIPV6          flags = 1 << iota // send IPv6
	flagIPSRC_RND                       // random source address
	flagIPDST_RND                       // random destination address
	flagTXSIZE_RND                      // random size
	flagUDPSRC_RND                      // random source port
	flagUDPDST_RND                      // random destination port
	flagUDPCSUM                         // UDP checksum
	flagNO_TIMESTAMP                    // time fields are 0
	flagMPLS_RND                        // random labels
	flagQUEUE_MAP_RND                   // random queue
	flagQUEUE_MAP_CPU                   // queue of the CPU's number
	flagFLOW_SEQ                        // flows one after the other, not at random
	flagIPSEC                           // IPsec: without security associations nothing else changes
	flagMACSRC_RND                      // random source MAC
	flagMACDST_RND                      // random destination MAC
	flagVID_RND                         // random VLAN id
	flagSVID_RND                        // random outer VLAN id
	flagNODE                            // memory of the node asked for
	flagSHARED                          // one packet may be sent many times
)

// flagNames in the order of the bits.
var flagNames = [...]string{
	"IPV6", "IPSRC_RND", "IPDST_RND", "TXSIZE_RND", "UDPSRC_RND", "UDPDST_RND", "UDPCSUM", "NO_TIMESTAMP", "MPLS_RND",
	"QUEUE_MAP_RND", "QUEUE_MAP_CPU", "FLOW_SEQ", "IPSEC", "MACSRC_RND", "MACDST_RND", "VID_RND", "SVID_RND", "NODE", "SHARED",
}

// flagNames are the names that the device's profile has. Where SHARED is not among them it is
// set all the same, and not shown.
func (d *device) flagNames() []string {
	if d.prof().Shared {
		return flagNames[:]
	}
	return flagNames[:bits.TrailingZeros32(uint32(flagSHARED))]
}

// parseFlag reads the name of a flag, or !name; f is 0 where there is none of that
// name. IPV6 can only be cleared, FLOW_RND is !FLOW_SEQ.
func (d *device) parseFlag(s string) (f flags, clear bool) {
	s, clear = strings.CutPrefix(s, "!")
	if s == "FLOW_RND" {
		return flagFLOW_SEQ, !clear
	}
	for i, n := range d.flagNames() {
		f := flags(1) << i
		if n == s && (f != flagIPV6 || clear) {
			return f, clear
		}
	}
	return 0, clear
}

// flagList names every flag there is, as the profile does.
func (d *device) flagList() string {
	if list := d.prof().Flags; list != "" {
		return list
	}
	return strings.Join(flagNames[:], ", ")
}
