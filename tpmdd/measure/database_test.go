package measure

import (
	"strings"
	"testing"
)

func TestDatabase(t *testing.T) {
	d := strings.Repeat("ab", 32)
	db, err := ReadDatabase(strings.NewReader("# known\n\nsha256:"+d+"  /usr/bin/a b\n"+strings.Repeat("CD", 32)+" *c\n\\"+strings.Repeat("ef", 32)+"\tx\\ny\n"+d+"  again\n"), "x")
	if err != nil {
		t.Fatal(err)
	}
	if got := len(db.names); got != 3 {
		t.Errorf("digests = %d, want 3", got)
	}
	for b, want := range map[byte]string{0xab: "/usr/bin/a b", 0xcd: "c", 0xef: `x\ny`} {
		digest := []byte(strings.Repeat(string(rune(0)), 32))
		for i := range digest {
			digest[i] = b
		}
		if got, ok := db.Lookup(digest); !ok || got != want {
			t.Errorf("Lookup(%x) = %q, %v, want %q", digest, got, ok, want)
		}
	}
	if _, ok := db.Lookup(make([]byte, 20)); ok {
		t.Error("Lookup of 20 bytes: known")
	}
}

func TestDatabaseErrors(t *testing.T) {
	for _, s := range []string{"abc  x", "sha1:" + strings.Repeat("ab", 20), strings.Repeat("ab", 31), strings.Repeat("x", 2*maxLine)} {
		if _, err := ReadDatabase(strings.NewReader("#\n"+s), "db"); err == nil || !strings.Contains(err.Error(), "db:2") {
			t.Errorf("ReadDatabase(%.20q) = %v, want an error of line 2", s, err)
		}
	}
}

func TestKnownIsRead(t *testing.T) {
	digest := SHA256.Sum([]byte("x"))
	db, err := ReadDatabase(strings.NewReader(Known(digest, "a\nb")), "x")
	if err != nil {
		t.Fatal(err)
	}
	if name, ok := db.Lookup(digest); !ok || name != "a_b" {
		t.Errorf("Lookup = %q, %v, want a_b", name, ok)
	}
}

func TestParsePolicy(t *testing.T) {
	for _, p := range []Policy{PolicyLog, PolicyDeny, PolicyLock} {
		if got, err := ParsePolicy(p.String()); err != nil || got != p {
			t.Errorf("ParsePolicy(%s) = %v, %v", p, got, err)
		}
	}
	if _, err := ParsePolicy("warn"); err == nil {
		t.Error("ParsePolicy(warn): no error")
	}
}

func FuzzDatabase(f *testing.F) {
	f.Add("sha256:" + strings.Repeat("ab", 32) + "  x\n")
	f.Fuzz(func(t *testing.T, s string) {
		db, err := ReadDatabase(strings.NewReader(s), "x")
		if (db == nil) == (err == nil) {
			t.Fatalf("ReadDatabase = %v, %v", db, err)
		}
	})
}
