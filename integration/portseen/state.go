package portseen

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Roots are the folders to look at.
type Roots struct {
	Sys string // "/sys"
	Dev string // "/dev"
	// Kernel is the kernel's /sys where Sys has ports alone, driven by UIO: what is behind them is looked for there, and is no part of a
	// recording. "": Sys has all.
	Kernel string
}

// device is the folder of a device of the topology.
func (r Roots) device(addr string) string {
	at := filepath.Join("bus/pci/devices", addr)
	if _, err := os.Lstat(filepath.Join(r.Sys, at)); err != nil && r.Kernel != "" {
		return filepath.Join(r.Kernel, at)
	}
	return filepath.Join(r.Sys, at)
}

// state is what files say, by what they are called in a recording.
type state map[string]string

// files of a PCI device that are of interest, beside its counters: those that only show something, and those that do something when
// they are written.
var (
	shown  = []string{"class", "vendor", "device", "driver_override", "reset_method", "uevent"}
	pushed = []string{"remove", "rescan", "reset", "reset_subordinate"}
)

// look reads all of interest.
func (r *Recorder) look() (state, error) {
	s := state{}
	r.dirs = map[string]*os.Root{}
	defer func() {
		for _, d := range r.dirs {
			_ = d.Close()
		}
	}()
	for _, look := range []func(state) error{r.devices, r.slots, r.services, r.drivers} {
		if err := look(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// dir is a folder of Sys, open while the recorder looks: a path is looked up part by part, which through FUSE is what takes longest.
func (r *Recorder) dir(dir string) (*os.Root, error) {
	if d := r.dirs[dir]; d != nil {
		return d, nil
	}
	d, err := os.OpenRoot(filepath.Join(r.Roots.Sys, dir))
	if err == nil {
		r.dirs[dir] = d
	}
	return d, err
}

// list are the names in a folder, none where it is not there.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// file adds a file: its mode, and what it says. What has gone meanwhile is left out.
func (r *Recorder) file(s state, dir, name string) { r.fileAs(s, dir, name, "") }

// fileAs adds a file that says something of its own kind.
func (r *Recorder) fileAs(s state, dir, name, text string) {
	at, err := r.dir(dir)
	if err != nil {
		return
	}
	key := r.names.normal(filepath.Join(dir, name))
	fi, err := at.Lstat(name)
	if err != nil {
		return
	}
	switch mode := fi.Mode(); {
	case mode&os.ModeSymlink != 0:
		to, err := at.Readlink(name)
		if err == nil {
			s[key] = "-> " + r.names.normal(to)
		}
		return
	case mode.IsDir():
		s[key] = mode.String()
		return
	case mode&0o444 == 0 || text != "":
		s[key] = strings.TrimSpace(mode.String() + " " + text)
		return
	default:
		p, err := at.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return
		}
		if err != nil {
			p = []byte(errno(err))
		}
		said := strings.ReplaceAll(strings.TrimSuffix(string(p), "\n"), "\n", " ")
		s[key] = strings.TrimSpace(mode.String() + " " + r.names.normal(said))
	}
}

// devices are the PCI devices of the topology.
func (r *Recorder) devices(s state) error {
	const dir = "bus/pci/devices"
	addrs, err := list(filepath.Join(r.Roots.Sys, dir))
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		if r.names.name(addr) == "" {
			continue
		}
		r.file(s, dir, addr)
		at := filepath.Join(dir, addr)
		for _, f := range slices.Concat(shown, pushed) {
			r.file(s, at, f)
		}
		if d, err := r.dir(at); err == nil {
			if to, err := d.Readlink("driver"); err == nil {
				s[r.names.normal(at+"/driver")] = "-> " + r.names.normal(to)
			}
		}
		r.counters(s, at)
	}
	return nil
}

// counters adds the names of counters, and those that are not 0.
func (r *Recorder) counters(s state, dir string) {
	for _, f := range []string{"aer_rootport_total_err_cor", "aer_rootport_total_err_fatal", "aer_rootport_total_err_nonfatal"} {
		r.file(s, dir, f)
	}
	for _, f := range []string{"aer_dev_correctable", "aer_dev_fatal", "aer_dev_nonfatal"} {
		at, err := r.dir(dir)
		if err != nil {
			return
		}
		p, err := at.ReadFile(f)
		if err != nil {
			continue
		}
		var named []string
		for line := range strings.Lines(string(p)) {
			name, n, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			named = append(named, name)
			if n != "0" {
				s[r.names.normal(filepath.Join(dir, f))+" "+name] = n
			}
		}
		r.fileAs(s, dir, f, strings.Join(named, " "))
	}
}

// slots are those of the topology's ports, by their numbers.
func (r *Recorder) slots(s state) error {
	const dir = "bus/pci/slots"
	slots, err := list(filepath.Join(r.Roots.Sys, dir))
	if err != nil {
		return err
	}
	for _, slot := range slots {
		at := filepath.Join(dir, slot)
		addr, err := os.ReadFile(filepath.Join(r.Roots.Sys, at, "address"))
		if err != nil || !r.names.has(strings.TrimSpace(string(addr))) {
			continue
		}
		r.file(s, dir, slot)
		files, err := list(filepath.Join(r.Roots.Sys, at))
		if err != nil {
			return err
		}
		for _, f := range files {
			r.file(s, at, f)
		}
	}
	return nil
}

// services are the devices on the bus pci_express.
func (r *Recorder) services(s state) error {
	const dir = "bus/pci_express/devices"
	devices, err := list(filepath.Join(r.Roots.Sys, dir))
	if err != nil {
		return err
	}
	for _, d := range devices {
		if !r.names.has(d) {
			continue
		}
		r.file(s, dir, d)
		for _, f := range []string{"driver", "subsystem", "uevent"} {
			r.file(s, filepath.Join(dir, d), f)
		}
	}
	return nil
}

// ports is the name of what drives ports.
const ports = "bus/pci/drivers/pcieport"

// drivers are those of services and of ports, and the files of the buses.
func (r *Recorder) drivers(s state) error {
	for _, f := range []string{"drivers_autoprobe", "drivers_probe", "rescan"} {
		r.file(s, "bus/pci", f)
		r.file(s, "bus/pci_express", f)
	}
	dirs := []string{ports}
	drivers, err := list(filepath.Join(r.Roots.Sys, "bus/pci_express/drivers"))
	if err != nil {
		return err
	}
	for _, d := range drivers {
		dirs = append(dirs, filepath.Join("bus/pci_express/drivers", d))
	}
	for _, dir := range dirs {
		files, err := list(filepath.Join(r.Roots.Sys, dir))
		if err != nil {
			return err
		}
		for _, f := range files {
			// Links are to devices, of which some may be no part of the topology.
			if !strings.Contains(f, ":") || r.names.has(f) {
				r.file(s, dir, f)
			}
		}
	}
	return nil
}

// difference are the lines for what changed. What has gone with all that was in it is one line.
func difference(old, now state) []string {
	var lines []string
	keys := slices.Sorted(maps.Keys(old))
	for k := range now {
		if _, had := old[k]; !had {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	gone := ""
	for _, k := range keys {
		if gone != "" && strings.HasPrefix(k, gone+"/") {
			continue
		}
		was, had := old[k]
		is, has := now[k]
		if had && (!has || was != is) {
			lines = append(lines, fmt.Sprintf("-    %s: %s", k, was))
			if !has {
				gone = k
			}
		}
		if has && (!had || was != is) {
			lines = append(lines, fmt.Sprintf("+    %s: %s", k, is))
		}
	}
	return lines
}
