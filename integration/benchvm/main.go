package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/integration/benchvm/row"
	"github.com/ring3dev/ring3/integration/vm"
	"github.com/ring3dev/ring3/integration/vm/wire"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "benchvm:", err)
		os.Exit(1)
	}
}

// program measures and prints.
type program struct {
	plan   row.Plan
	asJSON bool
	stdout io.Writer
	stderr io.Writer
	rows   []row.Row
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	p := program{stdout: stdout, stderr: stderr}
	f := flag.NewFlagSet("benchvm", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.BoolVar(&p.asJSON, "json", false, "one JSON object a line")
	f.StringVar(&p.plan.Only, "only", "", "only rows whose \"BENCH CASE\" matches this `REGEXP`")
	f.DurationVar(&p.plan.Time, "time", 500*time.Millisecond, "length of one measurement")
	f.IntVar(&p.plan.Reps, "reps", 5, "measurements of each row")
	if err := f.Parse(args); err != nil {
		return flag.ErrHelp
	}
	if _, err := regexp.Compile(p.plan.Only); err != nil || f.NArg() > 0 || p.plan.Reps < 1 || p.plan.Time <= 0 {
		f.Usage()
		return flag.ErrHelp
	}
	dir, err := os.MkdirTemp("", "ring3-benchvm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := p.measure(ctx, dir); err != nil {
		return err
	}
	if len(p.rows) == 0 {
		return fmt.Errorf("no row was measured of -only %q", p.plan.Only)
	}
	return nil
}

// devices of the VM: row names where they stand.
var devices = []string{
	"-netdev", "hubport,id=net0,hubid=0", "-device", "e1000e,id=sender,netdev=net0,mac=52:54:00:12:34:50,addr=4,romfile=",
	"-netdev", "hubport,id=net1,hubid=1", "-device", "e1000e,id=receiver,netdev=net1,mac=52:54:00:12:34:51,addr=5,romfile=",
	"-netdev", "hubport,id=net2,hubid=1", "-device", "e1000e,id=feeder,netdev=net2,mac=52:54:00:12:34:52,addr=6,romfile=",
	"-device", "edu,id=edu0,addr=8",
}

// Where things are in the VM.
const (
	guestPath   = "/usr/bin/benchvm-guest"
	testpmdPath = "/opt/dpdk"
)

// grace is how long what runs in the VM may take to end when this is interrupted.
const grace = 20 * time.Second

// memlock is no limit: real-time threads have all memory locked.
const memlock = unix.RLIM_INFINITY

// measure boots two VMs, one after the other.
func (p *program) measure(ctx context.Context, dir string) error {
	guest := dir + "/guest"
	if err := vm.Build("amd64", "integration/benchvm/guest", guest); err != nil {
		return err
	}
	image := &vm.Image{}
	image.AddFile(guestPath, guest, 0o755)
	image.AddLink("/var/run", "/run") // where testpmd keeps its files
	if where, err := findTestpmd(ctx); err != nil {
		p.plan.NoDPDK = err.Error()
	} else if err := addTestpmd(image, where); err != nil {
		p.plan.NoDPDK = err.Error()
	} else {
		p.plan.Testpmd = testpmdPath
	}
	config := vm.Config{Arch: "amd64", Devices: devices, Image: image, MemoryMB: 2048, Load: []string{"pktgen", "tun"},
		Args: []string{"no_timer_check"}} // on a busy machine the check fails, and the kernel gives up
	p.addTPM(&config, dir)
	if err := p.boot(ctx, p.plan, config); err != nil {
		return err
	}
	if err := p.accesses(config.TPM); err != nil {
		return err
	}
	if !p.wantsOff() {
		return nil
	}
	plan := p.plan
	plan.NoIOMMU, config.NoIOMMU, config.TPM = true, true, nil
	if err := p.boot(ctx, plan, config); err != nil {
		return err
	}
	return p.across()
}

// wantsOff says whether a row of the VM without an IOMMU is wanted.
func (p *program) wantsOff() bool {
	only := regexp.MustCompile(p.plan.Only)
	for _, burst := range []int{1, 8, 32, 128} {
		for _, clone := range []int{0, 100000} {
			if only.MatchString(fmt.Sprintf("tx kernel iommu=off burst=%d clone_skb=%d", burst, clone)) {
				return true
			}
		}
	}
	return false
}

// across compares ring3 with the kernel in the other VM: of medians, not within a turn.
func (p *program) across() error {
	var best row.Row
	for _, r := range p.rows {
		if strings.HasPrefix(r.Case, "kernel iommu=off") && r.Value > best.Value {
			best = r
		}
	}
	for _, r := range p.rows {
		if best.Value > 0 && r.Of == "" && strings.HasPrefix(r.Case, "ring3 burst=32") {
			r.Of, r.Other, r.Ratio = best.Case, best.Value, r.Value/best.Value
			if err := p.emit(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// boot boots a VM, measures in it and prints the rows.
func (p *program) boot(ctx context.Context, plan row.Plan, c vm.Config) error {
	m, err := vm.Start(ctx, c)
	if err != nil {
		return err
	}
	defer m.Close()
	arg, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	pr, pw := io.Pipe()
	printed := make(chan error, 1)
	go func() { printed <- p.print(pr) }()
	exit, err := m.Run(ctx, grace, wire.Command{Argv: []string{guestPath, "measure", string(arg)}, Root: true, Memlock: memlock}, func(b []byte) {
		_, _ = pw.Write(b) // print reads to the end
	})
	pw.Close()
	err = errors.Join(err, <-printed)
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("measuring in the VM: exit status %d %s\n%s", exit.Code, exit.Err, m.Tail())
	}
	return err
}

// print prints rows as they come; what is no row is said as it is.
func (p *program) print(r io.Reader) (err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var x row.Row
		if json.Unmarshal(lines.Bytes(), &x) != nil {
			fmt.Fprintln(p.stderr, lines.Text())
			continue
		}
		err = errors.Join(err, p.emit(x))
	}
	_, _ = io.Copy(io.Discard, r)
	return errors.Join(err, lines.Err())
}

// emit prints a row.
func (p *program) emit(r row.Row) error {
	p.rows = append(p.rows, r)
	if p.asJSON {
		return json.NewEncoder(p.stdout).Encode(r)
	}
	_, err := fmt.Fprintln(p.stdout, r)
	return err
}
