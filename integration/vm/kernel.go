package vm

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// kernel is a folder as hack/kernel makes it.
type kernel struct {
	image   string
	release string
	dir     string            // of its modules
	modules map[string]string // by name: file, from dir
}

// kernelDir is the folder of the kernel for an architecture, which is fetched the first time.
func kernelDir(arch string) (string, error) {
	top, err := top()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(filepath.Join(top, "hack/kernel"), arch)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("hack/kernel %s: %w\n%s", arch, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// Programs is where an Image takes the programs for a VM of an architecture from (Image.Root):
// "" where it is this machine's.
func Programs(arch string) (string, error) {
	if orHost(arch) == hostArch {
		return "", nil
	}
	dir, err := kernelDir(arch)
	if err != nil {
		return "", err
	}
	root := filepath.Join(dir, "root")
	if _, err := os.Stat(root); err != nil {
		return "", fmt.Errorf("programs for %s: %w", arch, err)
	}
	return root, nil
}

// findKernel looks at the kernel in dir, or hack/kernel's for an architecture.
func findKernel(dir, arch string) (*kernel, error) {
	if dir == "" {
		var err error
		if dir, err = kernelDir(arch); err != nil {
			return nil, err
		}
	}
	releases, err := os.ReadDir(filepath.Join(dir, "lib/modules"))
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	if len(releases) != 1 {
		return nil, fmt.Errorf("kernel: %s/lib/modules has %d folders, want one, named as the release", dir, len(releases))
	}
	k := &kernel{image: filepath.Join(dir, "vmlinuz"), release: releases[0].Name(), modules: map[string]string{}}
	k.dir = filepath.Join(dir, "lib/modules", k.release)
	err = filepath.WalkDir(k.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".ko") {
			return err
		}
		rel, err := filepath.Rel(k.dir, path)
		k.modules[moduleName(path)] = rel
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("kernel: looking for modules: %w", err)
	}
	return k, nil
}

// moduleName is what the kernel calls a module.
func moduleName(s string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(s), ".ko"), "-", "_")
}

// addModules puts modules into an image, those that they need, and a modules.dep.
func (k *kernel) addModules(i *Image, names []string) error {
	builtin, err := k.builtin()
	if err != nil {
		return err
	}
	needs := map[string][]string{} // all that a module needs, what is to be loaded first last
	var add func(name string, above []string) error
	add = func(name string, above []string) error {
		name = moduleName(name)
		if _, done := needs[name]; done || builtin[name] {
			return nil
		}
		file := k.modules[name]
		switch {
		case file == "":
			return fmt.Errorf("kernel %s has no module %s", k.release, name)
		case slices.Contains(above, name):
			return fmt.Errorf("module %s needs itself: %v", name, above)
		}
		direct, err := depends(filepath.Join(k.dir, file))
		if err != nil {
			return err
		}
		var first []string
		for _, d := range direct {
			if err := add(d, append(above, name)); err != nil {
				return fmt.Errorf("%s needs %w", name, err)
			}
			if d = moduleName(d); !builtin[d] {
				first = append(first, needs[d]...)
				first = append(first, d)
			}
		}
		needs[name] = first
		i.AddFile(filepath.Join("/lib/modules", k.release, file), filepath.Join(k.dir, file), 0o644)
		return nil
	}
	for _, name := range names {
		if err := add(name, nil); err != nil {
			return err
		}
	}
	var dep bytes.Buffer
	for name, first := range needs {
		fmt.Fprintf(&dep, "%s:", k.modules[name])
		for j := len(first) - 1; j >= 0; j-- {
			// One that is needed twice belongs where it stands earliest in the order of loading.
			if slices.Index(first, first[j]) == j {
				fmt.Fprintf(&dep, " %s", k.modules[first[j]])
			}
		}
		dep.WriteByte('\n')
	}
	i.AddData(filepath.Join("/lib/modules", k.release, "modules.dep"), dep.Bytes(), 0o644)
	if len(builtin) > 0 {
		i.AddFile(filepath.Join("/lib/modules", k.release, "modules.builtin"), filepath.Join(k.dir, "modules.builtin"), 0o644)
	}
	return nil
}

// builtin are the modules that are part of the kernel.
func (k *kernel) builtin() (map[string]bool, error) {
	b, err := os.ReadFile(filepath.Join(k.dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	all := map[string]bool{}
	for _, line := range strings.Fields(string(b)) {
		all[moduleName(line)] = true
	}
	return all, nil
}

// depends reads what a module says that it needs.
func depends(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", file, err)
	}
	defer f.Close()
	info := f.Section(".modinfo")
	if info == nil {
		return nil, fmt.Errorf("module %s: no .modinfo", file)
	}
	b, err := info.Data()
	if err != nil {
		return nil, fmt.Errorf("module %s: reading .modinfo: %w", file, err)
	}
	for _, s := range strings.Split(string(b), "\x00") {
		if d, ok := strings.CutPrefix(s, "depends="); ok {
			return strings.FieldsFunc(d, func(r rune) bool { return r == ',' }), nil
		}
	}
	return nil, nil
}
