package fabricd

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"

	"github.com/ring3dev/ring3/internal/unixconn"
)

// CheckOwner fails with fs.ErrPermission unless the process that listens at the other end of a connection, to a fabric's socket at path, is
// this user's, root's, or of one of the owners. In a folder that others may write to anybody may take the place of a fabric that is gone, and
// would get all that its nodes send.
func CheckOwner(c *net.UnixConn, path string, owners ...int) error {
	cred, err := unixconn.Peer(c)
	if err != nil {
		return fmt.Errorf("whose fabric is at %s: %w", path, err)
	}
	if uid := int(cred.Uid); stranger(uid, os.Geteuid(), owners) {
		return fmt.Errorf("the fabric at %s is run by the user %d, not by this one or root: %w", path, uid, fs.ErrPermission)
	}
	return nil
}

// stranger tells whether a user is none whose fabric this one takes part in.
func stranger(uid, self int, owners []int) bool {
	return uid != self && uid != 0 && !slices.Contains(owners, uid)
}
