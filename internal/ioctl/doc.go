// Package ioctl is the one place where system calls take pointers: each operation that
// golang.org/x/sys/unix does not offer is one function here, in a file named
// *_unsafe.go, with its safety argument.
package ioctl
