package vm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// uRootCommands of u-root's serve where this machine's programs cannot run.
var uRootCommands = strings.Fields(`cat chmod cp date dd df dirname dmesg echo find free gosh grep head hexdump id ip kill
	ln ls lsmod mkdir mktemp more mount mv pci ping ps pwd readlink rm seq sleep sort strace stty tail tee timeout touch tr umount uname uniq wc which xargs`)

// AddURoot puts u-root's commands for an architecture into the VM, as one program with many
// names, and its shell as /bin/sh. They are built the first time, which takes a minute.
func (i *Image) AddURoot(arch string) error {
	archive, err := uRoot(arch)
	if err != nil {
		return fmt.Errorf("u-root's commands for the VM: %w", err)
	}
	f, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("u-root's commands for the VM: %w", err)
	}
	defer f.Close()
	r := cpio.Newc.Reader(f)
	for {
		rec, err := r.ReadRecord()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("u-root's commands for the VM: %w", err)
		}
		name, ok := strings.CutPrefix(rec.Name, "bbin/")
		switch {
		case !ok:
		case name == "bb":
			b := make([]byte, rec.FileSize)
			if _, err := rec.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("u-root's commands for the VM: %w", err)
			}
			i.AddData("/bbin/bb", b, 0o755)
		case name == "gosh":
			i.AddLink("/bin/sh", "/bbin/bb")
			fallthrough
		default:
			i.AddLink("/bin/"+name, "/bbin/bb")
		}
	}
}

// uRoot is the archive with u-root's commands, in this user's cache.
func uRoot(arch string) (string, error) {
	dir, err := top()
	if err != nil {
		return "", err
	}
	list := exec.Command("go", "list", "-m", "-f", "{{.Version}} {{.Dir}}", "github.com/u-root/u-root")
	list.Dir = dir
	out, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("looking for its source: %w", err)
	}
	version, source, ok := strings.Cut(strings.TrimSpace(string(out)), " ")
	if !ok {
		return "", errors.New("its source is not in the module cache; run go mod download")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "ring3", "u-root", version+"-"+arch)
	archive := filepath.Join(cache, "commands.cpio")
	if _, err := os.Stat(archive); err == nil {
		return archive, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(cache, ".new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	builder := filepath.Join(tmp, "u-root")
	if err := goIn(source, hostArch, "go", "build", "-o", builder, "."); err != nil {
		return "", err
	}
	argv := []string{builder, "-o", filepath.Join(tmp, "cpio"), "-initcmd=", "-defaultsh=gosh"}
	for _, c := range uRootCommands {
		argv = append(argv, "./cmds/core/"+c)
	}
	if err := goIn(source, arch, argv...); err != nil {
		return "", err
	}
	return archive, os.Rename(filepath.Join(tmp, "cpio"), archive)
}
