package sysfs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ParseUint reads what was written to an attribute as the kernel's kstrtoul does: digits, in
// base 16 after 0x, in base 8 after 0, in base 10 otherwise, a plus sign before and one newline after
// them at most. Anything else gives EINVAL, and a number above highest gives ERANGE.
func ParseUint(s string, highest uint64) (uint64, error) {
	s = strings.TrimSuffix(s, "\n")
	digits, base := strings.TrimPrefix(s, "+"), 10
	switch {
	case len(digits) > 2 && (digits[:2] == "0x" || digits[:2] == "0X"):
		digits, base = digits[2:], 16
	case len(digits) > 1 && digits[0] == '0':
		digits, base = digits[1:], 8
	}
	// With an explicit base ParseUint takes no sign, underscore or prefix.
	v, err := strconv.ParseUint(digits, base, 64)
	if errors.Is(err, strconv.ErrRange) || err == nil && v > highest {
		return 0, fmt.Errorf("%q is above %d: %w", s, highest, unix.ERANGE)
	}
	if err != nil {
		return 0, fmt.Errorf("%q is no number: %w", s, unix.EINVAL)
	}
	return v, nil
}
