package host

import (
	"context"
	"fmt"
	"strconv"
	"syscall"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/rionet"
)

// What the options of `ring3 ethtool` answer, as -json prints it.
type (
	ethLink struct {
		Up         bool `json:"up"`
		Speed      int  `json:"speed,omitempty"` // Mb/s
		FullDuplex bool `json:"full_duplex,omitempty"`
	}
	ethDriver struct {
		Driver     string `json:"driver"`
		Version    string `json:"version"`
		Firmware   string `json:"firmware_version,omitempty"`
		BusInfo    string `json:"bus_info"`
		Statistics bool   `json:"supports_statistics"`
		EEPROM     bool   `json:"supports_eeprom_access"`
		Registers  bool   `json:"supports_register_dump"`
	}
	ethFeature struct {
		Name  string `json:"name"`
		On    bool   `json:"on"`
		Fixed bool   `json:"fixed,omitempty"`
	}
	ethChange struct {
		Name   string `json:"name"`
		On     bool   `json:"on"`
		Wanted bool   `json:"wanted"` // this is what was asked for
	}
	ethCoalesce struct {
		Adaptive bool `json:"adaptive_rx"`
		RxUsecs  int  `json:"rx_usecs"`
	}
	ethPause struct {
		Autoneg bool `json:"autonegotiate"`
		Rx      bool `json:"rx"`
		Tx      bool `json:"tx"`
	}
	ethRing struct {
		Rx       int `json:"rx"`
		Tx       int `json:"tx"`
		RxQueues int `json:"rx_queues"`
		TxQueues int `json:"tx_queues"`
	}
	ethRegister struct {
		Region int    `json:"region"`
		Off    uint64 `json:"offset"`
		Name   string `json:"name"`
		Value  uint64 `json:"value"`
		Width  int    `json:"width"` // bytes
		Text   string `json:"text,omitempty"`
	}
)

func getLink(_ context.Context, b *boundDevice, _ []string) (any, error) {
	l := b.net.Link()
	if !l.Up {
		return ethLink{}, nil
	}
	return ethLink{Up: true, Speed: l.Speed, FullDuplex: l.FullDuplex}, nil
}

func getDriver(_ context.Context, b *boundDevice, _ []string) (any, error) {
	_, tool := b.net.(netdev.Ethtooler)
	if n, ok := b.net.(*rionet.Device); ok { // not of the master port under it
		i := n.DriverInfo()
		return ethDriver{Driver: i.Driver, Version: i.Version, Firmware: i.Firmware, BusInfo: i.BusInfo, Statistics: tool}, nil
	}
	return ethDriver{
		Driver: b.driver.Name, Version: version(), BusInfo: b.dev.Address(),
		Statistics: tool, EEPROM: tool, Registers: b.driver.Registers != nil,
	}, nil
}

func getCounters(_ context.Context, b *boundDevice, _ []string) (any, error) {
	e, err := iface[netdev.Ethtooler](b)
	if err != nil {
		return nil, err
	}
	return e.Counters(), nil
}

func getEEPROM(ctx context.Context, b *boundDevice, _ []string) (any, error) {
	e, err := iface[netdev.Ethtooler](b)
	if err != nil {
		return nil, err
	}
	return e.EEPROM(ctx)
}

func getFeatures(_ context.Context, b *boundDevice, _ []string) (any, error) {
	o, err := iface[netdev.Offloader](b)
	if err != nil {
		return nil, err
	}
	available, on := o.Features()
	var list []ethFeature
	netdev.FeatureNames(func(f netdev.Feature, name string) {
		list = append(list, ethFeature{Name: name, On: on&f != 0, Fixed: available&f == 0})
	})
	return list, nil
}

// featureWords is what words of -K switch on and off.
func featureWords(words []string) (on, off netdev.Feature, err error) {
	err = pairs("K", words, func(word, value string) (bool, error) {
		f := featureOf(word)
		v, err := onOff(value)
		if v {
			on, off = on|f, off&^f
		} else {
			on, off = on&^f, off|f
		}
		return f != 0, err
	})
	return on, off, err
}

func checkFeatures(words []string) error {
	_, _, err := featureWords(words)
	return err
}

// setFeatures answers with what changed. A name for several features takes those that the device
// has.
func setFeatures(ctx context.Context, b *boundDevice, words []string) (any, error) {
	o, err := iface[netdev.Offloader](b)
	if err != nil {
		return nil, err
	}
	on, off, err := featureWords(words)
	if err != nil {
		return nil, err
	}
	available, before := o.Features()
	const tso = netdev.TxTSO4 | netdev.TxTSO6
	if on&tso == tso && available&tso != 0 {
		on &^= tso &^ available
	}
	want := before&^off | on
	if err := o.SetFeatures(ctx, want); err != nil {
		return nil, err
	}
	_, after := o.Features()
	if after == before && want != before {
		return nil, fmt.Errorf("could not change any device features: %w", syscall.EINVAL)
	}
	changes := []ethChange{}
	netdev.FeatureNames(func(f netdev.Feature, name string) {
		if (before^after)&f != 0 || (want^after)&f != 0 {
			changes = append(changes, ethChange{Name: name, On: after&f != 0, Wanted: (want^after)&f == 0})
		}
	})
	return changes, nil
}

