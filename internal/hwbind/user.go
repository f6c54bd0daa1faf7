package hwbind

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"
)

// FindUser finds a user by name or number. A number need not be known to the machine.
func FindUser(name string) (*Owner, error) {
	u, err := user.Lookup(name)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) {
		if n, numeric := strconv.ParseUint(name, 10, 31); numeric == nil {
			if u, err = user.LookupId(name); err != nil {
				return &Owner{Name: name, UID: int(n)}, nil
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("user %q: no such user here ('getent passwd' lists those there are)", name)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, fmt.Errorf("user %q: its number is %q: %w", name, u.Uid, err)
	}
	return &Owner{Name: u.Username, UID: uid}, nil
}

// userName is a user's name, or number where it has none.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}
