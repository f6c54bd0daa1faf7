package measure

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
)

// Bounds of a database.
const (
	maxDatabase = 64 << 20
	maxLine     = 2 * MaxName
)

// Database is a set of SHA-256 digests that are known, each with a name for people.
//
// Its file has a digest on each line, then blanks and a name: what sha256sum prints, with or without "sha256:" before the
// digest. Empty lines and those that begin with # are comments. The name is not compared with what is measured: a digest
// says all.
type Database struct {
	names map[[sha256.Size]byte]string
	from  string
}

// OpenDatabase reads a database from a file.
func OpenDatabase(path string) (*Database, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	defer f.Close()
	return ReadDatabase(f, path)
}

// ReadDatabase reads a database; from is its name in errors.
func ReadDatabase(r io.Reader, from string) (*Database, error) {
	db := &Database{names: make(map[[sha256.Size]byte]string), from: from}
	lr := &io.LimitedReader{R: r, N: maxDatabase + 1}
	s := bufio.NewScanner(lr)
	s.Buffer(nil, maxLine)
	n := 0
	for s.Scan() {
		n++
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		d, name, err := parseKnown(line)
		if err != nil {
			return nil, fmt.Errorf("database %s:%d: %w", from, n, err)
		}
		if _, ok := db.names[d]; !ok {
			db.names[d] = name
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("database %s:%d: %w", from, n+1, err)
	}
	if lr.N <= 0 {
		return nil, fmt.Errorf("database %s: longer than %d bytes", from, maxDatabase)
	}
	return db, nil
}

func parseKnown(line string) (d [sha256.Size]byte, name string, err error) {
	line = strings.TrimPrefix(line, `\`) // sha256sum marks a name with escapes so
	word, name, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
	b, err := hex.DecodeString(strings.TrimPrefix(word, "sha256:"))
	if err != nil || len(b) != len(d) {
		return d, "", fmt.Errorf("%.80q: want %d hex digits, with or without sha256: before them", word, 2*len(d))
	}
	return [sha256.Size]byte(b), strings.TrimPrefix(strings.TrimLeft(name, " "), "*"), nil
}

// Lookup finds a SHA-256 digest and its name.
func (db *Database) Lookup(digest []byte) (name string, ok bool) {
	if len(digest) != sha256.Size {
		return "", false
	}
	name, ok = db.names[[sha256.Size]byte(digest)]
	return name, ok
}

// String is where the database came from.
func (db *Database) String() string { return db.from }

// Known is a line of a database. Control characters in the name, which could end the line, become underscores.
func Known(digest []byte, name string) string {
	return fmt.Sprintf("sha256:%x  %s", digest, strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '_'
		}
		return r
	}, name))
}

// Policy is what becomes of a digest that is not in the database.
type Policy uint8

// Policies.
const (
	PolicyLog  Policy = iota // warn
	PolicyDeny               // EPERM
	PolicyLock               // EPERM, and nothing is trusted any more
)

var policyNames = []string{"log", "deny", "lock"}

func (p Policy) String() string {
	if int(p) < len(policyNames) {
		return policyNames[p]
	}
	return fmt.Sprintf("Policy(%d)", uint8(p))
}

// ParsePolicy finds a policy by its name.
func ParsePolicy(s string) (Policy, error) {
	for i, n := range policyNames {
		if n == s {
			return Policy(i), nil
		}
	}
	return 0, fmt.Errorf("policy %q: want %s", s, strings.Join(policyNames, ", "))
}
