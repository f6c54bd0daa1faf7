package kernfs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/ring3dev/ring3/internal/node"
)

// noNew is why a name cannot be made in a directory: procfs does not even look (ENOENT),
// sysfs says that it is not permitted.
func (t *tree) noNew(dir uint64) fuse.Status {
	e, st := t.begin(dir)
	if st != fuse.OK {
		return st
	}
	if e.flavour == node.Sys {
		return fuse.EPERM
	}
	return fuse.ENOENT
}

// Create is open(2) with O_CREAT of a name that does not exist.
func (t *tree) Create(_ <-chan struct{}, in *fuse.CreateIn, _ string, _ *fuse.CreateOut) fuse.Status {
	if st := t.noNew(in.NodeId); st != fuse.EPERM {
		return st
	}
	return fuse.EACCES
}

func (t *tree) Tmpfile(_ <-chan struct{}, _ *fuse.CreateIn, _ *fuse.CreateOut) fuse.Status {
	return fuse.ENOTSUP
}

func (t *tree) Mknod(_ <-chan struct{}, in *fuse.MknodIn, _ string, _ *fuse.EntryOut) fuse.Status {
	return t.noNew(in.NodeId)
}

func (t *tree) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, _ string, _ *fuse.EntryOut) fuse.Status {
	return t.noNew(in.NodeId)
}

func (t *tree) Symlink(_ <-chan struct{}, h *fuse.InHeader, _, _ string, _ *fuse.EntryOut) fuse.Status {
	return t.noNew(h.NodeId)
}

func (t *tree) Link(_ <-chan struct{}, in *fuse.LinkIn, _ string, _ *fuse.EntryOut) fuse.Status {
	return t.noNew(in.NodeId)
}

func (t *tree) Rename(_ <-chan struct{}, in *fuse.RenameIn, _, _ string) fuse.Status {
	return t.noNew(in.Newdir)
}

func (t *tree) Unlink(_ <-chan struct{}, _ *fuse.InHeader, _ string) fuse.Status { return fuse.EPERM }
func (t *tree) Rmdir(_ <-chan struct{}, _ *fuse.InHeader, _ string) fuse.Status  { return fuse.EPERM }

func (t *tree) Fallocate(_ <-chan struct{}, _ *fuse.FallocateIn) fuse.Status {
	return fuse.Status(syscall.EOPNOTSUPP)
}

// Fsync is for nothing in files of text, and for character devices not at all.
func (t *tree) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, st := t.handleOf(in.Fh)
	if st == fuse.OK && h.stream != nil {
		return fuse.EINVAL
	}
	return st
}

// Flush is told to be unknown, so that the kernel does not ask at every close(2).
func (t *tree) Flush(_ <-chan struct{}, _ *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }
