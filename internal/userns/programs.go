package userns

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// modprobe is the program of that name inside. Scripts load the module that they are about to use, and ring3's
// (pktgen, the drivers) are always there: asking for them is no error, as for what is built into a kernel, and never loads the
// machine's. An entry of /sys/module that is a link leads to the machine's (package node); ours are directories.
const modprobe = `#!/bin/sh
# modprobe inside ring3 shell: what ring3 has is there; all else is up to the machine's modprobe.
own=${0%/*}
PATH=${PATH#"$own":}:/usr/sbin:/sbin
remove='' ours='' theirs=''
for arg; do
	case $arg in
	-r | --remove) remove=1 ;;
	-a | -b | -f | -q | -s | -v | --all | --use-blacklist | --force | --quiet | --syslog | --verbose | *=*) ;;
	-*) theirs=1 ;;
	*)
		name=$(printf %s "$arg" | tr - _)
		if [ -d "/sys/module/$name" ] && ! [ -L "/sys/module/$name" ]; then
			ours=$arg
		else
			theirs=1
		fi
		;;
	esac
done
if [ -n "$ours" ] && [ -z "$theirs" ]; then
	[ -z "$remove" ] && exit
	echo "modprobe: FATAL: Module $ours is builtin." >&2
	exit 1
fi
if ! command -v modprobe >/dev/null; then
	echo "modprobe: FATAL: this machine has no modprobe, and ring3 no such module: $*" >&2
	exit 1
fi
exec modprobe "$@"
`

// programDir is where they are: a file system of its own, for the one at Plan.Old is not for executing.
func programDir(old string) string { return old + "/bin" }

// layPrograms makes a plan's programs.
func layPrograms(p Plan) error {
	if len(p.Programs) == 0 {
		return nil
	}
	dir := programDir(p.Old)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := mount("ring3", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=1m"); err != nil {
		return fmt.Errorf("mounting a tmpfs at %s: %w", dir, err)
	}
	for name, text := range p.Programs {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// findPrograms puts them first in PATH.
func findPrograms(p Plan) error {
	if len(p.Programs) == 0 {
		return nil
	}
	path := programDir(p.Old)
	if had := os.Getenv("PATH"); had != "" {
		path += string(os.PathListSeparator) + had
	}
	return os.Setenv("PATH", path)
}

// layFiles puts a plan's files over the machine's.
func layFiles(p Plan) error {
	if len(p.Files) == 0 {
		return nil
	}
	dir := p.Old + "/files"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	n := 0
	for path, text := range p.Files {
		from := filepath.Join(dir, fmt.Sprint(n))
		n++
		if err := os.WriteFile(from, []byte(text), 0o644); err != nil {
			return err
		}
		if err := bind(from, path); err != nil {
			return fmt.Errorf("laying another %s: %w", path, err)
		}
	}
	return nil
}
