package hwbind

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"time"
)

// Account is a user of this machine.
type Account struct {
	Name, Home string
	UID, GID   int
	Groups     []int // all of them
}

// FindAccount finds a user by name or number.
func FindAccount(name string) (*Account, error) {
	u, err := user.Lookup(name)
	if err != nil && isNumber(name) {
		u, err = user.LookupId(name)
	}
	a := &Account{}
	if err == nil {
		a.Name, a.Home = u.Username, u.HomeDir
		err = errors.Join(put(&a.UID, u.Uid), put(&a.GID, u.Gid))
	} else {
		// A program without cgo reads files; directories (LDAP) are asked by who can.
		err = a.parse(run("getent", "passwd", "--", name))
	}
	if err != nil {
		return nil, fmt.Errorf("user %q: no such user here ('getent passwd' lists those there are)", name)
	}
	ids := strings.Fields(run("id", "-G", "--", a.Name))
	if len(ids) == 0 && u != nil {
		ids, _ = u.GroupIds()
	}
	for _, id := range ids {
		var n int
		if put(&n, id) == nil {
			a.Groups = append(a.Groups, n)
		}
	}
	return a, nil
}

// parse reads a line of passwd(5).
func (a *Account) parse(line string) error {
	f := strings.Split(strings.TrimSpace(line), ":")
	if len(f) != 7 {
		return fmt.Errorf("passwd line %q: want 7 fields", line)
	}
	a.Name, a.Home = f[0], f[5]
	return errors.Join(put(&a.UID, f[2]), put(&a.GID, f[3]))
}

// put reads a number of a user or group.
func put(n *int, s string) error {
	v, err := strconv.ParseUint(s, 10, 31)
	*n = int(v)
	return err
}

func isNumber(s string) bool {
	var n int
	return put(&n, s) == nil
}

// run is what a small program says; "" where it fails.
func run(argv ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if err != nil {
		return ""
	}
	return string(out)
}

// FindUser finds who is to own nodes, by name or number. A number need not be known to the
// machine.
func FindUser(name string) (*Owner, error) {
	a, err := FindAccount(name)
	var n int
	switch {
	case err == nil:
		return &Owner{Name: a.Name, UID: a.UID}, nil
	case put(&n, name) == nil:
		return &Owner{Name: name, UID: n}, nil
	}
	return nil, err
}

// userName is a user's name, or number where it has none.
func userName(uid int) string {
	if a, err := FindAccount(strconv.Itoa(uid)); err == nil {
		return a.Name
	}
	return strconv.Itoa(uid)
}
