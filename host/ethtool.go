package host

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/netdev"
)

// opEthtool asks about a network device, and changes its settings.
const opEthtool = "ethtool"

// ethtoolArgs are the arguments of opEthtool: Op is one of ethtoolOps, Words what follows it on
// the command line.
type ethtoolArgs struct {
	Device string   `json:"device"`
	Op     string   `json:"op"`
	Words  []string `json:"words,omitempty"`
}

// ethtoolOp is one option of ethtool(8).
type ethtoolOp struct {
	long, usage string
	words       bool // takes names and values
	// get is the answer of the instance, for -json and for show.
	get func(ctx context.Context, b *boundDevice, words []string) (any, error)
	// check finds wrong words before anybody is asked; nil: there are none.
	check func(words []string) error
	show  shower
}

// ethtoolOps are the options that there are, by letter; "" is that without an option.
var ethtoolOps = map[string]ethtoolOp{
	"":  {get: getLink, show: shown(showLink)},
	"i": {long: "driver", usage: "the driver", get: getDriver, show: shown(showDriver)},
	"S": {long: "statistics", usage: "the device's own statistics", get: getCounters, show: shown(showCounters)},
	"k": {long: "show-features", usage: "what the device does to frames", get: getFeatures, show: shown(showFeatures)},
	"K": {long: "features", usage: "switch features: " + ethtoolWords["K"], words: true, check: checkFeatures, get: setFeatures, show: shown(showChanges)},
	"c": {long: "show-coalesce", usage: "interrupt moderation", get: getCoalesce, show: shown(showCoalesce)},
	"C": {long: "coalesce", usage: "set it: " + ethtoolWords["C"], words: true, check: checkCoalesce, get: setCoalesce, show: quiet},
	"a": {long: "show-pause", usage: "pause frames", get: getPause, show: shown(showPause)},
	"A": {long: "pause", usage: "set them: " + ethtoolWords["A"], words: true, check: checkPause, get: setPause, show: quiet},
	"g": {long: "show-ring", usage: "descriptors in each ring", get: getRing, show: shown(showRing)},
	"l": {long: "show-channels", usage: "queues", get: getRing, show: shown(showChannels)},
	"d": {long: "register-dump", usage: "the registers that can be read without effect", get: getRegisters, show: shown(showRegisters)},
	"e": {long: "eeprom-dump", usage: "the EEPROM", get: getEEPROM, show: shown(showEEPROM)},
}

// ethtoolWords are the words that an option takes.
var ethtoolWords = map[string]string{
	"K": "NAME on|off ...", "C": "adaptive-rx on|off rx-usecs N", "A": "autoneg on|off rx on|off tx on|off",
}

// ethtoolOrder is the order in which ethtool(8) lists them.
var ethtoolOrder = []string{"a", "A", "c", "C", "g", "i", "d", "e", "k", "K", "S", "l"}

func (a *app) ethtoolCmd() *cobra.Command {
	set := map[string]*bool{}
	c := &cobra.Command{
		Use:   "ethtool [OPTION] NAME [WORD VALUE]...",
		Short: "Print and change a network device's settings, as ethtool(8) does",
		Example: `  ring3 ethtool -S eth0
  ring3 ethtool -K eth0 tso off rx on
  ring3 ethtool -C eth0 adaptive-rx on
  ring3 ethtool -A eth0 rx on tx on`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			q := ethtoolArgs{Device: args[0], Words: args[1:]}
			n := 0
			for _, letter := range ethtoolOrder {
				if *set[letter] {
					q.Op = letter
					n++
				}
			}
			op := ethtoolOps[q.Op]
			switch {
			case n > 1:
				return usagef("ethtool: one option at a time")
			case !op.words && len(q.Words) > 0:
				return usagef("ethtool: unknown word %q", q.Words[0])
			case op.check != nil:
				if err := op.check(q.Words); err != nil {
					return err
				}
			}
			return a.ethtool(c.Context(), q, op)
		},
	}
	for _, letter := range ethtoolOrder {
		op := ethtoolOps[letter]
		set[letter] = c.Flags().BoolP(op.long, letter, false, op.usage)
	}
	c.Flags().StringVar(&a.name, "instance", "", "the instance, where several run")
	return c
}

