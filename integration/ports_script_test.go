package integration

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ring3dev/ring3/bus/aerinject"
	"github.com/ring3dev/ring3/bus/pci"
)

// Commands of scripts about ports.

// waitMessage waits until a message of the instance's matches: waitmsg REGEXP.
func waitMessage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: waitmsg REGEXP")
	}
	want, err := regexp.Compile(args[0])
	ts.Check(err)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		cmd := exec.Command(ring3, "dmesg")
		cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+ts.Getenv("XDG_RUNTIME_DIR"))
		out, err := cmd.Output()
		if err == nil && want.Match(out) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no message matches %s after 20s: %v\n%s", args[0], err, out)
		}
	}
}

// aerRecord writes what the tool aer-inject writes to /dev/aer_inject: aer FILE ADDRESS UNCORRECTABLE CORRECTABLE.
func aerRecord(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: aer FILE ADDRESS UNCORRECTABLE CORRECTABLE")
	}
	rec, err := recordOf(args[1], args[2], args[3])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), rec, 0o666))
}

func recordOf(addr, uncorrectable, correctable string) ([]byte, error) {
	a, err := pci.ParseAddr(addr)
	if err != nil {
		return nil, err
	}
	var bits [2]uint64
	for i, s := range []string{uncorrectable, correctable} {
		if bits[i], err = strconv.ParseUint(s, 0, 32); err != nil {
			return nil, err
		}
	}
	return aerinject.AppendRecord(nil, aerinject.Record{
		Domain: a.Domain, Bus: a.Bus, Dev: a.Dev, Fn: a.Fn,
		Error: pci.AERError{Uncorrectable: uint32(bits[0]), Correctable: uint32(bits[1]), Header: [4]uint32{1, 2, 3, 4}},
	}), nil
}
