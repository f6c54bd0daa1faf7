//go:build vm

package guest

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/hugelgupf/p9/fsimpl/templatefs"
	"github.com/hugelgupf/p9/p9"
	"golang.org/x/sys/unix"
)

// folderServer serves the files of a folder by 9P2000.L, as far as a root file system needs it: no devices, no extended attributes, no locks. What
// it does, this process may do. (The package's own localfs takes no mode, and its tests need packages that are no more.)
type folderServer string

func (s folderServer) Attach() (p9.File, error) { return &served{path: string(s)}, nil }

// served is a file by its path, which leads through no symbolic link: the client resolves them.
type served struct {
	templatefs.NoopFile
	p9.DefaultWalkGetAttr
	path string
	file *os.File // once it is open
}

func (f *served) child(name string) *served { return &served{path: filepath.Join(f.path, name)} }

// stat is what the kernel says of it.
func (f *served) stat() (st unix.Stat_t, qid p9.QID, err error) {
	if err = unix.Lstat(f.path, &st); err == nil {
		qid = p9.QID{Type: p9.FileMode(st.Mode).QIDType(), Path: st.Ino}
	}
	return st, qid, err
}

func (f *served) Walk(names []string) (qids []p9.QID, at p9.File, err error) {
	to := &served{path: f.path}
	for _, name := range names {
		to = to.child(name)
		_, qid, err := to.stat()
		if err != nil {
			return nil, nil, err
		}
		qids = append(qids, qid)
	}
	return qids, to, nil
}

func (f *served) GetAttr(req p9.AttrMask) (p9.QID, p9.AttrMask, p9.Attr, error) {
	st, qid, err := f.stat()
	a := p9.Attr{
		Mode: p9.FileMode(st.Mode), UID: p9.UID(st.Uid), GID: p9.GID(st.Gid), NLink: p9.NLink(st.Nlink), RDev: p9.Dev(st.Rdev),
		Size: uint64(st.Size), BlockSize: uint64(st.Blksize), Blocks: uint64(st.Blocks),
		ATimeSeconds: uint64(st.Atim.Sec), ATimeNanoSeconds: uint64(st.Atim.Nsec),
		MTimeSeconds: uint64(st.Mtim.Sec), MTimeNanoSeconds: uint64(st.Mtim.Nsec),
		CTimeSeconds: uint64(st.Ctim.Sec), CTimeNanoSeconds: uint64(st.Ctim.Nsec),
	}
	return qid, req, a, err
}

// SetAttr takes sizes, modes and owners. Times are as they come.
func (f *served) SetAttr(valid p9.SetAttrMask, a p9.SetAttr) error {
	var errs []error
	if valid.Size {
		errs = append(errs, unix.Truncate(f.path, int64(a.Size)))
	}
	if valid.Permissions {
		errs = append(errs, unix.Chmod(f.path, uint32(a.Permissions)&0o7777))
	}
	uid, gid := -1, -1
	if valid.UID {
		uid = int(a.UID)
	}
	if valid.GID {
		gid = int(a.GID)
	}
	if uid != -1 || gid != -1 {
		errs = append(errs, unix.Lchown(f.path, uid, gid))
	}
	return errors.Join(errs...)
}

func (f *served) StatFS() (p9.FSStat, error) {
	var st unix.Statfs_t
	err := unix.Statfs(f.path, &st)
	return p9.FSStat{
		Type: 0x01021997, BlockSize: uint32(st.Bsize), Blocks: st.Blocks, BlocksFree: st.Bfree, BlocksAvailable: st.Bavail,
		Files: st.Files, FilesFree: st.Ffree, NameLength: uint32(st.Namelen),
	}, err
}

// open opens it, or makes it, with no more than what a root file system needs of the flags.
func (f *served) open(flags p9.OpenFlags, more int, mode uint32) (p9.QID, error) {
	const known = unix.O_ACCMODE | unix.O_APPEND | unix.O_TRUNC | unix.O_EXCL | unix.O_DIRECTORY
	fd, err := unix.Open(f.path, int(flags)&known|more|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, mode)
	if err != nil {
		return p9.QID{}, err
	}
	f.file = os.NewFile(uintptr(fd), f.path)
	_, qid, err := f.stat()
	return qid, err
}

func (f *served) Open(flags p9.OpenFlags) (p9.QID, uint32, error) {
	qid, err := f.open(flags, 0, 0)
	return qid, 0, err
}

func (f *served) Create(name string, flags p9.OpenFlags, mode p9.FileMode, _ p9.UID, _ p9.GID) (p9.File, p9.QID, uint32, error) {
	c := f.child(name)
	qid, err := c.open(flags, unix.O_CREAT, uint32(mode)&0o7777)
	if err != nil {
		_ = c.Close()
		return nil, qid, 0, err
	}
	return c, qid, 0, nil
}

func (f *served) Close() error {
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}

func (f *served) ReadAt(p []byte, off int64) (int, error)  { return f.file.ReadAt(p, off) }
func (f *served) WriteAt(p []byte, off int64) (int, error) { return f.file.WriteAt(p, off) }
func (f *served) FSync() error                             { return f.file.Sync() }
func (f *served) Readlink() (string, error)                { return os.Readlink(f.path) }

// Readdir lists from an entry on, by name, so that an offset means the same as before.
func (f *served) Readdir(offset uint64, count uint32) (all p9.Dirents, err error) {
	names, err := os.ReadDir(f.path)
	for i := offset; i < uint64(len(names)) && uint32(len(all)) < count; i++ {
		if _, qid, err := f.child(names[i].Name()).stat(); err == nil {
			all = append(all, p9.Dirent{QID: qid, Type: qid.Type, Name: names[i].Name(), Offset: i + 1})
		}
	}
	return all, err
}

func (f *served) Mkdir(name string, mode p9.FileMode, _ p9.UID, _ p9.GID) (p9.QID, error) {
	c := f.child(name)
	if err := unix.Mkdir(c.path, uint32(mode)&0o7777); err != nil {
		return p9.QID{}, err
	}
	_, qid, err := c.stat()
	return qid, err
}

func (f *served) UnlinkAt(name string, flags uint32) error {
	return unix.Unlinkat(unix.AT_FDCWD, f.child(name).path, int(flags))
}

func (f *served) RenameAt(from string, dir p9.File, to string) error {
	d, ok := dir.(*served)
	if !ok {
		return unix.EXDEV
	}
	return os.Rename(f.child(from).path, d.child(to).path)
}

func (f *served) Renamed(dir p9.File, name string) {
	if d, ok := dir.(*served); ok {
		f.path = d.child(name).path
	}
}
