package portseen

import (
	"errors"
	"fmt"
	"math/bits"
	"os/exec"
	"strings"
)

// CommandPlayer is hardware that commands change, as ring3 plug and ring3 unplug do. In their words {name}, {model} and {port}
// are put in.
type CommandPlayer struct {
	Addresses    map[string]string // of the ports of the root complex
	PlugWords    []string          // "ring3", "plug", "{name}=qemu:{model},under={port}"
	UnplugWords  []string          // "ring3", "unplug", "{name}"
	UnplugWaits  bool              // the command ends when the device has gone; it is not waited for
	ReportsError bool              // InjectWords has {name}, {bit} and {header}; else errors are injected by record
	InjectWords  []string
}

// ErrByRecord is what a Player's Inject returns to have the error injected by a record in /dev/aer_inject.
var ErrByRecord = errors.New("by record")

// Address is one of Addresses.
func (p *CommandPlayer) Address(name string) (string, error) {
	if a := p.Addresses[name]; a != "" {
		return a, nil
	}
	return "", fmt.Errorf("no address of %s was given", name)
}

// Plug runs the command.
func (p *CommandPlayer) Plug(name, model, port string) error {
	return words(p.PlugWords, "{name}", name, "{model}", model, "{port}", port).run()
}

// Unplug runs the command.
func (p *CommandPlayer) Unplug(name string) error {
	c := words(p.UnplugWords, "{name}", name)
	if !p.UnplugWaits {
		return c.run()
	}
	// That it fails is seen in what does not happen.
	cmd := exec.Command(c[0], c[1:]...)
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }()
	return nil
}

// Unplugged is always true: what is seen of a device is gone, and more is not known.
func (p *CommandPlayer) Unplugged(string) (bool, error) { return true, nil }

// Inject runs the command, or leaves it to a record.
func (p *CommandPlayer) Inject(name, bit string, header []uint32) error {
	if !p.ReportsError {
		return ErrByRecord
	}
	return words(p.InjectWords, "{name}", name, "{bit}", bit, "{header}", strings.Trim(fmt.Sprintf("%d", header), "[]")).run()
}

type command []string

// words are a command's, with values put in.
func words(all []string, values ...string) command {
	r := strings.NewReplacer(values...)
	var c command
	for _, w := range all {
		c = append(c, r.Replace(w))
	}
	return c
}

func (c command) run() error {
	if len(c) == 0 {
		return errors.New("there is no command for it")
	}
	out, err := exec.Command(c[0], c[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(c, " "), err, out)
	}
	return nil
}

// uncorrectable are bits of the Uncorrectable Error Status register (PCI Express Base Specification, 7.8.4.2), by what QEMU's monitor calls
// them.
var uncorrectable = map[string]uint32{
	"DLP": 1 << 4, "SDN": 1 << 5, "POISON_TLP": 1 << 12, "FCP": 1 << 13, "COMP_TIME": 1 << 14, "COMP_ABORT": 1 << 15,
	"UNX_COMP": 1 << 16, "RX_OVER": 1 << 17, "MALF_TLP": 1 << 18, "ECRC": 1 << 19, "UNSUP": 1 << 20, "ACSV": 1 << 21,
}

// record is an injection as a record. What QEMU's monitor is told of a header it keeps with its bytes in the other order.
func (a Inject) record() (Record, error) {
	bit, ok := uncorrectable[a.Bit]
	if !ok {
		return Record{}, fmt.Errorf("%s is no uncorrectable error that is known", a.Bit)
	}
	rec := Record{Device: a.Device, Uncor: bit}
	for i, h := range a.Header {
		rec.Header[i] = bits.ReverseBytes32(h)
	}
	return rec, nil
}