func getCoalesce(_ context.Context, b *boundDevice, _ []string) (any, error) {
	c, err := iface[netdev.Coalescer](b)
	if err != nil {
		return nil, err
	}
	return ethCoalesce(c.Coalesce()), nil
}

// coalesceWords changes c as words of -C say.
func coalesceWords(words []string, c *netdev.Coalesce) error {
	return pairs("C", words, func(word, value string) (bool, error) {
		var err error
		switch word {
		case "adaptive-rx":
			c.Adaptive, err = onOff(value)
		case "rx-usecs":
			if c.RxUsecs, err = strconv.Atoi(value); err != nil || c.RxUsecs < 0 {
				err = fmt.Errorf("%q: want microseconds", value)
			}
		default:
			return false, nil
		}
		return true, err
	})
}

func checkCoalesce(words []string) error { return coalesceWords(words, &netdev.Coalesce{}) }

func setCoalesce(ctx context.Context, b *boundDevice, words []string) (any, error) {
	c, err := iface[netdev.Coalescer](b)
	if err != nil {
		return nil, err
	}
	v := c.Coalesce()
	if v.Adaptive {
		v.RxUsecs = 0 // what it happens to be, not a setting
	}
	if err := coalesceWords(words, &v); err != nil {
		return nil, err
	}
	return nil, c.SetCoalesce(ctx, v)
}

func getPause(_ context.Context, b *boundDevice, _ []string) (any, error) {
	p, err := iface[netdev.Pauser](b)
	if err != nil {
		return nil, err
	}
	return ethPause(p.Pause()), nil
}

// pauseWords changes p as words of -A say.
func pauseWords(words []string, p *netdev.Pause) error {
	return pairs("A", words, func(word, value string) (bool, error) {
		var err error
		switch word {
		case "autoneg":
			p.Autoneg, err = onOff(value)
		case "rx":
			p.Rx, err = onOff(value)
		case "tx":
			p.Tx, err = onOff(value)
		default:
			return false, nil
		}
		return true, err
	})
}

func checkPause(words []string) error { return pauseWords(words, &netdev.Pause{}) }

func setPause(ctx context.Context, b *boundDevice, words []string) (any, error) {
	p, err := iface[netdev.Pauser](b)
	if err != nil {
		return nil, err
	}
	v := p.Pause()
	if err := pauseWords(words, &v); err != nil {
		return nil, err
	}
	return nil, p.SetPause(ctx, v)
}

func getRing(_ context.Context, b *boundDevice, _ []string) (any, error) {
	i := b.net.Info()
	return ethRing{Rx: i.RxRing, Tx: i.TxRing, RxQueues: i.RxQueues, TxQueues: i.TxQueues}, nil
}

// getRegisters reads the registers in the driver's table that reading does not change. Of an array
// it leaves out what is 0.
func getRegisters(_ context.Context, b *boundDevice, _ []string) (any, error) {
	if b.driver.Registers == nil {
		return nil, fmt.Errorf("driver %s has no table of registers: %w", b.driver.Name, syscall.EOPNOTSUPP)
	}
	var list []ethRegister
	regions := map[int]bus.Region{}
	for _, r := range b.driver.Registers(functionID(b.dev)) {
		if !r.Access.Dumpable() {
			continue
		}
		if regions[r.Region] == nil {
			var err error
			if regions[r.Region], err = b.dev.Region(r.Region); err != nil {
				return nil, fmt.Errorf("region %d of %s: %w", r.Region, b.spec.Name, err)
			}
		}
		for i := range max(r.Count, 1) {
			v, width := readRegister(regions[r.Region], &r, i)
			if v == 0 && r.Count > 1 {
				continue
			}
			x := ethRegister{Region: r.Region, Off: uint64(r.At(i)), Name: r.Label(i), Value: v, Width: width}
			if r.Bits != nil {
				x.Text = r.Bits(v)
			}
			list = append(list, x)
		}
	}
	return list, nil
}

// readRegister reads register i of an array with its width.
func readRegister(region bus.Region, r *bus.Register, i int) (v uint64, width int) {
	switch r.Width {
	case 1:
		return uint64(region.Read8(r.At(i))), 1
	case 2:
		return uint64(region.Read16(r.At(i))), 2
	case 8:
		return region.Read64(r.At(i)), 8
	}
	return uint64(region.Read32(r.At(i))), 4
}
