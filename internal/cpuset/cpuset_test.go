package cpuset

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMask(t *testing.T) {
	for _, tt := range []struct {
		text, list, out string
		n               int
	}{
		{"3", "0-1", "3", 2},
		{"1\n", "0", "1", 4},
		{"00000001", "0", "01", 8},
		{"ff,ffffffff", "0-39", "ff,ffffffff", 40},
		{"1,00000000", "32", "1,00000000", 33},
		{"1,0", "32", "1,00000000", 33},
		{" \tF0 ", "4-7", "f0", 8},
		{"0", "", "0", 2},
		{"00000000,00000010", "4", "00000000,00000010", 64},
		{strings.Repeat("00000000,", 31) + "5", "0,2", "5", 3},
		{"", "", "0", 1},
		{"1,", "0", "1", 1},
		{",,1", "0", "1", 1},
		{"1 1", "0,32", "1", 1},
		{"2\n1", "1", "2", 2},
		{"80000000" + strings.Repeat(",00000000", 31), "1023", "80000000" + strings.Repeat(",00000000", 31), 1024},
	} {
		s, err := ParseMask(tt.text)
		if err != nil {
			t.Errorf("ParseMask(%q): %v", tt.text, err)
			continue
		}
		if got := FormatList(s, Limit); got != tt.list {
			t.Errorf("ParseMask(%q) = %s, want %s", tt.text, got, tt.list)
		}
		if got := FormatMask(s, tt.n); got != tt.out {
			t.Errorf("FormatMask(%q, %d) = %s, want %s", tt.text, tt.n, got, tt.out)
		}
	}
	for text, want := range map[string]unix.Errno{
		"x": unix.EINVAL, "0x1": unix.EINVAL, "1\x00": unix.EINVAL, "\u00e91": unix.EINVAL, "-1": unix.EINVAL, "123456789": unix.EOVERFLOW, "1" + strings.Repeat(",0", 32): unix.EOVERFLOW,
	} {
		if s, err := ParseMask(text); s != (unix.CPUSet{}) || !errors.Is(err, want) {
			t.Errorf("ParseMask(%q) = %v, %v, want %v", text, s, err, want)
		}
	}
}

func TestList(t *testing.T) {
	for text, want := range map[string]string{
		"0": "0", "0-1,4\n": "0-1,4", "": "", "\n": "", "4,0-1": "0-1,4", "0-3,2-5": "0-5", ",,1,": "1", "1 3": "1,3",
		"0-31:2/8": "0-1,8-9,16-17,24-25", "0-9:1/5": "0,5", "1023": "1023", "N": "1023", "2\n1": "2", "1020-N": "1020-1023", "all": "0-1023", "All:1/512": "0,512",
		"5-5": "5", "0-7:0/2": "",
	} {
		s, err := ParseList(text)
		if err != nil {
			t.Errorf("ParseList(%q): %v", text, err)
			continue
		}
		if got := FormatList(s, Limit); got != want {
			t.Errorf("ParseList(%q) = %s, want %s", text, got, want)
		}
	}
	for text, want := range map[string]unix.Errno{
		"x": unix.EINVAL, "1-": unix.EINVAL, "-1": unix.EINVAL, "2-1": unix.EINVAL, "0-7:2": unix.EINVAL, "0-7:3/2": unix.EINVAL, "0-7:0/0": unix.EINVAL,
		"1:1/2": unix.EINVAL, "1024": unix.ERANGE, "0-9999999": unix.ERANGE, "99999999999999999999": unix.EOVERFLOW, "+1": unix.EINVAL, "1_0": unix.EINVAL, "0x1": unix.EINVAL,
		"1--2": unix.EINVAL, "n": unix.EINVAL, "1\x00": unix.EINVAL,
	} {
		if s, err := ParseList(text); s != (unix.CPUSet{}) || !errors.Is(err, want) {
			t.Errorf("ParseList(%q) = %v, %v, want %v", text, s, err, want)
		}
	}
}

// The kernel's own view of this process, in both forms.
func TestKernelAgrees(t *testing.T) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	field := func(name string) string {
		for _, l := range strings.Split(string(status), "\n") {
			if v, ok := strings.CutPrefix(l, name+":\t"); ok {
				return v
			}
		}
		t.Skipf("/proc/self/status has no %s", name)
		return ""
	}
	mask, err := ParseMask(field("Cpus_allowed"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := FormatList(mask, Limit), field("Cpus_allowed_list"); got != want {
		t.Errorf("FormatList(%s) = %s, want %s", field("Cpus_allowed"), got, want)
	}
}

func TestOf(t *testing.T) {
	if got := FormatList(Of(3, -1, 1, 5000), Limit); got != "1,3" {
		t.Errorf("Of(3, -1, 1, 5000) = %s, want 1,3", got)
	}
	for _, tt := range []struct {
		set      unix.CPUSet
		min, max int
	}{{Of(7, 9), 7, 9}, {Of(0, 1023), 0, 1023}, {Of(), -1, -1}} {
		if got, got2 := Min(tt.set), Max(tt.set); got != tt.min || got2 != tt.max {
			t.Errorf("Min, Max of %s = %d, %d, want %d, %d", FormatList(tt.set, Limit), got, got2, tt.min, tt.max)
		}
	}
	if got := FormatList(Of(0, 1, 2, 3), 2); got != "0-1" {
		t.Errorf("FormatList of 2 CPUs = %s, want 0-1", got)
	}
}

func TestOnline(t *testing.T) {
	s, err := Online()
	if err != nil || s.Count() < 1 || Max(s) < runtime.NumCPU()-1 {
		t.Errorf("Online = %s, %v, want at least the %d CPUs of this process", FormatList(s, Limit), err, runtime.NumCPU())
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"3", "ff,ffffffff", "0-1,4", "0-31:2/8", "all", "1\n", "N"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for name, parse := range map[string]func(string) (unix.CPUSet, error){"ParseMask": ParseMask, "ParseList": ParseList} {
			s, err := parse(text)
			if err != nil {
				if s != (unix.CPUSet{}) {
					t.Fatalf("%s(%q) = %v, %v, want one of the two", name, text, s, err)
				}
				continue
			}
			if again, err := ParseMask(FormatMask(s, Limit)); err != nil || again != s {
				t.Errorf("%s(%q): the mask %s reads as something else", name, text, FormatMask(s, Limit))
			}
			if again, err := ParseList(FormatList(s, Limit)); err != nil || again != s {
				t.Errorf("%s(%q): the list %s reads as something else", name, text, FormatList(s, Limit))
			}
		}
	})
}
