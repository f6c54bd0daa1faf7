//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/integration/vm/wire"
)

// modprobeMain is the program modprobe, as far as the kernel and scripts use it here:
// modprobe [-q] [-a] [--] NAME [PARAMETER=VALUE...].
func modprobeMain(args []string) error {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		args = args[1:]
	}
	if len(args) == 0 {
		return errors.New("which module?")
	}
	return modprobe(args[0], args[1:])
}

// modprobe loads a module and first those that it needs.
func modprobe(name string, params []string) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("modprobe %s: %w", name, err)
	}
	dir := fmt.Sprintf(wire.ModulesDep, unix.ByteSliceToString(uts.Release[:]))
	// A line is a module, a colon, and what it needs: what is to be loaded first comes last.
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return fmt.Errorf("modprobe %s: %w", name, err)
	}
	for _, line := range strings.Split(string(dep), "\n") {
		file, needs, _ := strings.Cut(line, ":")
		if moduleName(file) != moduleName(name) {
			continue
		}
		files := strings.Fields(needs)
		for i := len(files) - 1; i >= 0; i-- {
			if err := insert(filepath.Join(dir, files[i]), ""); err != nil {
				return err
			}
		}
		return insert(filepath.Join(dir, file), strings.Join(params, " "))
	}
	// Part of the kernel. Not all of those are below /sys/module.
	if _, err := os.Stat("/sys/module/" + moduleName(name)); err == nil {
		return nil
	}
	builtin, _ := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	for _, file := range strings.Fields(string(builtin)) {
		if moduleName(file) == moduleName(name) {
			return nil
		}
	}
	return fmt.Errorf("modprobe %s: not in this VM; name it in Config.Modules", name)
}

// moduleName is what the kernel calls the module in a file.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
}

func insert(file, params string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("modprobe: %w", err)
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), params, 0)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("modprobe %s: %w", filepath.Base(file), err)
	}
	return nil
}
