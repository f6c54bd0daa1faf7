package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ring3dev/ring3/host"
)

// Rows "contain": what drivers in workers cost beside drivers in the process of `ring3 up`, and how long one that is killed, or exchanged, is out of
// service.

// containUp is a `ring3 up` of two wired NICs, with its tree mounted.
type containUp struct {
	self, name, tree string
	cmd              *exec.Cmd
}

// containName keeps instances of a benchmark apart.
func containName(mode string) string { return fmt.Sprintf("bench-%s-%d", mode, os.Getpid()) }

func startContain(ctx context.Context, o *Options, model, mode string) (_ *containUp, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	u := &containUp{self: self, name: containName(mode)}
	u.cmd = exec.Command(self, "up", "-i", u.name, "--deaths", "1000000", "--supervise="+mode, "eth0="+model, "eth1="+model, "--wire", "eth0-eth1")
	u.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	u.cmd.Stderr = o.Stderr
	out, err := u.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := u.cmd.Start(); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = u.cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	ready := false
	for lines := bufio.NewScanner(out); !ready && lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), "tree: "); ok {
			u.tree = v
		}
		ready = strings.Contains(lines.Text(), " is ready ")
	}
	if !ready || u.tree == "" {
		return nil, errors.Join(errors.New("bench: contain: ring3 up did not come up"), u.close())
	}
	for _, c := range [][2]string{{"kpktgend_0", "add_device eth0"}, {"eth0", "pkt_size 60"}, {"eth0", "burst 32"}, {"eth0", "count 0"}, {"eth0", "dst_mac 52:54:00:12:34:57"}} {
		if err := u.set(c[0], c[1]); err != nil {
			return nil, errors.Join(err, u.close())
		}
	}
	return u, nil
}

func (u *containUp) close() error {
	_ = u.cmd.Process.Signal(syscall.SIGTERM)
	return u.cmd.Wait()
}

func (u *containUp) file(name string) string { return filepath.Join(u.tree, "proc/net/pktgen", name) }

