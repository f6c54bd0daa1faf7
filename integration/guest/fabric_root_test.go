//go:build vm

package guest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/osthread"
)

// A root file system over rionet: the server's VM serves its own by 9P (9P2000.L over TCP), and the client's mounts that by the kernel's 9p, makes
// it the root of a thread, and runs programs from it.

const (
	ninePort    = "564"
	exported    = "/run/export"        // the server's root, without what is mounted on it
	onlyServer  = "/etc/fabric-server" // only the server's image has it (integration/fabric_vm_test.go)
	writtenFile = "/written-by-client" // the client makes it, in its root
	writtenSize = 1 << 20
)

// serveRoot serves this VM's root file system until the function that it returns is called.
func serveRoot(t *testing.T) (stop func()) {
	t.Helper()
	if err := os.MkdirAll(exported, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/", exported, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("mounting the root at %s: %v", exported, err)
	}
	l := listen(t, ninePort)
	s := p9.NewServer(folderServer(exported))
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close() // which ends Handle
			serving.Go(func() { _ = s.Handle(c, c) })
		}
	})
	stop = sync.OnceFunc(func() {
		l.Close()
		serving.Wait()
		if err := unix.Unmount(exported, 0); err != nil {
			t.Errorf("unmounting %s: %v", exported, err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// whereAmI says what it finds in a root.
const whereAmI = `set -e
read -r where < ` + onlyServer + `
echo "$where"
stat -f -c %T /
while read -r id parent device root point options; do
	[ "$point" != / ] || echo "$root $options"
done < /proc/self/mountinfo`

// servedRoot runs programs whose root file system is the server's.
func servedRoot(t *testing.T) {
	if _, err := os.Stat(onlyServer); err == nil {
		t.Fatalf("this VM has %s too, so it proves nothing", onlyServer)
	}
	Modprobe(t, "9p")
	Modprobe(t, "9pnet_fd")
	begin, ran := time.Now(), time.Duration(0)
	var out []byte
	var sum [sha256.Size]byte
	err := inServedRoot(t, func() error {
		var err error
		// A shell that comes over rionet, with its libraries, says where it is.
		if out, err = exec.Command("/bin/sh", "-c", whereAmI).CombinedOutput(); err != nil {
			return fmt.Errorf("running a program: %w: %s", err, out)
		}
		ran = time.Since(begin)
		if err = writeSynced(writtenFile, pattern(writtenSize)); err != nil {
			return err
		}
		b, err := os.ReadFile(writtenFile)
		sum = sha256.Sum256(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	t.Logf("the program said %q after %v; written and read %d KiB after %v", lines, ran.Round(time.Millisecond), writtenSize>>10, time.Since(begin).Round(time.Millisecond))
	if len(lines) != 3 || lines[0] != "the server's root" || lines[1] != "v9fs" || !strings.Contains(lines[2], " 9p "+server4) {
		t.Errorf("in the other VM's root: %q, want its text, v9fs, 9p of %s", lines, server4)
	}
	if sum != sha256.Sum256(pattern(writtenSize)) {
		t.Error("what was written into the root is not what is read from it")
	}
	if _, err := os.Stat(writtenFile); err == nil {
		t.Errorf("%s is in this VM's own root", writtenFile)
	}
}

// writeSynced writes a file that the server has when it returns.
func writeSynced(file string, b []byte) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// inServedRoot runs f on a thread whose root file system is the server's. When it returns that is unmounted: the kernel still asks the server for it.
func inServedRoot(t *testing.T, f func() error) error {
	t.Helper()
	ended, tid := make(chan error), 0
	osthread.Go(func() { // its mounts end with the thread
		tid = unix.Gettid()
		err := enterServed()
		if err == nil {
			err = f()
		}
		ended <- err
	})
	err := <-ended
	thread := fmt.Sprintf("/proc/self/task/%d", tid)
	for deadline := time.Now().Add(fabricWait); ; time.Sleep(10 * time.Millisecond) {
		if _, gone := os.Stat(thread); gone != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errors.Join(err, fmt.Errorf("the thread with the server's root has not ended after %v", fabricWait))
		}
	}
}

// enterServed makes the server's file system the root of this thread. An initramfs cannot be left by pivot_root(2); so it does
// what switch_root(8) does.
func enterServed() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("leaving the others' mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	// Not for set-user-ID programs: so the kernel does not ask for file capabilities either, and package p9 answers every question for an
	// extended attribute that there is none of with EINVAL. cache=loose reads ahead as well, but this kernel has a BUG in it (fscache's cookies).
	if err := unix.Mount(server4, "/mnt", "9p", unix.MS_NOSUID, "trans=tcp,port="+ninePort+",version=9p2000.L,msize=65536,cache=mmap"); err != nil {
		return fmt.Errorf("mounting the other VM's root: %w", err)
	}
	for kind, dir := range map[string]string{"proc": "/mnt/proc", "devtmpfs": "/mnt/dev"} {
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", dir, err)
		}
	}
	if err := unix.Chdir("/mnt"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving it to the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("making it the root: %w", err)
	}
	return unix.Chdir("/")
}
