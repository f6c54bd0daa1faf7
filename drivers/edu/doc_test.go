package edu

import (
	"os"
	"strings"
	"testing"
)

// The tutorial shows this driver, not one that it once was.
func TestTutorialQuotes(t *testing.T) {
	doc, err := os.ReadFile("../../docs/first-driver.md")
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	for _, name := range []string{"regs.go", "driver.go", "example_test.go", "../../cmd/ring3/main.go"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(b)
	}
	blocks := strings.Split(string(doc), "```go\n")[1:]
	if len(blocks) < 10 {
		t.Fatalf("the tutorial has %d blocks of code, want at least 10", len(blocks))
	}
	for _, b := range blocks {
		b, _, _ = strings.Cut(b, "```")
		if !strings.Contains(code.String(), b) {
			t.Errorf("docs/first-driver.md shows code that is not in the driver:\n%s", b)
		}
	}
}

// The tutorial promises a short driver.
func TestShort(t *testing.T) {
	lines := 0
	for _, name := range []string{"doc.go", "regs.go", "driver.go"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines += strings.Count(string(b), "\n")
	}
	if lines >= 215 {
		t.Errorf("the driver has %d lines, want about 200", lines)
	}
}
