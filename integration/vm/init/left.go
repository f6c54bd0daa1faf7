//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// world is what a test must leave as it was.
type world struct {
	processes map[int]string
	mounts    map[string]bool // where something is mounted
}

func look() world {
	return world{processes: processes(), mounts: mountPoints()}
}

// processes are those that run, by their command lines, without the kernel's own.
func processes() map[int]string {
	all := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		// The name, in parentheses, may have blanks; state and parent come after it.
		s := string(stat)
		f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || len(f) < 2 || f[0] == "Z" || f[1] == "2" || pid == 2 {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		all[pid] = strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
	}
	return all
}

func mountPoints() map[string]bool {
	all := map[string]bool{}
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 4 {
			all[f[4]] = true
		}
	}
	return all
}

// leftTime is how long what a test started may take to notice its end.
const leftTime = 10 * time.Second

// cleanUp ends what there is now and was not before, and tells of it.
func (before world) cleanUp() string {
	var left []string
	for deadline := time.Now().Add(leftTime); ; time.Sleep(20 * time.Millisecond) {
		left = nil
		now := look()
		for pid, cmdline := range now.processes {
			if _, ok := before.processes[pid]; !ok {
				left = append(left, fmt.Sprintf("process %d: %s", pid, cmdline))
			}
		}
		for dir := range now.mounts {
			if !before.mounts[dir] {
				left = append(left, "mount at "+dir)
			}
		}
		if len(left) == 0 {
			return ""
		}
		if time.Now().After(deadline) {
			before.end(now)
			return strings.Join(left, "\n")
		}
	}
}

// end kills and unmounts what was not there before.
func (before world) end(now world) {
	for pid := range now.processes {
		if _, ok := before.processes[pid]; !ok {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	for dir := range now.mounts {
		if !before.mounts[dir] {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	}
}
