package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// What is written down when a driver dies.

// maxReports is how many reports are kept, of all instances of a user.
const maxReports = 100

// maxReport bounds one, in bytes: a worker has a say in what is in it.
const maxReport = 1 << 20

// reportsDir is where reports of deaths go: below $XDG_STATE_HOME, or the home directory.
func reportsDir() (string, error) {
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) {
		home, err := os.UserHomeDir()
		if err == nil {
			_, err = os.Stat(home) // none is made for it
		}
		if err != nil {
			return "", err
		}
		state = filepath.Join(home, ".local", "state")
	}
	dir := filepath.Join(state, "ring3", "deaths")
	return dir, os.MkdirAll(dir, 0o700)
}

// report writes down why a worker died, and what was known of it.
func (ch *charge) report(w *worker, cause, hardware error) {
	ch.mu.Lock()
	n := ch.deaths.count
	at := ch.deaths.at
	ch.mu.Unlock()
	name := fmt.Sprintf("%s-%d-%s-%d.txt", at.UTC().Format("20060102T150405.000"), os.Getpid(), ch.devices[0], n)
	path, err := writeReport(name, ch.reportText(w, cause, hardware))
	if err != nil {
		ch.s.complainOnce(fmt.Sprintf("no report of deaths is kept: %v", err))
		return
	}
	ch.mu.Lock()
	ch.deaths.report = path
	ch.mu.Unlock()
	ch.s.log.Info(fmt.Sprintf("%s: report of its death: %s", ch.Name, path))
}

// writeReport writes one, and removes the oldest ones.
func writeReport(name, text string) (string, error) {
	dir, err := reportsDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text[:min(len(text), maxReport)]), 0o600); err != nil {
		return "", err
	}
	all, err := os.ReadDir(dir)
	if err != nil {
		return path, nil
	}
	all = slices.DeleteFunc(all, func(e fs.DirEntry) bool { return !strings.HasSuffix(e.Name(), ".txt") })
	for i := range max(0, len(all)-maxReports) { // their names begin with the time
		if err := os.Remove(filepath.Join(dir, all[i].Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return path, nil
}

// reportText is what a report says.
func (ch *charge) reportText(w *worker, cause, hardware error) string {
	var b strings.Builder
	section := func(title, text string) {
		if text = strings.TrimRight(text, "\n"); text != "" {
			fmt.Fprintf(&b, "\n%s\n", title)
			for l := range strings.SplitSeq(printable(text), "\n") {
				fmt.Fprintf(&b, "    %s\n", l)
			}
		}
	}
	ch.mu.Lock()
	d := ch.deaths
	infos := slices.Clone(ch.infos)
	book := ch.ledger
	counters := book.Snapshot()
	ch.mu.Unlock()
	fmt.Fprintf(&b, "ring3: a driver died\n\ngroup    %s\ncause    %s\ntime     %s\ndeath    %d of this group, %d in a row before its devices had worked for %v\n",
		ch.Name, printable(cause.Error()), d.at.Format(time.RFC3339Nano), d.count, d.early, workedTime)
	fmt.Fprintf(&b, "versions supervisor %s, worker %s\n", version(), printable(d.version))
	if hardware != nil {
		fmt.Fprintf(&b, "devices  they could not be stopped: %s\n", printable(hardware.Error()))
	}
	if w != nil {
		fmt.Fprintf(&b, "process  %d: %s\n", w.p.PID(), w.ended())
		if !w.since.IsZero() {
			fmt.Fprintf(&b, "worked   %v\n", d.at.Sub(w.since).Round(time.Millisecond))
		}
	}
	var lines strings.Builder
	for _, v := range infos {
		fmt.Fprintln(&lines, v.line())
	}
	section("devices, as they were", lines.String())
	if w != nil {
		w.mu.Lock()
		report, seen := w.report, slices.Clone(w.seen)
		w.mu.Unlock()
		lines.Reset()
		for _, v := range seen {
			fmt.Fprintf(&lines, "%s %s: %s\n", v.Kind, v.Device, v.Text)
		}
		section("what its watchdog saw", lines.String())
		if report != nil {
			section("its last words", report.Cause)
			section("stack", report.Stack)
			for _, v := range report.Devices {
				section(fmt.Sprintf("%s (%s at %s, driver %s): last accesses", v.Name, v.Backend, v.Address, v.Driver), strings.Join(v.Accesses, "\n"))
				lines.Reset()
				for _, name := range sortedKeys(v.Registers) {
					fmt.Fprintf(&lines, "%-16s %s\n", name, v.Registers[name])
				}
				section(v.Name+": registers, as seen last", lines.String())
			}
		}
		for _, v := range infos {
			if report == nil || !slices.ContainsFunc(report.Devices, func(o deviceReport) bool { return o.Name == v.Name && len(o.Accesses) > 0 }) {
				section(fmt.Sprintf("%s (%s at %s, driver %s): last accesses", v.Name, v.Backend, v.Address, v.Driver), strings.Join(lastAccesses(book, v, ch.s.c.Drivers, reportAccesses), "\n"))
			}
		}
		section("what it wrote to stderr", string(w.p.Stderr()))
	}
	lines.Reset()
	for _, name := range sortedKeys(counters) {
		fmt.Fprintf(&lines, "%-40s %d\n", name, counters[name])
	}
	section("counters", lines.String())
	return b.String()
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// printable keeps a worker's text from steering a terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' && c != '\n' && c != '\t' || c >= 0x7f && c < 0xa0 {
			return '?'
		}
		return c
	}, s)
}
