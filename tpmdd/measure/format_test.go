package measure

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/internal/node"
)

// kernelList are lines that Linux printed: the first of any kernel without a TPM, a file, and a buffer (the kernel's version,
// "7.1.0-rc1+", as reported on linux-integrity). Their template digests are not this package's own arithmetic.
const kernelList = `10 0adefe762c149c7cec19da62f0da1297fcfbffff ima-ng sha256:0000000000000000000000000000000000000000000000000000000000000000 boot_aggregate
10 cff3da2ff339a1f07bb0dbcbc0381e794ed09555 ima-ng sha256:3e5e8ad9d8b4dd191413aba6166c7a975c3eab903d1fad77ecfa2d5810d6585c /usr/bin/kmod
10 49ab61dd97ea2f759edcb6c6a3387ac67f0aa576 ima-buf sha256:0c907aab3261194f16b0c2a422a82f145bc9b9ecb8fdb633fa43e3e5379f0af2 kernel_version 372e312e302d7263312b
10 0000000000000000000000000000000000000000 ima-ng sha256:0000000000000000000000000000000000000000000000000000000000000000 test-file
`

// kernelLog is a log of the same events.
func kernelLog(t *testing.T) *Log {
	t.Helper()
	file, err := hex.DecodeString("3e5e8ad9d8b4dd191413aba6166c7a975c3eab903d1fad77ecfa2d5810d6585c")
	if err != nil {
		t.Fatal(err)
	}
	version := []byte("7.1.0-rc1+")
	l := NewLog(SHA1, SHA256)
	for _, e := range []Entry{
		newEntry(10, TemplateFile, Event{Alg: "sha256", Digest: make([]byte, 32), Name: BootAggregate}),
		newEntry(10, TemplateFile, Event{Alg: "sha256", Digest: file, Name: "/usr/bin/kmod"}),
		newEntry(10, TemplateData, Event{Alg: "sha256", Digest: SHA256.Sum(version), Name: "kernel_version", Buf: version}),
		newViolation(10, "test-file"),
	} {
		if err := l.add(e); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func TestASCIIAsLinux(t *testing.T) {
	if got := string(kernelLog(t).ASCII()); got != kernelList {
		t.Errorf("ASCII =\n%swant\n%s", got, kernelList)
	}
}

func TestBinaryAsLinux(t *testing.T) {
	// The file's entry, by hand: PCR, digest, template, 67 bytes of data in two fields.
	want := "0a000000" + "cff3da2ff339a1f07bb0dbcbc0381e794ed09555" + "06000000" + hex.EncodeToString([]byte("ima-ng")) + "3e000000" +
		"28000000" + hex.EncodeToString([]byte("sha256:\x00")) + "3e5e8ad9d8b4dd191413aba6166c7a975c3eab903d1fad77ecfa2d5810d6585c" +
		"0e000000" + hex.EncodeToString([]byte("/usr/bin/kmod\x00"))
	got := fmt.Sprintf("%x", kernelLog(t).Entries()[1].appendBinary(nil, SHA1))
	if got != want {
		t.Errorf("binary =\n%s, want\n%s", got, want)
	}
}

func TestParseBothForms(t *testing.T) {
	l := kernelLog(t)
	for _, p := range [][]byte{l.ASCII(), l.Binary(), []byte(kernelList)} {
		entries, err := Parse(p)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(entries, l.Entries(), func(a, b Entry) bool {
			return a.PCR == b.PCR && a.Sum == b.Sum && a.Template == b.Template && bytes.Equal(a.Data, b.Data)
		}) {
			t.Errorf("Parse = %v, want %v", entries, l.Entries())
		}
		for _, e := range entries {
			if err := e.Check(); err != nil {
				t.Errorf("Check(%s) = %v", e, err)
			}
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := kernelLog(t).Entries()[1].appendBinary(nil, SHA1)
	for i := 1; i < len(good); i++ {
		if e, err := ParseBinary(good[:i]); err == nil {
			t.Errorf("ParseBinary of %d bytes = %v, want an error", i, e)
		}
	}
	for _, line := range []string{
		"", "10", "32 " + strings.Repeat("0", 40) + " ima-ng sha256:00 x", "10 00 ima-ng sha256:00 x",
		"10 " + strings.Repeat("0", 40) + " ima-ng sha256:00 x y", "10 " + strings.Repeat("0", 40) + " ima-ng sha256 x",
		"10 " + strings.Repeat("0", 40) + " ima-buf sha256:00 x zz", "10 " + strings.Repeat("0", 40) + " ima-sigv9 sha256:00 x",
	} {
		if e, err := ParseASCII([]byte(line + "\n")); err == nil {
			t.Errorf("ParseASCII(%q) = %v, want an error", line, e)
		}
	}
}

func TestCheckFindsLies(t *testing.T) {
	e := kernelLog(t).Entries()[2]
	e.Data = bytes.Replace(e.Data, []byte("7.1.0"), []byte("7.2.0"), 1)
	if err := e.Check(); err == nil || !strings.Contains(err.Error(), "template digest") {
		t.Errorf("Check of changed data = %v, want an error about the template digest", err)
	}
	e.Sum = [20]byte(SHA1.Sum(e.Data))
	if err := e.Check(); err == nil || !strings.Contains(err.Error(), "its data have the digest") {
		t.Errorf("Check of changed data and template digest = %v, want an error about the data", err)
	}
}

func TestNamesAreOneWord(t *testing.T) {
	const name = "a b\n10 forged\x00"
	if got, want := cleanName(name), "a_b_10_forged_"; got != want {
		t.Errorf("cleanName(%q) = %q, want %q", name, got, want)
	}
}

// TestReplayByHand extends once, in two banks and from both values after a reset.
func TestReplayByHand(t *testing.T) {
	entries := kernelLog(t).Entries()
	for i := range entries {
		entries[i].PCR = 17
	}
	for _, c := range []struct {
		entry Entry
		bank  Bank
		added []byte
	}{
		{entries[0], SHA1, entries[0].Sum[:]},
		{entries[0], SHA256, SHA256.Sum(entries[0].Data)},
		{entries[3], SHA384, bytes.Repeat([]byte{0xff}, 48)},
	} {
		want := c.bank.Sum(bytes.Repeat([]byte{0xff}, c.bank.Size()), c.added)
		got, err := Replay([]Entry{c.entry}, 17, c.bank)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("Replay(%s, %s) = %x, %v, want %x", c.entry, c.bank, got, err, want)
		}
	}
	if got, err := Replay(entries, 10, SHA1); err != nil || !bytes.Equal(got, make([]byte, 20)) {
		t.Errorf("Replay of another PCR's entries = %x, %v, want zeros", got, err)
	}
	if _, err := Replay(nil, 10, Bank(0x12)); err == nil {
		t.Error("Replay(sm3): no error")
	}
}

func TestDigestOfUnmappedBanks(t *testing.T) {
	entries := kernelLog(t).Entries()
	for _, c := range []struct {
		e    Entry
		want []byte
	}{
		{entries[0], append(bytes.Clone(entries[0].Sum[:]), make([]byte, 12)...)},
		{entries[3], append(bytes.Repeat([]byte{0xff}, 20), make([]byte, 12)...)},
	} {
		if got, ok := c.e.Digest(0x12); !ok || !bytes.Equal(got, c.want) {
			t.Errorf("Digest(sm3) = %x, %v, want %x", got, ok, c.want)
		}
	}
	if _, ok := entries[0].Digest(0x7777); ok {
		t.Error("Digest of an unknown bank: it is known")
	}
}

func TestFiles(t *testing.T) {
	l := kernelLog(t)
	for i := range 200 { // more than a page
		if err := l.add(newEntry(10, TemplateData, Event{Alg: "sha256", Digest: SHA256.Sum([]byte{byte(i)}), Name: "x", Buf: []byte{byte(i)}})); err != nil {
			t.Fatal(err)
		}
	}
	files := l.Files()
	if len(files) != 8 {
		t.Errorf("files = %d, want 8: four and two for each bank", len(files))
	}
	show := func(name string) string {
		f := files[name]
		if f == nil {
			t.Fatalf("no file %s", name)
		}
		if f.Mode != 0o440 || f.Flavour != node.Proc {
			t.Errorf("%s: mode %o, flavour %d, want 440, %d", name, f.Mode, f.Flavour, node.Proc)
		}
		b, err := f.ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, want := range map[string]string{
		"ascii_runtime_measurements": string(l.ASCII()), "binary_runtime_measurements": string(l.Binary()),
		"ascii_runtime_measurements_sha1": string(l.ASCII()), "runtime_measurements_count": "204\n", "violations": "1\n",
	} {
		if got := show(name); got != want {
			t.Errorf("%s = %.80q, want %.80q", name, got, want)
		}
	}
	first, _, _ := strings.Cut(show("ascii_runtime_measurements_sha256"), "\n")
	if want := fmt.Sprintf("10 %x ima-ng sha256:%064d boot_aggregate", SHA256.Sum(l.Entries()[0].Data), 0); first != want {
		t.Errorf("ascii_runtime_measurements_sha256 = %q, want %q", first, want)
	}
}

func TestLogIsBounded(t *testing.T) {
	l := NewLog()
	big := newEntry(10, TemplateData, Event{Alg: "sha256", Digest: make([]byte, 32), Name: "x", Buf: make([]byte, MaxLog)})
	if err := l.add(big); err == nil {
		t.Error("an entry of more than MaxLog: no error")
	}
	l.entries = make([]Entry, MaxEntries)
	if err := l.add(newViolation(10, "x")); err == nil {
		t.Error("more than MaxEntries: no error")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(kernelList))
	f.Add([]byte("\n"))
	p, err := ParseASCII([]byte(kernelList))
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range p {
		f.Add(e.appendBinary(nil, SHA1))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		entries, err := Parse(p)
		if err != nil && entries != nil {
			t.Fatalf("entries and an error: %v", err)
		}
		for _, e := range entries {
			_ = e.Check()
			_ = e.String()
			_, _ = e.Digest(SHA256)
		}
		if _, err := Replay(entries, 10, SHA256); err != nil {
			t.Fatal(err)
		}
		_ = CheckBootAggregate(entries, func(b Bank, _ int) []byte { return make([]byte, b.Size()) })
		if len(p) > 1 && p[1] == 0 && err == nil && !bytes.Equal(Binary(entries), p) {
			t.Fatalf("written again: %x, want %x", Binary(entries), p)
		}
	})
}
