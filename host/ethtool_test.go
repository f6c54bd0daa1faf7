package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/netdev"
)

// TestEthtoolWords: wrong words are wrong usage, in one line, and nobody is asked.
func TestEthtoolWords(t *testing.T) {
	for _, c := range []struct {
		letter, words string
		ok            bool
	}{
		{"K", "rx on", true}, {"K", "tso off rxvlan on", true}, {"K", "tx-tcp6-segmentation on", true}, {"K", "RXHASH off", true},
		{"K", "", false}, {"K", "rx", false}, {"K", "rx maybe", false}, {"K", "frob on", false}, {"K", "rx on tx", false},
		{"C", "adaptive-rx on", true}, {"C", "rx-usecs 30 adaptive-rx off", true}, {"C", "rx-usecs x", false}, {"C", "rx-usecs -1", false}, {"C", "tx-usecs 3", false},
		{"A", "autoneg on rx off tx on", true}, {"A", "rx 1", false}, {"A", "both on", false},
	} {
		err := ethtoolOps[c.letter].check(strings.Fields(c.words))
		var u *usageError
		if c.ok && err != nil || !c.ok && (!errors.As(err, &u) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("ethtool -%s %s = %v, want it taken: %t, or a usage error of one line", c.letter, c.words, err, c.ok)
		}
	}
	on, off, err := featureWords(strings.Fields("tso on rx off rx on txvlan off"))
	if err != nil || on != netdev.TxTSO4|netdev.TxTSO6|netdev.RxCsum || off != netdev.TxVLAN {
		t.Errorf("featureWords = %s, %s, %v", on, off, err)
	}
}

// TestEthtoolShow prints each answer; what the command prints of real devices is tested in
// integration.
func TestEthtoolShow(t *testing.T) {
	for _, c := range []struct {
		letter string
		v      any
		want   string
	}{
		{"", ethLink{}, "Settings for eth0:\n\tSpeed: Unknown!\n\tDuplex: Unknown! (255)\n\tLink detected: no\n"},
		{"", ethLink{Up: true, Speed: 100}, "Settings for eth0:\n\tSpeed: 100Mb/s\n\tDuplex: Half\n\tLink detected: yes\n"},
		{"S", []netdev.Counter{{Name: "rx_packets", Value: 1 << 60}}, "NIC statistics:\n     rx_packets: 1152921504606846976\n"},
		{"k", []ethFeature{{Name: "rx-checksumming", On: true}, {Name: "tx-tcp-segmentation", On: true}, {Name: "tx-tcp6-segmentation", Fixed: true}},
			"Features for eth0:\nrx-checksumming: on\ntcp-segmentation-offload: on\n\ttx-tcp-segmentation: on\n\ttx-tcp6-segmentation: off [fixed]\n"},
		{"K", []ethChange{{Name: "rx-checksumming", On: true, Wanted: true}}, ""},
		{"K", []ethChange{{Name: "rx-vlan-offload", On: true, Wanted: true}, {Name: "tx-vlan-offload", On: true}},
			"Actual changes:\nrx-vlan-offload: on\ntx-vlan-offload: on [not requested]\n"},
		{"C", nil, ""},
		{"d", []ethRegister{{Name: "CTRL", Value: 1, Width: 4, Text: "FD"}, {Region: 2, Off: 0x10, Name: "X", Value: 255, Width: 1}},
			"0x00000: CTRL         0x00000001  FD\nregion 2 0x00010: X            0xFF\n"},
		{"e", bytes.Repeat([]byte{0xab}, 18), "Offset\t\tValues\n------\t\t------\n0x0000:\t\t" + strings.Repeat("ab ", 16) + "\n0x0010:\t\tab ab \n"},
	} {
		raw, err := json.Marshal(c.v)
		if err != nil {
			t.Fatal(err)
		}
		var w bytes.Buffer
		if err := ethtoolOps[c.letter].show(&w, "eth0", raw); err != nil || w.String() != c.want {
			t.Errorf("-%s of %s prints %q, %v, want %q", c.letter, raw, w.String(), err, c.want)
		}
	}
	if err := ethtoolOps["a"].show(&bytes.Buffer{}, "eth0", json.RawMessage(`"text"`)); err == nil {
		t.Error("an answer of the wrong kind is printed")
	}
}
