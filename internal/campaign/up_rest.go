package campaign

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// upUse is what a supervisor uses.
type upUse struct {
	Descriptors int `json:"descriptors"`
	Threads     int `json:"threads"`
	Goroutines  int `json:"goroutines"`
	KiB         int `json:"kib"` // of memory
	Mounts      int `json:"mounts"`
	Processes   int `json:"processes"` // below it
	Files       int `json:"files"`     // in its run folder
}

// upRests are what an instance used at rest, at first and in the end.
type upRests struct {
	Group string `json:"group"`
	First upUse  `json:"first"`
	Last  upUse  `json:"last"`
}

// What may be more than at first without being a leak: the runtime's threads and memory come and go.
const (
	upMoreThreads = 12
	upMoreKiB     = 48 << 10
)

// usage is what the supervisor uses now.
func (in *upInstance) usage() (u upUse, err error) {
	proc := fmt.Sprintf("/proc/%d", in.process.PID())
	files, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return u, err
	}
	u.Descriptors = len(files)
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		switch {
		case len(f) < 2:
		case f[0] == "Threads:":
			u.Threads, _ = strconv.Atoi(f[1])
		case f[0] == "VmRSS:":
			u.KiB, _ = strconv.Atoi(f[1])
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return u, err
	}
	u.Mounts = strings.Count(string(mounts), " "+in.dir+"/")
	u.Processes = below(in.process.PID())
	// The tree is not looked into: its files are the drivers'.
	err = filepath.WalkDir(in.info.Dir, func(p string, d fs.DirEntry, err error) error {
		u.Files++
		if d != nil && d.IsDir() && d.Name() == "tree" {
			return filepath.SkipDir
		}
		return err
	})
	if err == nil {
		u.Goroutines, err = in.goroutines()
	}
	return u, err
}

// below counts the processes below one.
func below(pid int) (n int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		for _, text := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(text); err == nil {
				n += 1 + below(child)
			}
		}
	}
	return n
}

// more says what of u is more than it was; "": nothing.
func (u upUse) more(was upUse) string {
	var all []string
	for _, x := range []struct {
		what         string
		was, is, may int
	}{
		{"descriptors", was.Descriptors, u.Descriptors, 0}, {"threads", was.Threads, u.Threads, upMoreThreads}, {"goroutines", was.Goroutines, u.Goroutines, 0},
		{"KiB of memory", was.KiB, u.KiB, upMoreKiB}, {"mounts", was.Mounts, u.Mounts, 0}, {"processes", was.Processes, u.Processes, 0}, {"files", was.Files, u.Files, 0},
	} {
		if x.is > x.was+x.may {
			all = append(all, fmt.Sprintf("%d %s, at first %d", x.is, x.what, x.was))
		}
	}
	return strings.Join(all, ", ")
}

// settle takes the first look, once the processes are those that there are at rest. Goroutines come and go there too: of some looks the most counts.
func (in *upInstance) settle(ctx context.Context) error {
	in.turn.Lock()
	defer in.turn.Unlock()
	same := 0
	for end := time.Now().Add(upRest); same < 6; time.Sleep(20 * time.Millisecond) {
		u, err := in.usage()
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(end):
			return fmt.Errorf("it does not come to rest: %+v", u)
		}
		if same++; u.Processes != in.first.Processes || u.Files != in.first.Files || u.Descriptors != in.first.Descriptors {
			same, in.first.Goroutines = 0, 0
		}
		u.Goroutines = max(u.Goroutines, in.first.Goroutines)
		in.first = u
	}
	in.last = in.first
	return nil
}

// resting looks, between batches, that the instance uses no more than at first, and that the pair beside has lost nothing.
func (in *upInstance) resting(ctx context.Context) error {
	if in.broken.Load() {
		if in.stopBeside != nil {
			return in.stopBeside()
		}
		return nil
	}
	in.turn.Lock()
	defer in.turn.Unlock()
	if err := in.besideCounts(ctx); err != nil {
		return classError{"beside", err}
	}
	for end := time.Now().Add(upRest); ; {
		u, err := in.usage()
		if err != nil {
			return classError{"supervisor", err}
		}
		in.last = u
		more := u.more(in.first)
		switch {
		case more == "":
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(end):
			return classError{"leak", fmt.Errorf("at rest the supervisor has %s", more)}
		}
		time.Sleep(50 * time.Millisecond) // nothing tells when
	}
}
