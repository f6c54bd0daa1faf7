package vm

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/ring3dev/ring3/integration/vm/wire"
)

// Image is the contents of a VM's root file system, beside what every VM has.
type Image struct {
	// Root is where AddProgram takes programs and libraries from: "" is this machine, see
	// Programs for another architecture.
	Root string

	files map[string]entry // by path in the VM
}

// entry is a file, or a symbolic link.
type entry struct {
	from string // file of this machine
	data []byte // or contents
	link string // or where it leads
	mode uint64
}

func (i *Image) put(path string, e entry) {
	if i.files == nil {
		i.files = map[string]entry{}
	}
	i.files[inUsr(path)] = e
}

// With is a copy that has one more file, with these contents.
func (i *Image) With(path, contents string) *Image {
	c := i.clone()
	c.AddData(path, []byte(contents), 0o644)
	return c
}

// clone is a copy that can be changed.
func (i *Image) clone() *Image { return &Image{Root: i.Root, files: maps.Clone(i.files)} }

// AddFile puts a file of this machine at path.
func (i *Image) AddFile(path, from string, mode uint64) { i.put(path, entry{from: from, mode: mode}) }

// AddData puts a file with these contents at path.
func (i *Image) AddData(path string, data []byte, mode uint64) {
	i.put(path, entry{data: data, mode: mode})
}

// AddLink puts a symbolic link at path.
func (i *Image) AddLink(path, to string) { i.put(path, entry{link: to}) }

// AddDir puts the files of a folder of this machine, and of those in it, below path.
func (i *Image) AddDir(path, from string) error {
	err := filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, file)
		if err == nil {
			i.AddFile(filepath.Join(path, rel), file, uint64(info.Mode().Perm()))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("files for the VM: %w", err)
	}
	return nil
}

// inUsr is where a path stands in the VM, whose /bin, /sbin and /lib are links into /usr.
func inUsr(path string) string {
	path = filepath.Clean(path)
	for _, dir := range []string{"/bin/", "/sbin/", "/lib/", "/lib64/"} {
		if strings.HasPrefix(path, dir) {
			return "/usr" + path
		}
	}
	return path
}

// AddProgram puts a program of this machine, or below Root, into the VM, at the same path,
// with the shared libraries that it needs. A name without a slash is looked for in PATH.
func (i *Image) AddProgram(name string) error {
	path, err := i.lookPath(name)
	if err != nil {
		return fmt.Errorf("program for the VM: %w", err)
	}
	return i.AddProgramAs(strings.TrimPrefix(path, i.Root), path)
}

