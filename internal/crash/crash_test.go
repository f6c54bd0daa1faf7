package crash

import (
	"os"
	"os/exec"
	"regexp"
	"testing"
	"time"
)

func TestReport(t *testing.T) {
	if os.Getenv("RING3_CRASH") != "" {
		Notify(func() { os.Stderr.WriteString("not this\n") })()
		Notify(func() { os.Stderr.WriteString("last words\n") })
		go func() {
			defer Report()
			guilty(nil)
		}()
		time.Sleep(time.Minute) // the panic ends it
		return
	}
	func() { defer Report() }() // no panic, no words
	c := exec.Command(os.Args[0], "-test.run=^TestReport$")
	c.Env = append(os.Environ(), "RING3_CRASH=1")
	out, err := c.CombinedOutput()
	if err == nil || !regexp.MustCompile(`(?s)^last words\npanic: .*nil pointer.*crash\.guilty`).Match(out) {
		t.Errorf("a panic printed (%v)\n%s\nwant the last words, and then the panic with where it began", err, out)
	}
}

//go:noinline
func guilty(p *int) int { return *p }
