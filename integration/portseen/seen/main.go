// Seen plays portseen's scenario to the ports below some /sys, and prints the recording, or how it differs from another.
//
//	ring3 shell -- seen -ports rp0=1000:00:01.0,rp1=1000:00:02.0,rp2=1000:00:03.0,rp3=1000:00:04.0 -want integration/testdata/ports/kernel-6.1.txt
//
// It is a process of its own, since one that serves the tree must not look at it. Its exit status is 1 where something
// differs.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/ring3dev/ring3/integration/portseen"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "seen:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	f := flag.NewFlagSet("seen", flag.ContinueOnError)
	sys, dev := f.String("sys", "/sys", "what stands for /sys"), f.String("dev", "/dev", "what stands for /dev")
	log := f.String("log", "ring3 dmesg", "command that prints the log; \"\": the kernel's own")
	events := f.String("events", "ring3 events -w", "command that prints uevents as udevadm monitor -p does; \"\": the kernel's own")
	ports := f.String("ports", "", "addresses of the ports of the root complex: rp0=0000:00:04.0,...")
	plug := f.String("plug", "ring3 plug {name}=qemu:{model},under={port}", "command that plugs a device in")
	unplug := f.String("unplug", "ring3 unplug {name}", "command that presses a slot's button")
	waits := f.Bool("unplug-waits", false, "that command ends only when the device has gone")
	inject := f.String("inject", "", "command that has {name} report the error {bit}, with the words {header}; \"\": a record in aer_inject")
	want := f.String("want", "", "a recording to compare with, instead of printing this one")
	tolerance := f.Float64("tolerance", 0.2, "by what part of them times may differ")
	if err := f.Parse(args); err != nil {
		return err
	}
	p := &portseen.CommandPlayer{Addresses: map[string]string{}, PlugWords: strings.Fields(*plug), UnplugWords: strings.Fields(*unplug),
		UnplugWaits: *waits, ReportsError: *inject != "", InjectWords: strings.Fields(*inject)}
	for pair := range strings.SplitSeq(*ports, ",") {
		name, addr, _ := strings.Cut(pair, "=")
		p.Addresses[name] = addr
	}
	r := portseen.Recorder{Roots: portseen.Roots{Sys: *sys, Dev: *dev}, Player: p}
	stop, err := sources(&r, strings.Fields(*log), strings.Fields(*events))
	if err != nil {
		return err
	}
	defer stop()
	text, err := r.Record(ctx, portseen.Scenario)
	if err != nil || *want == "" {
		_, werr := io.WriteString(stdout, text)
		if err == nil {
			err = werr
		}
		return err
	}
	wanted, err := os.ReadFile(*want)
	if err != nil {
		return err
	}
	if d := portseen.Compare(string(wanted), text, portseen.Tolerance{Part: *tolerance}); len(d) > 0 {
		fmt.Fprintln(stdout, strings.Join(d, "\n"))
		return fmt.Errorf("it is not as %s has it", *want)
	}
	return nil
}

// sources sets where the log and uevents come from.
func sources(r *portseen.Recorder, log, events []string) (stop func(), err error) {
	stop = func() {}
	if len(log) == 0 {
		r.Log, err = portseen.KernelLog()
	} else {
		r.Log, err = portseen.CommandLog(log...)
	}
	if err != nil {
		return nil, err
	}
	if len(events) == 0 {
		r.Events, err = portseen.KernelEvents()
	} else {
		r.Events, stop, err = portseen.CommandEvents(events...)
	}
	return stop, err
}