func (i *Image) lookPath(name string) (string, error) {
	if i.Root == "" {
		return exec.LookPath(name)
	}
	for _, dir := range []string{"/usr/bin", "/bin", "/usr/sbin", "/sbin"} {
		path := filepath.Join(i.Root, dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

// AddProgramAs is AddProgram with another path in the VM, of a file anywhere.
func (i *Image) AddProgramAs(path, from string) error {
	fi, err := os.Stat(from)
	if err != nil {
		return fmt.Errorf("program for the VM: %w", err)
	}
	mode := uint64(fi.Mode().Perm())
	if fi.Mode()&os.ModeSetuid != 0 {
		mode |= cpio.S_ISUID
	}
	i.AddFile(path, from, mode)
	if err := i.addLibraries(from, nil); err != nil {
		return fmt.Errorf("libraries of %s: %w", from, err)
	}
	return nil
}

// libraryDirs are where the dynamic loader looks on a Debian or Fedora system.
var libraryDirs = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
	"/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib",
}

// addLibraries adds what an ELF file names as its loader and libraries, and what those name.
// dirs are looked at first.
func (i *Image) addLibraries(file string, dirs []string) error {
	f, err := elf.Open(file)
	var format *elf.FormatError
	if errors.As(err, &format) {
		return nil // a script
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b, err := io.ReadAll(p.Open())
		if err != nil {
			return fmt.Errorf("reading the name of its loader: %w", err)
		}
		loader := strings.TrimRight(string(b), "\x00")
		i.AddFile(loader, filepath.Join(i.Root, loader), 0o755)
	}
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		paths, _ := f.DynString(tag)
		for _, p := range paths {
			p = strings.ReplaceAll(p, "$ORIGIN", filepath.Dir(file))
			dirs = append(filepath.SplitList(p), dirs...)
		}
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, name := range needed {
		if err := i.addLibrary(name, f.Machine, dirs); err != nil {
			return err
		}
	}
	return nil
}

func (i *Image) addLibrary(name string, machine elf.Machine, dirs []string) error {
	for n, dir := range slices.Concat(dirs, libraryDirs) {
		path := filepath.Join(dir, name)
		if n >= len(dirs) {
			path = filepath.Join(i.Root, path)
		}
		f, err := elf.Open(path)
		if err != nil {
			continue
		}
		same := f.Machine == machine
		f.Close()
		if !same {
			continue
		}
		inside := strings.TrimPrefix(path, i.Root)
		if _, there := i.files[inUsr(inside)]; there {
			return nil
		}
		i.AddFile(inside, path, 0o755)
		return i.addLibraries(path, dirs)
	}
	return fmt.Errorf("no %s in %v", name, slices.Concat(dirs, libraryDirs))
}

// write makes the initramfs: the image, init, and modules.
func (i *Image) write(w io.Writer, init string, k *kernel, c *Config) error {
	all := i.clone()
	all.AddFile("/init", init, 0o755)
	all.AddLink("/sbin/modprobe", "/init")
	all.AddLink("/bin/nobody", "/init")
	if err := k.addModules(all, c.modules()); err != nil {
		return err
	}
	all.AddData(wire.Early, []byte(strings.Join(early, "\n")+"\n"), 0o644)
	all.AddData(wire.BootList, []byte(strings.Join(c.load(), "\n")+"\n"), 0o644)
	if _, ok := all.files["/etc/passwd"]; !ok {
		all.AddData("/etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/run/user/65534:/bin/sh\n"), 0o644)
		all.AddData("/etc/group", []byte("root:x:0:\nnogroup:x:65534:\n"), 0o644)
	}

	rw := cpio.Newc.Writer(w)
	dirs := map[string]bool{"/": true, ".": true}
	put := func(r cpio.Record) error { return rw.WriteRecord(cpio.MakeReproducible(r)) }
	var mkdir func(dir string) error
	mkdir = func(dir string) error {
		if dirs[dir] {
			return nil
		}
		dirs[dir] = true
		if err := mkdir(filepath.Dir(dir)); err != nil {
			return err
		}
		return put(cpio.Directory(dir[1:], 0o755))
	}
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/root", "/etc", wire.TestDir, "/proc", "/sys", "/dev", "/run", "/tmp", "/mnt"} {
		if err := mkdir(dir); err != nil {
			return err
		}
	}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := put(cpio.Symlink(dir, "usr/"+dir)); err != nil {
			return err
		}
	}
	if err := put(cpio.CharDev("dev/console", 0o600, 5, 1)); err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(all.files)) {
		if err := mkdir(filepath.Dir(path)); err != nil {
			return err
		}
		if err := writeEntry(put, path[1:], all.files[path]); err != nil {
			return fmt.Errorf("putting %s into the initramfs: %w", path, err)
		}
	}
	return cpio.WriteTrailer(rw)
}

func writeEntry(put func(cpio.Record) error, name string, e entry) error {
	if e.link != "" {
		return put(cpio.Symlink(name, e.link))
	}
	data := e.data
	if e.from != "" {
		var err error
		if data, err = os.ReadFile(e.from); err != nil {
			return err
		}
	}
	return put(cpio.StaticFile(name, string(data), e.mode))
}
