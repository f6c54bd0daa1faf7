package instance

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"syscall"

	"github.com/ring3dev/ring3/internal/node"
)

// The operations on an exported tree, beside those that a host defines itself.
const (
	opGet     = "get"
	opSet     = "set"
	opReaddir = "readdir"
)

type pathArgs struct {
	Path string `json:"path"`
	Data []byte `json:"data,omitempty"`
}

type getResult struct {
	Data []byte `json:"data"`
}

type setResult struct {
	N int `json:"n"` // bytes taken; less than all only where the command was interrupted
}

// DirEntry is one name of a directory, as Readdir lists it.
type DirEntry struct {
	Name   string `json:"name"`
	Type   string `json:"type"` // "dir", "file" or "link"
	Mode   uint32 `json:"mode"` // permission bits
	Target string `json:"target,omitempty"`
}

// TreeHandlers are get, set and readdir on the tree at root, which holds proc, sys and
// dev. They show and store what its mount would, without one; files whose opens have state they refuse.
func TreeHandlers(root *node.Dir) Handlers {
	return Handlers{
		opGet: func(ctx context.Context, args json.RawMessage, _ func(any) error) (any, error) {
			f, _, err := openFile(opGet, root, args)
			if err != nil {
				return nil, err
			}
			b, err := f.Content(ctx)
			if err != nil {
				return nil, fmt.Errorf("%w", node.Errno(err))
			}
			return getResult{b}, nil
		},
		opSet: func(ctx context.Context, args json.RawMessage, _ func(any) error) (any, error) {
			f, data, err := openFile(opSet, root, args)
			if err != nil {
				return nil, err
			}
			return store(ctx, f, data)
		},
		opReaddir: func(_ context.Context, args json.RawMessage, _ func(any) error) (any, error) {
			var a pathArgs
			if err := parseArgs(opReaddir, args, &a); err != nil {
				return nil, err
			}
			n, err := walk(root, a.Path)
			if err != nil {
				return nil, err
			}
			d, ok := n.(*node.Dir)
			if !ok {
				return nil, syscall.ENOTDIR
			}
			return list(d), nil
		},
	}
}

// walk finds the node that a user's path means: "/proc/net/dev" or "proc/net/dev".
func walk(root *node.Dir, path string) (node.Node, error) {
	if strings.ContainsRune(path, 0) {
		return nil, syscall.EINVAL
	}
	return root.Walk(path)
}

func openFile(op string, root *node.Dir, args json.RawMessage) (*node.File, []byte, error) {
	var a pathArgs
	if err := parseArgs(op, args, &a); err != nil {
		return nil, nil, err
	}
	n, err := walk(root, a.Path)
	if err != nil {
		return nil, nil, err
	}
	f, ok := n.(*node.File)
	if !ok {
		return nil, nil, syscall.EISDIR
	}
	// The mode says what a mount's open would: nobody reads a file without r bits.
	want := map[string]uint32{opGet: 0o444, opSet: 0o222}[op]
	if uint32(f.Mode.Perm())&want == 0 {
		return nil, nil, syscall.EACCES
	}
	if f.Open != nil { // also for set with no data, which would write nothing
		return nil, nil, node.ErrStream
	}
	return f, a.Data, nil
}

// store writes as a shell's echo would: whole, going on after a short count.
func store(ctx context.Context, f *node.File, p []byte) (any, error) {
	done := 0
	for done < len(p) && (done == 0 || ctx.Err() == nil) {
		n, err := f.Write(ctx, p[done:])
		if n < 0 || n > len(p)-done {
			return nil, fmt.Errorf("store took %d of %d bytes: %w", n, len(p)-done, syscall.EIO)
		}
		done += n
		if err != nil {
			return nil, fmt.Errorf("%w", node.Errno(err))
		}
		if n == 0 {
			return nil, syscall.EIO
		}
	}
	return setResult{N: done}, nil
}

func list(d *node.Dir) []DirEntry {
	out := []DirEntry{}
	for _, name := range d.Names() {
		e := DirEntry{Name: name}
		switch n := d.Lookup(name).(type) {
		case *node.Dir:
			e.Type, e.Mode = "dir", uint32(n.Mode.Perm())
			if e.Mode == 0 {
				e.Mode = 0o555
			}
		case *node.File:
			e.Type, e.Mode = "file", uint32(n.Mode.Perm())
		case *node.Link:
			e.Type, e.Mode, e.Target = "link", 0o777, n.Target
		default: // removed meanwhile
			continue
		}
		out = append(out, e)
	}
	return out
}

// Get reads a file of the tree to its end.
func (c *Client) Get(ctx context.Context, path string) ([]byte, error) {
	var r getResult
	err := c.Call(ctx, opGet, pathArgs{Path: path}, &r)
	return r.Data, err
}

// Set writes value to a file of the tree, as one write(2) or, where the file takes less,
// several. A command that ran until ctx ended has done its work: that is no error.
func (c *Client) Set(ctx context.Context, path string, value []byte) error {
	return c.Call(ctx, opSet, pathArgs{Path: path, Data: value}, nil)
}

// Readdir lists a directory of the tree.
func (c *Client) Readdir(ctx context.Context, path string) ([]DirEntry, error) {
	var r []DirEntry
	err := c.Call(ctx, opReaddir, pathArgs{Path: path}, &r)
	return r, err
}
