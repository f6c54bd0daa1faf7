//go:build vm

package bad

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/ring3dev/ring3/integration/guest"
)

func TestPasses(t *testing.T) { t.Log("said by a test that passes") }

func TestSkips(t *testing.T) { t.Skip("a reason to skip") }

func TestFails(t *testing.T) {
	fmt.Println("said without a test")
	t.Run("good", func(t *testing.T) { t.Log("said by good") })
	t.Run("bad", func(t *testing.T) {
		t.Run("worse", func(t *testing.T) { t.Error("said by worse") })
		t.Run("skipped", func(t *testing.T) { t.Skip("said by skipped") })
	})
}

func TestPanics(t *testing.T) {
	t.Run("inside", func(*testing.T) { panic("said by a panic") })
}

func TestExits(*testing.T) { os.Exit(0) }

func TestHangs(t *testing.T) {
	t.Log("said before hanging")
	select {}
}

func TestLeaves(t *testing.T) {
	if err := exec.Command("/bin/sleep", "1000").Start(); err != nil {
		t.Fatal(err)
	}
}

func TestRootLeaves(t *testing.T) {
	if out, err := exec.Command("/bin/mount", "-t", "tmpfs", "left", "/mnt").CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
}

// TestAfterLeaves checks that nothing is left of what the tests before it left.
func TestAfterLeaves(t *testing.T) {
	if out, err := exec.Command("/bin/grep", "/mnt", "/proc/mounts").Output(); err == nil {
		t.Errorf("still mounted: %s", out)
	}
}

// TestRootCrashes crashes the kernel.
func TestRootCrashes(t *testing.T) {
	err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	t.Fatalf("the kernel did not crash: %v", err)
}

// TestStops stops the processors: nothing in the VM runs any more.
func TestStops(t *testing.T) {
	guest.QMP(t, "stop", nil)
	t.Error("the VM did not stop")
}

// TestLast runs in a VM that was booted anew.
func TestLast(t *testing.T) { t.Log("said by the last test") }
