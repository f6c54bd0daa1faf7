package vm

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// output is what a test binary says with -test.v=test2json, with @ for the marker.
const output = `@=== RUN   TestA
before a@=== RUN   TestA/one
said by one
@    --- PASS: TestA/one (0.50s)
@=== NAME  TestA
@=== RUN   TestA/two
@=== PAUSE TestA/two
@=== RUN   TestA/three
@=== RUN   TestA/three/inner
    x_test.go:1: said by inner
@=== CONT  TestA/two
    x_test.go:2: said by two
@        --- SKIP: TestA/three/inner (0.00s)
@    --- FAIL: TestA/three (0.00s)
@    --- PASS: TestA/two (0.00s)
@=== NAME  TestA
    x_test.go:3: said by A
@--- FAIL: TestA (0.51s)
@=== NAME  
@FAIL
`

// TestReplayed is what TestReplay runs: it fails where the output above does.
func TestReplayed(t *testing.T) {
	size := os.Getenv("RING3_TEST_REPLAY")
	if size == "" {
		t.Skip("it fails on purpose; TestReplay runs it")
	}
	var n int
	if _, err := fmt.Sscan(size, &n); err != nil {
		t.Fatal(err)
	}
	r := newReplay(t, "TestA")
	rest := []byte(strings.ReplaceAll(output, "@", string(rune(marker))))
	for len(rest) > 0 {
		k := min(n, len(rest))
		r.write(rest[:k])
		rest = rest[k:]
	}
	r.close()
	t.Logf("result %s", r.result)
}

// TestReplay checks the results and logs, however the output comes in pieces.
func TestReplay(t *testing.T) {
	for _, size := range []string{"1", "7", "100000"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestReplayed$", "-test.v")
		cmd.Env = append(os.Environ(), "RING3_TEST_REPLAY="+size)
		out, _ := cmd.Output()
		for _, want := range []string{
			"before a\n", "=== RUN   TestReplayed/one\n    said by one\n    (0.50s in the VM)\n", "result FAIL",
			"=== RUN   TestReplayed/two\n        x_test.go:2: said by two\n", "        x_test.go:1: said by inner\n", "    x_test.go:3: said by A\n",
			"--- FAIL: TestReplayed (", "    --- PASS: TestReplayed/one (", "    --- PASS: TestReplayed/two (",
			"    --- FAIL: TestReplayed/three (", "        --- SKIP: TestReplayed/three/inner (",
		} {
			if !bytes.Contains(out, []byte(want)) {
				t.Errorf("in pieces of %s: %q is missing in\n%s", size, want, out)
			}
		}
		if n := bytes.Count(out, []byte("--- ")); n != 5 {
			t.Errorf("in pieces of %s: %d results, want 5", size, n)
		}
	}
}
