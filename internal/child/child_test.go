package child

import (
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestLastWords: what a program says steers no terminal, whoever put it into its mouth.
func TestLastWords(t *testing.T) {
	said := make(chan string, 8)
	p, err := Start(exec.Command("sh", "-c", `printf 'sh: a\033[2J\rb\tc\302\233d\n' >&2; exit 3`), func(line string) bool { said <- line; return true })
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	const want = "a?[2J?b\tc?d"
	if got := <-said; got != want {
		t.Errorf("it says %q, want %q", got, want)
	}
	if got := p.End(); got != "exit status 3: "+want {
		t.Errorf("End = %q, want it to have %q", got, want)
	}
}

// TestStderrElsewhere: a program has ended although one that it started keeps its stderr, and its last words are there.
func TestStderrElsewhere(t *testing.T) {
	said := make(chan string, 8)
	p, err := Start(exec.Command("sh", "-c", `sleep 600 & echo $! >&2; echo last >&2; exit 3`), func(line string) bool { said <- line; return true })
	if err != nil {
		t.Fatal(err)
	}
	other, err := strconv.Atoi(<-said)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(other, syscall.SIGKILL) }()
	select {
	case <-p.Done():
	case <-time.After(time.Minute):
		t.Fatal("it is taken to run while somebody has its stderr")
	}
	if got := p.End(); got != "exit status 3: last" {
		t.Errorf("End = %q", got)
	}
}
