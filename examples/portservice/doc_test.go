package slotcount_test

import (
	"os"
	"strings"
	"testing"
)

// The course shows this driver, not one that it once was.
func TestCourseQuotes(t *testing.T) {
	doc, err := os.ReadFile("../../docs/port-services.md")
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	for _, name := range []string{"driver.go", "driver_test.go", "cmd/slotcount-ring3/main.go"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(b)
	}
	blocks := strings.Split(string(doc), "```go\n")[1:]
	if len(blocks) < 10 {
		t.Fatalf("the course has %d blocks of code, want at least 10", len(blocks))
	}
	for _, b := range blocks {
		b, _, _ = strings.Cut(b, "```")
		if !strings.Contains(code.String(), b) {
			t.Errorf("docs/port-services.md shows code that is not in the driver:\n%s", b)
		}
	}
}
