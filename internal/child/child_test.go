package child

import (
	"os/exec"
	"testing"
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
