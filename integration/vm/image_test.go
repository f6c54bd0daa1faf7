package vm

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

// TestAddProgram checks that a program comes with its loader and libraries.
func TestAddProgram(t *testing.T) {
	i := &Image{}
	if err := i.AddProgram("bash"); err != nil {
		t.Fatal(err)
	}
	var libc, loader bool
	for path, e := range i.files {
		if strings.HasPrefix(path, "/lib") || strings.HasPrefix(path, "/bin/") {
			t.Errorf("%s is in the image: /bin and /lib are links there", path)
		}
		if _, err := os.Stat(e.from); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		libc = libc || strings.HasPrefix(filepath.Base(path), "libc.so")
		loader = loader || strings.HasPrefix(filepath.Base(path), "ld-")
	}
	if !libc || !loader {
		t.Errorf("bash came with libc: %t, with the loader: %t; want both", libc, loader)
	}
	if err := i.AddProgram("there-is-no-such-program"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("AddProgram of what is not there: %v, want %v", err, exec.ErrNotFound)
	}
	if err := i.AddProgramAs("/bin/script", os.Args[0]); err != nil {
		t.Errorf("a static program: %v", err)
	}
}

// TestInUsr checks where things stand in the VM.
func TestInUsr(t *testing.T) {
	for path, want := range map[string]string{
		"/bin/sh": "/usr/bin/sh", "/usr/bin/sh": "/usr/bin/sh", "/lib64/ld.so": "/usr/lib64/ld.so",
		"/lib/x/../y": "/usr/lib/y", "/etc/passwd": "/etc/passwd", "/library/x": "/library/x",
	} {
		if got := inUsr(path); got != want {
			t.Errorf("inUsr(%s) = %s, want %s", path, got, want)
		}
	}
}

// TestInitramfs checks that folders come before what is in them, and that nothing is there
// twice.
func TestInitramfs(t *testing.T) {
	k := someKernel(t)
	var i Image
	i.AddData("/a/b/c", []byte("contents"), 0o640)
	i.AddLink("/a/link", "/a/b/c")
	c := Config{Modules: []string{"vfio-pci"}}.withDefaults()
	var b bytes.Buffer
	if err := i.write(&b, os.Args[0], k, &c); err != nil {
		t.Fatal(err)
	}
	seen := map[string]cpio.Record{".": {}}
	r := cpio.Newc.Reader(bytes.NewReader(b.Bytes()))
	for {
		rec, err := r.ReadRecord()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := seen[rec.Name]; twice {
			t.Errorf("%s is there twice", rec.Name)
		}
		if _, ok := seen[filepath.Dir(rec.Name)]; !ok {
			t.Errorf("%s comes before its folder", rec.Name)
		}
		seen[rec.Name] = rec
	}
	file := seen["a/b/c"]
	got, err := io.ReadAll(io.NewSectionReader(file.ReaderAt, 0, int64(file.FileSize)))
	if err != nil || string(got) != "contents" || file.Mode&0o777 != 0o640 {
		t.Errorf("a/b/c is %q, mode %o, %v", got, file.Mode, err)
	}
	for _, name := range []string{"init", "usr/sbin/modprobe", "etc/passwd", "a/link", "bin", "dev/console"} {
		if _, ok := seen[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
}

// someKernel is the kernel that the tests boot, if it was fetched.
func someKernel(t *testing.T) *kernel {
	t.Helper()
	dir, err := top()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(filepath.Join(dir, "hack/kernel"), "--check").Output()
	if err != nil {
		t.Skip("no kernel was fetched; hack/kernel does it")
	}
	k, err := findKernel(strings.TrimSpace(string(out)), hostArch)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestModules checks that a module's needs come along, each before what needs it.
func TestModules(t *testing.T) {
	k := someKernel(t)
	var i Image
	if err := k.addModules(&i, []string{"vfio-pci", "e1000e"}); err != nil {
		t.Fatal(err)
	}
	dep := string(i.files["/usr/lib/modules/"+k.release+"/modules.dep"].data)
	for _, line := range strings.Split(strings.TrimSpace(dep), "\n") {
		file, needs, ok := strings.Cut(line, ":")
		if !ok {
			t.Fatalf("modules.dep has the line %q", line)
		}
		files := strings.Fields(needs)
		for _, f := range append(files, file) {
			if _, ok := i.files["/usr/lib/modules/"+k.release+"/"+f]; !ok {
				t.Errorf("%s is not in the image", f)
			}
		}
		if moduleName(file) != "vfio_pci" {
			continue
		}
		slices.Reverse(files)
		at := func(name string) int {
			return slices.IndexFunc(files, func(f string) bool { return moduleName(f) == name })
		}
		if at("vfio") < 0 || at("vfio_pci_core") < at("vfio") {
			t.Errorf("vfio-pci needs %v, in this order; want vfio before vfio_pci_core", files)
		}
	}
	if err := k.addModules(&i, []string{"no-such-module"}); err == nil {
		t.Error("a module that does not exist was added")
	}
}
