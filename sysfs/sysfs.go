// Package sysfs is the vocabulary for attributes as /sys has them. It knows nothing of
// how they are served.
//
// An attribute is one value in one file: st_size 4096, at most a page of text, one call
// of show per open, one call of store per write(2), writes cut to a page. Without a
// show or a store the access gives EIO.
package sysfs

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"strings"

	"github.com/ring3dev/ring3/internal/node"
)

// Dir, File, Link and Node are the parts of a tree.
type (
	Dir  = node.Dir
	File = node.File
	Link = node.Link
	Node = node.Node
)

// Attr makes an attribute with a show and a store, either of which may be nil.
func Attr(mode fs.FileMode, show func(w *bytes.Buffer) error, store func(ctx context.Context, p []byte) (int, error)) *File {
	return &File{Mode: mode, Flavour: node.Sys, Show: show, Store: store}
}

// Show makes a read-only attribute (0444) of what f returns, with a newline added.
func Show(f func() string) *File {
	return Attr(0o444, func(w *bytes.Buffer) error {
		w.WriteString(f())
		w.WriteByte('\n')
		return nil
	}, nil)
}

// Showf makes a read-only attribute that never changes.
func Showf(format string, args ...any) *File {
	s := fmt.Sprintf(format, args...)
	return Show(func() string { return s })
}

// Binary makes a binary attribute of size bytes; write may be nil.
func Binary(mode fs.FileMode, size int, read, write func(p []byte, off int64) (int, error)) *File {
	return &File{Mode: mode, Flavour: node.Sys, Size: size, ReadAt: read, WriteAt: write}
}

// Rel is the relative link from the directory at from to the path to, both absolute
// inside one tree: Rel("/class/net", "/devices/pci0") is "../../devices/pci0".
func Rel(from, to string) string {
	f := strings.Split(strings.Trim(from, "/"), "/")
	t := strings.Split(strings.Trim(to, "/"), "/")
	for len(f) > 0 && len(t) > 0 && f[0] == t[0] {
		f, t = f[1:], t[1:]
	}
	return strings.Repeat("../", len(f)) + strings.Join(t, "/")
}
