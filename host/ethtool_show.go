package host

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/ring3dev/ring3/netdev"
)

// shower prints an answer as ethtool(8) 6.1 does.
type shower func(w io.Writer, name string, raw json.RawMessage) error

// shown makes a shower of one for a type.
func shown[T any](f func(w io.Writer, name string, v T)) shower {
	return func(w io.Writer, name string, raw json.RawMessage) error {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("ethtool %s: the answer: %w", name, err)
		}
		f(w, name, v)
		return nil
	}
}

// quiet prints nothing.
func quiet(io.Writer, string, json.RawMessage) error { return nil }

func onWord(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func yesWord(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

func showLink(w io.Writer, name string, l ethLink) {
	speed, duplex := "Unknown!", "Unknown! (255)"
	if l.Up {
		speed, duplex = fmt.Sprintf("%dMb/s", l.Speed), "Half"
		if l.FullDuplex {
			duplex = "Full"
		}
	}
	fmt.Fprintf(w, "Settings for %s:\n\tSpeed: %s\n\tDuplex: %s\n\tLink detected: %s\n", name, speed, duplex, yesWord(l.Up))
}

func showDriver(w io.Writer, _ string, d ethDriver) {
	fmt.Fprintf(w, "driver: %s\nversion: %s\nfirmware-version: %s\nexpansion-rom-version: \nbus-info: %s\n", d.Driver, d.Version, d.Firmware, d.BusInfo)
	fmt.Fprintf(w, "supports-statistics: %s\nsupports-test: no\nsupports-eeprom-access: %s\nsupports-register-dump: %s\nsupports-priv-flags: no\n",
		yesWord(d.Statistics), yesWord(d.EEPROM), yesWord(d.Registers))
}

func showCounters(w io.Writer, _ string, list []netdev.Counter) {
	fmt.Fprintln(w, "NIC statistics:")
	for _, c := range list {
		fmt.Fprintf(w, "     %s: %d\n", c.Name, c.Value)
	}
}

// showFeatures prints the two kinds of segmentation below their common name.
func showFeatures(w io.Writer, name string, list []ethFeature) {
	fmt.Fprintf(w, "Features for %s:\n", name)
	tso := false
	for _, f := range list {
		tso = tso || isTSO(f.Name) && f.On
	}
	first := true
	for _, f := range list {
		indent := ""
		if isTSO(f.Name) {
			if first {
				fmt.Fprintf(w, "tcp-segmentation-offload: %s\n", onWord(tso))
			}
			first, indent = false, "\t"
		}
		fixed := ""
		if f.Fixed {
			fixed = " [fixed]"
		}
		fmt.Fprintf(w, "%s%s: %s%s\n", indent, f.Name, onWord(f.On), fixed)
	}
}

func isTSO(name string) bool { return featureOf(name)&(netdev.TxTSO4|netdev.TxTSO6) != 0 }

// showChanges prints nothing where exactly what was asked for changed.
func showChanges(w io.Writer, _ string, list []ethChange) {
	exact := true
	for _, c := range list {
		exact = exact && c.Wanted
	}
	if exact {
		return
	}
	fmt.Fprintln(w, "Actual changes:")
	for _, c := range list {
		asked := ""
		if !c.Wanted {
			asked = " [not requested]"
		}
		fmt.Fprintf(w, "%s: %s%s\n", c.Name, onWord(c.On), asked)
	}
}

func showCoalesce(w io.Writer, name string, c ethCoalesce) {
	fmt.Fprintf(w, "Coalesce parameters for %s:\nAdaptive RX: %s  TX: n/a\n", name, onWord(c.Adaptive))
	fmt.Fprint(w, "stats-block-usecs: n/a\nsample-interval: n/a\npkt-rate-low: n/a\npkt-rate-high: n/a\n\n")
	fmt.Fprintf(w, "rx-usecs: %d\nrx-frames: n/a\nrx-usecs-irq: n/a\nrx-frames-irq: n/a\n\n", c.RxUsecs)
	fmt.Fprint(w, "tx-usecs: n/a\ntx-frames: n/a\ntx-usecs-irq: n/a\ntx-frames-irq: n/a\n\n")
	fmt.Fprint(w, "rx-usecs-low: n/a\nrx-frame-low: n/a\ntx-usecs-low: n/a\ntx-frame-low: n/a\n\n")
	fmt.Fprint(w, "rx-usecs-high: n/a\nrx-frame-high: n/a\ntx-usecs-high: n/a\ntx-frame-high: n/a\n\n")
	fmt.Fprint(w, "CQE mode RX: n/a  TX: n/a\n\n")
}

func showPause(w io.Writer, name string, p ethPause) {
	fmt.Fprintf(w, "Pause parameters for %s:\nAutonegotiate:\t%s\nRX:\t\t%s\nTX:\t\t%s\n\n", name, onWord(p.Autoneg), onWord(p.Rx), onWord(p.Tx))
}

func showRing(w io.Writer, name string, r ethRing) {
	fmt.Fprintf(w, "Ring parameters for %s:\nPre-set maximums:\nRX:\t\tn/a\nRX Mini:\tn/a\nRX Jumbo:\tn/a\nTX:\t\tn/a\n", name)
	fmt.Fprintf(w, "Current hardware settings:\nRX:\t\t%d\nRX Mini:\tn/a\nRX Jumbo:\tn/a\nTX:\t\t%d\n\n", r.Rx, r.Tx)
}

func showChannels(w io.Writer, name string, r ethRing) {
	fmt.Fprintf(w, "Channel parameters for %s:\nPre-set maximums:\nRX:\t\tn/a\nTX:\t\tn/a\nOther:\t\tn/a\nCombined:\tn/a\n", name)
	fmt.Fprintf(w, "Current hardware settings:\nRX:\t\t%d\nTX:\t\t%d\nOther:\t\tn/a\nCombined:\tn/a\n\n", r.RxQueues, r.TxQueues)
}

func showRegisters(w io.Writer, _ string, list []ethRegister) {
	for _, r := range list {
		text := ""
		if r.Text != "" {
			text = "  " + r.Text
		}
		where := ""
		if r.Region > 0 {
			where = fmt.Sprintf("region %d ", r.Region)
		}
		fmt.Fprintf(w, "%s0x%05X: %-12s 0x%0*X%s\n", where, r.Off, r.Name, 2*r.Width, r.Value, text)
	}
}

func showEEPROM(w io.Writer, _ string, b []byte) {
	fmt.Fprint(w, "Offset\t\tValues\n------\t\t------")
	for i, x := range b {
		if i%16 == 0 {
			fmt.Fprintf(w, "\n0x%04x:\t\t", i)
		}
		fmt.Fprintf(w, "%02x ", x)
	}
	fmt.Fprintln(w)
}