func (u *containUp) set(name, value string) error {
	f, err := os.OpenFile(u.file(name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value + "\n")
	return errors.Join(err, f.Close())
}

// device is what `ring3 ls` says of eth0.
func (u *containUp) device(ctx context.Context) (d host.DeviceInfo, err error) {
	b, err := exec.CommandContext(ctx, u.self, "ls", "-json", "-i", u.name).Output()
	var all []host.DeviceInfo
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil || len(all) == 0 {
		return d, fmt.Errorf("bench: contain: ring3 ls: %d devices: %w", len(all), err)
	}
	return all[0], nil
}

// read is the time of an open, a read and a close of a control file, in ns.
func (u *containUp) read(t time.Duration) (float64, error) {
	buf := make([]byte, 4096)
	start, n := time.Now(), 0
	for time.Since(start) < t {
		f, err := os.Open(u.file("pgctrl"))
		if err != nil {
			return 0, err
		}
		_, err = f.Read(buf)
		if err = errors.Join(err, f.Close()); err != nil {
			return 0, err
		}
		n++
	}
	return float64(time.Since(start).Nanoseconds()) / float64(n), nil
}

// send is how many packets a second pktgen sends.
func (u *containUp) send(t time.Duration) (float64, error) {
	done := make(chan error, 1)
	go func() { done <- u.set("pgctrl", "start") }()
	time.Sleep(t)
	if err := u.set("pgctrl", "stop"); err != nil {
		return 0, err
	}
	if err := <-done; err != nil {
		return 0, err
	}
	b, err := os.ReadFile(u.file("eth0"))
	if err != nil {
		return 0, err
	}
	var pps float64
	i := bytes.LastIndex(b, []byte("pps"))
	if i < 0 {
		return 0, fmt.Errorf("bench: contain: pktgen says no rate: %s", b)
	}
	at := bytes.LastIndexAny(b[:i], " \n")
	_, err = fmt.Sscan(string(b[at+1:i]), &pps)
	return pps, err
}

// contain measures all of it.
func contain(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, model := range []string{"sim:e1000e", "qemu:e1000e"} {
		pairs := []string{"read " + model, "pktgen-tx " + model}
		if o.wantsAny("contain", pairs) {
			if err := containPairs(ctx, o, model, pairs, emit); err != nil {
				return err
			}
		}
		deaths := []string{"kill p50 " + model, "kill p99 " + model, "reload p50 " + model, "reload p99 " + model}
		if o.wantsAny("contain", deaths) {
			if err := containDeaths(ctx, o, model, deaths, emit); err != nil {
				return err
			}
		}
	}
	return nil
}

// containPairs compares on with off, in turn.
func containPairs(ctx context.Context, o *Options, model string, cases []string, emit func(Row) error) (err error) {
	var ups []*containUp
	defer func() {
		for _, u := range ups {
			err = errors.Join(err, u.close())
		}
	}()
	for _, mode := range []string{"on", "off"} {
		u, err := startContain(ctx, o, model, mode)
		if err != nil {
			return err
		}
		ups = append(ups, u)
	}
	for i, f := range []func(*containUp, time.Duration) (float64, error){(*containUp).read, (*containUp).send} {
		if !o.wants("contain", cases[i]) {
			continue
		}
		var on, off, ratios []float64
		for range o.Pairs {
			x, err := f(ups[0], o.Time)
			if err != nil {
				return err
			}
			y, err := f(ups[1], o.Time)
			if err != nil {
				return err
			}
			on, off, ratios = append(on, x), append(off, y), append(ratios, x/y)
		}
		row := Row{Bench: "contain", Case: cases[i], Unit: "ns", Most: 1.5, Value: median(on), Limit: median(off), Samples: slices.Clone(ratios), Ratio: median(ratios)}
		if i == 1 {
			row.Unit, row.Wanted, row.Most = "pps", 0.98, 0
		}
		if err := emit(row); err != nil {
			return err
		}
	}
	return nil
}

// containKills is how often a driver is killed, and exchanged, while it sends. A driver must have worked for a second before its death, or it is given up.
const (
	containKills = 10
	containRest  = 1100 * time.Millisecond
)

func containDeaths(ctx context.Context, o *Options, model string, cases []string, emit func(Row) error) (err error) {
	u, err := startContain(ctx, o, model, "on")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.close()) }()
	done := make(chan error, 1)
	go func() { done <- u.set("pgctrl", "start") }()
	var kills, reloads []float64
	for n := 1; n <= containKills; n++ {
		time.Sleep(containRest)
		d, err := u.device(ctx)
		if err == nil {
			err = syscall.Kill(d.Worker, syscall.SIGKILL)
		}
		for err == nil && (d.Restarts < n || d.Recovery == 0) {
			time.Sleep(20 * time.Millisecond)
			d, err = u.device(ctx)
		}
		if err != nil {
			return err
		}
		kills = append(kills, d.Recovery)
	}
	for range containKills {
		b, err := exec.CommandContext(ctx, u.self, "reload", "-json", "-i", u.name, "eth0").Output()
		var r struct {
			Outage float64 `json:"outage_ms"`
		}
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err != nil {
			return fmt.Errorf("bench: contain: ring3 reload: %w", err)
		}
		reloads = append(reloads, r.Outage)
	}
	if err := errors.Join(u.set("pgctrl", "stop"), <-done); err != nil {
		return err
	}
	for i, samples := range [][]float64{kills, kills, reloads, reloads} {
		sorted := slices.Sorted(slices.Values(samples))
		row := Row{Bench: "contain", Case: cases[i], Unit: "ms", Samples: samples, Value: sorted[len(sorted)/2]}
		if i%2 == 1 {
			row.Value = sorted[len(sorted)*99/100]
		}
		if !o.wants(row.Bench, row.Case) {
			continue
		}
		if err := emit(row); err != nil {
			return err
		}
	}
	return nil
}
