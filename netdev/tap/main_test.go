package tap

import (
	"os"
	"testing"

	"github.com/ring3dev/ring3/internal/netspace"
)

// refused is why there can be no TAP here; "" where there can.
var refused string

// TestMain runs the tests in a network namespace of their own, where they make interfaces.
func TestMain(m *testing.M) {
	if err := netspace.Again(); err != nil {
		refused = err.Error()
	} else {
		refused = tryTap()
	}
	os.Exit(m.Run())
}

// tryTap makes an interface and takes it away.
func tryTap() string {
	t, err := Open(Config{Name: "try0"})
	if err != nil {
		return err.Error()
	}
	if err := t.Close(); err != nil {
		return err.Error()
	}
	return ""
}

// needTap skips a test where there can be no TAP.
func needTap(t testing.TB) {
	t.Helper()
	if refused != "" {
		t.Skip(refused)
	}
}