func (a *app) ethtool(ctx context.Context, q ethtoolArgs, op ethtoolOp) error {
	_, cl, err := a.dial()
	if err != nil {
		return err
	}
	defer cl.Close()
	var raw json.RawMessage
	if err := cl.Call(ctx, opEthtool, q, &raw); err != nil {
		what := q.Device
		if q.Op != "" {
			what = "-" + q.Op + " " + what
		}
		return fmt.Errorf("ethtool %s: %w", what, err)
	}
	if a.json {
		return a.printJSON(raw)
	}
	return op.show(a.stdout, q.Device, raw)
}

// ethtoolHandler answers opEthtool.
func (s *System) ethtoolHandler(ctx context.Context, args json.RawMessage, _ func(any) error) (any, error) {
	var q ethtoolArgs
	if err := json.Unmarshal(args, &q); err != nil {
		return nil, fmt.Errorf("arguments: %v: %w", err, syscall.EINVAL)
	}
	return s.ethtool(ctx, q)
}

func (s *System) ethtool(ctx context.Context, q ethtoolArgs) (any, error) {
	op, ok := ethtoolOps[q.Op]
	if !ok {
		return nil, fmt.Errorf("no option %q: %w", q.Op, syscall.EINVAL)
	}
	if op.check != nil {
		if err := op.check(q.Words); err != nil {
			return nil, fmt.Errorf("%v: %w", err, syscall.EINVAL)
		}
	}
	b := s.boundOf(q.Device)
	switch {
	case b == nil:
		return nil, fmt.Errorf("no device %q: %w", q.Device, syscall.ENODEV)
	case b.net == nil && q.Op != "i" && q.Op != "d":
		return nil, fmt.Errorf("%s is no network device: %w", q.Device, syscall.EOPNOTSUPP)
	case b.dev.Err() != nil:
		return nil, fmt.Errorf("%s is gone: %w", q.Device, syscall.ENODEV)
	}
	return op.get(ctx, b, q.Words)
}

// iface is an optional interface of a network device.
func iface[T any](b *boundDevice) (T, error) {
	v, ok := b.net.(T)
	if !ok {
		return v, fmt.Errorf("%s has no such setting: %w", b.spec.Name, syscall.EOPNOTSUPP)
	}
	return v, nil
}

// pairs reads words and their values. known is called for each; it says whether it knows the
// word, and what is wrong with the value.
func pairs(letter string, words []string, known func(word, value string) (bool, error)) error {
	if len(words) == 0 || len(words)%2 != 0 {
		return usagef("ethtool -%s: want words, each with a value: %s", letter, ethtoolWords[letter])
	}
	for i := 0; i < len(words); i += 2 {
		ok, err := known(words[i], words[i+1])
		if !ok {
			return usagef("ethtool -%s: unknown word %q: %s", letter, words[i], ethtoolWords[letter])
		}
		if err != nil {
			return usagef("ethtool -%s: %s: %v", letter, words[i], err)
		}
	}
	return nil
}

// onOff reads a switch.
func onOff(s string) (bool, error) {
	switch s {
	case "on":
		return true, nil
	case "off":
		return false, nil
	}
	return false, fmt.Errorf("%q: want on or off", s)
}

// shortFeatures are ethtool(8)'s old names; a name may stand for several features.
var shortFeatures = map[string]netdev.Feature{
	"rx": netdev.RxCsum, "tx": netdev.TxCsum, "tso": netdev.TxTSO4 | netdev.TxTSO6, "tcp-segmentation-offload": netdev.TxTSO4 | netdev.TxTSO6,
	"rxvlan": netdev.RxVLAN, "txvlan": netdev.TxVLAN, "rxhash": netdev.RxHash, "rxcsum": netdev.RxCsum, "txcsum": netdev.TxCsum,
}

// featureOf finds a feature by either name; 0: there is none.
func featureOf(name string) netdev.Feature {
	f := shortFeatures[strings.ToLower(name)]
	netdev.FeatureNames(func(g netdev.Feature, long string) {
		if long == name {
			f = g
		}
	})
	return f
}
