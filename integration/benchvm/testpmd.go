package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ring3dev/ring3/integration/vm"
)

// findTestpmd is the folder that hack/dpdk prints.
func findTestpmd(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("looking for the checkout: %w", err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(strings.TrimSpace(string(out)), "hack/dpdk"))
	var said bytes.Buffer
	cmd.Stderr = &said
	if out, err = cmd.Output(); err != nil {
		lines := strings.Split(strings.TrimSpace(said.String()), "\n")
		return "", errors.New(strings.TrimPrefix(lines[len(lines)-1], "dpdk: "))
	}
	return strings.TrimSpace(string(out)), nil
}

// addTestpmd puts testpmd into the image, its two drivers, and of the libraries those that these need.
func addTestpmd(image *vm.Image, dir string) error {
	pmds, err := filepath.Glob(filepath.Join(dir, "pmds/*.so*"))
	if err != nil || len(pmds) == 0 {
		return fmt.Errorf("%s has no drivers", dir)
	}
	loaders, err := filepath.Glob(filepath.Join(dir, "lib/ld-linux*.so*"))
	if err != nil || len(loaders) != 1 {
		return fmt.Errorf("%s has loaders %q, want one", dir, loaders)
	}
	// The last is loaded by name.
	todo := append(append(pmds, filepath.Join(dir, "bin/dpdk-testpmd"), loaders[0]), filepath.Join(dir, "lib/libgcc_s.so.1"))
	done := map[string]bool{}
	for len(todo) > 0 {
		file := todo[0]
		if todo = todo[1:]; done[file] {
			continue
		}
		done[file] = true
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		image.AddFile(filepath.Join(testpmdPath, rel), file, 0o755)
		f, err := elf.Open(file)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		needed, err := f.ImportedLibraries()
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, name := range needed {
			todo = append(todo, filepath.Join(dir, "lib", name))
		}
	}
	return nil
}
