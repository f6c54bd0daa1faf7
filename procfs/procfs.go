// Package procfs is the vocabulary for files as /proc has them: a name, a mode, a show
// and a store. It knows nothing of how they are served.
//
// A procfs file shows st_size 0, its show makes the whole text at the first read, and
// one write(2) of any length is one call of its store.
package procfs

import (
	"bytes"
	"context"
	"io/fs"

	"github.com/ring3dev/ring3/internal/node"
)

// Dir, File, Link and Node are the parts of a tree.
type (
	Dir  = node.Dir
	File = node.File
	Link = node.Link
	Node = node.Node
)

// New makes a file. show or store may be nil: then reading, or writing, gives EIO.
func New(mode fs.FileMode, show func(w *bytes.Buffer) error, store func(ctx context.Context, p []byte) (int, error)) *File {
	return &File{Mode: mode, Flavour: node.Proc, Show: show, Store: store}
}
