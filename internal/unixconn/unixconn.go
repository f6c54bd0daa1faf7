// Package unixconn is what servers of Unix sockets have in common: taking connections, and asking who is at the other end of one.
package unixconn

import (
	"context"
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// retryTime is how long Accept leaves a kernel alone that had no descriptors or memory: some connection will end.
const retryTime = 100 * time.Millisecond

// Accept takes a connection; nil once ctx has ended or ln is closed. failed is told each time that the kernel gives none for another reason.
func Accept(ctx context.Context, ln *net.UnixListener, failed func(error)) *net.UnixConn {
	for {
		c, err := ln.AcceptUnix()
		if err == nil {
			return c
		}
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil
		}
		failed(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryTime):
		}
	}
}

// Peer is who is at the other end (unix(7), SO_PEERCRED): who called connect or listen, as this process's namespaces name him.
func Peer(c *net.UnixConn) (*unix.Ucred, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var op error
	if err := rc.Control(func(fd uintptr) { cred, op = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	return cred, op
}
