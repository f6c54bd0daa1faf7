//go:build linux

// Guest is the half of make bench-vm that runs in the VM. As root, with the argument "measure"
// and a row.Plan, it gives devices to one driver after the other and prints rows, one JSON object
// a line; what ring3 measures it does in a process of its own, as nobody, with another argument.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"

	"github.com/ring3dev/ring3/integration/benchvm/row"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "benchvm:", err)
		os.Exit(1)
	}
}

// children are what runs in a process of its own: argument as JSON on stdin, result on stdout.
var children = map[string]func(in io.Reader, out io.Writer) error{
	"send":    child(sendMain),
	"sink":    child(sinkMain),
	"tap":     child(tapMain),
	"udp":     child(udpMain),
	"irq":     child(irqMain),
	"mapping": child(mappingMain),
	"config":  child(configMain),
	"hog":     child(hogMain),
}

func run(args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) == 1 {
		if f := children[args[0]]; f != nil {
			return f(stdin, stdout)
		}
	}
	if len(args) != 2 || args[0] != "measure" {
		return fmt.Errorf("arguments %q: this is the half of make bench-vm that runs in its VM", args)
	}
	var p row.Plan
	if err := json.Unmarshal([]byte(args[1]), &p); err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	var only *regexp.Regexp
	if p.Only != "" {
		var err error
		if only, err = regexp.Compile(p.Only); err != nil {
			return fmt.Errorf("plan: %w", err)
		}
	}
	enc := json.NewEncoder(stdout)
	emit := func(rows ...row.Row) error {
		for _, r := range rows {
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
		return nil
	}
	runtime.LockOSThread() // of the children's: see startOn
	s, err := newSession(p, only)
	if err != nil {
		return err
	}
	benches := []func(*session, func(...row.Row) error) error{transmit, sizes, load, interrupts, mapping, configSpace, tpm}
	if p.NoIOMMU {
		benches = []func(*session, func(...row.Row) error) error{transmit}
	}
	for _, f := range benches {
		if err := f(s, emit); err != nil {
			return err
		}
	}
	return nil
}
