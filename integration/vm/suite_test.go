package vm

import (
	"flag"
	"testing"
)

// TestPattern checks what is run in the VM of what -run says here.
func TestPattern(t *testing.T) {
	run := flag.Lookup("test.run").Value
	was := run.String()
	defer func() {
		if err := run.Set(was); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct{ run, here, want string }{
		{"", "TestVM/TestX", "^TestX$"},
		{"TestVM", "TestVM/TestX", "^TestX$"},
		{"TestVM$/TestX", "TestVM/TestX", "^TestX$"},
		{"TestVM/TestX/a/b", "TestVM/TestX", "^TestX$/a/b"},
		{"TestVMFabric/vm0/TestX", "TestVMFabric/vm0/TestX", "^TestX$"},
		{"TestVMFabric/vm0/TestX/a/b", "TestVMFabric/vm0/TestX", "^TestX$/a/b"},
	} {
		if err := run.Set(c.run); err != nil {
			t.Fatal(err)
		}
		if got := pattern(c.here, "TestX"); got != c.want {
			t.Errorf("pattern(%q) with -run %q = %q, want %q", c.here, c.run, got, c.want)
		}
	}
}
