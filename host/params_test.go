package host

import (
	"context"
	"strconv"
	"syscall"
	"testing"

	"github.com/ring3dev/ring3/bus/pci"
)

// number is a parameter from 0 to 9.
func number(v *int) pci.Param {
	return pci.Param{Name: "n", Get: func() string { return strconv.Itoa(*v) }, Set: func(_ context.Context, s string) error {
		n, err := strconv.Atoi(s)
		switch {
		case err != nil:
			return syscall.EINVAL
		case n < 0 || n > 9:
			return syscall.ERANGE
		}
		*v = n
		return nil
	}}
}

func TestParamFile(t *testing.T) {
	a, b := 1, 2
	f := paramFile([]pci.Param{number(&a), number(&b)})
	for _, c := range []struct {
		write string
		err   error
		want  string
	}{
		{"", nil, "1,2\n"},
		{"5\n", nil, "5,5\n"},
		{"3, 4\n", nil, "3,4\n"},
		{"1,2,3", syscall.EINVAL, "3,4\n"},
		{"7,10", syscall.ERANGE, "3,4\n"},
		{"7,x", syscall.EINVAL, "3,4\n"},
	} {
		if c.write != "" {
			if _, err := f.Write(t.Context(), []byte(c.write)); err != c.err {
				t.Errorf("Write(%q) = %v, want %v", c.write, err, c.err)
			}
		}
		if got, err := f.ReadAll(); string(got) != c.want || err != nil {
			t.Errorf("after Write(%q): %q, %v, want %q", c.write, got, err, c.want)
		}
	}
	readOnly := paramFile([]pci.Param{{Name: "r", Get: func() string { return "x" }}})
	if readOnly.Mode != 0o444 {
		t.Errorf("mode of a parameter that cannot be set = %o, want 444", readOnly.Mode)
	}
}
