package sysfs

import (
	"errors"
	"math"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseUint(t *testing.T) {
	for _, c := range []struct {
		s       string
		highest uint64
		want    uint64
		err     error
	}{
		{"0", 9, 0, nil}, {"9\n", 9, 9, nil}, {"+7", 9, 7, nil}, {"0x1F", 99, 31, nil}, {"010", 99, 8, nil}, {"18446744073709551615", math.MaxUint64, math.MaxUint64, nil},
		{"10", 9, 0, unix.ERANGE}, {"18446744073709551616", math.MaxUint64, 0, unix.ERANGE},
		{"", 9, 0, unix.EINVAL}, {"\n", 9, 0, unix.EINVAL}, {"1\n\n", 9, 0, unix.EINVAL}, {" 1", 9, 0, unix.EINVAL}, {"-1", 9, 0, unix.EINVAL},
		{"1_0", 99, 0, unix.EINVAL}, {"0x", 9, 0, unix.EINVAL}, {"08", 9, 0, unix.EINVAL}, {"++1", 9, 0, unix.EINVAL}, {"0b1", 9, 0, unix.EINVAL}, {"1k", 9, 0, unix.EINVAL},
	} {
		got, err := ParseUint(c.s, c.highest)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("ParseUint(%q, %d) = %d, %v, want %d, %v", c.s, c.highest, got, err, c.want, c.err)
		}
	}
}
