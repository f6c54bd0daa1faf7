// Package mounts reads /proc/self/mountinfo: what is mounted where in this process's
// namespace, without looking into any mount, which may be dead or hang.
//
// Source: proc(5), /proc/pid/mountinfo.
package mounts

import (
	"fmt"
	"os"
	"strings"
)

// Entry is a mount, as far as it matters here.
type Entry struct {
	Dir    string // where it is mounted, absolute
	Dev    string // device number, "0:53"
	FSType string // "fuse.ring3"
	Source string // "/dev/sda1", "ring3"; "" if it has none
}

// IsFuse says whether a file system in user space is mounted there.
func (e Entry) IsFuse() bool { return e.FSType == "fuse" || strings.HasPrefix(e.FSType, "fuse.") }

// List lists the mounts of this process's namespace, oldest first.
func List() ([]Entry, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	return Parse(string(b)), nil
}

// At returns the topmost mount at dir, an absolute path.
func At(dir string) (Entry, bool) {
	list, err := List()
	if err != nil {
		return Entry{}, false
	}
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].Dir == dir {
			return list[i], true
		}
	}
	return Entry{}, false
}

// Parse takes mountinfo apart: id, parent, major:minor, root, mount point, options,
// optional fields up to a dash, type, source. Lines that are not so are left out.
func Parse(s string) []Entry {
	var out []Entry
	for line := range strings.Lines(s) {
		left, right, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		f := strings.Fields(left)
		t := strings.Fields(right)
		if !ok || len(f) < 6 || len(t) < 1 {
			continue
		}
		e := Entry{Dir: unescape(f[4]), Dev: f[2], FSType: t[0]}
		if len(t) > 1 {
			e.Source = unescape(t[1])
		}
		out = append(out, e)
	}
	return out
}

// unescape undoes the kernel's octal escapes (\040 and the like).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1]) && isOctal(s[i+2]) && isOctal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(c byte) bool { return c >= '0' && c <= '7' }
