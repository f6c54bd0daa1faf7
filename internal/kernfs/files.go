package kernfs

import (
	"context"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/ring3dev/ring3/internal/node"
)

// pageSize is the most that sysfs moves in one call.
const pageSize = 4096

// handle is one open file.
type handle struct {
	name string
	file *node.File

	stream *stream // of a file with Open

	mu    sync.Mutex
	shown bool
	text  []byte
}

// Open checks what default_permissions does not: sysfs lets not even root open a file for
// what no mode bit allows.
func (t *tree) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	e, st := t.begin(in.NodeId)
	if st != fuse.OK {
		return st
	}
	f, ok := e.node.(*node.File)
	if !ok {
		return fuse.EISDIR
	}
	acc := in.Flags & syscall.O_ACCMODE
	if acc != syscall.O_RDONLY && f.Mode&0o222 == 0 || acc != syscall.O_WRONLY && f.Mode&0o444 == 0 {
		return fuse.EACCES
	}
	if f.Open != nil {
		return t.openStream(interruptOf(cancel, &in.InHeader), e.name, f, in, out)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nextFh++
	t.open[t.nextFh] = &handle{name: e.name, file: f}
	out.Fh = t.nextFh
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return fuse.OK
}

func (t *tree) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	t.leaving(in.Fh) // if it was not yet
	t.finish(in.Fh)
}

// handleOf finds an open file.
func (t *tree) handleOf(fh uint64) (*handle, fuse.Status) {
	if t.dead.Load() {
		return nil, fuse.ENODEV
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.open[fh]; h != nil {
		return h, fuse.OK
	}
	return nil, fuse.EBADF
}

func (t *tree) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h, st := t.handleOf(in.Fh)
	if st != fuse.OK {
		return nil, st
	}
	by := interruptOf(cancel, &in.InHeader)
	if h.stream != nil {
		return t.readStream(by, h, int(in.Flags), len(buf))
	}
	if h.file.ReadAt != nil {
		return t.readBinary(by, h, int64(in.Offset), len(buf))
	}
	r, st := call(t, by, h.name+": show", func(ctx context.Context) ([]byte, error) { return h.content(ctx, in.Offset) })
	if st != fuse.OK {
		return nil, st
	}
	if in.Offset >= uint64(len(r)) {
		return fuse.ReadResultData(nil), fuse.OK
	}
	r = r[in.Offset:]
	return fuse.ReadResultData(r[:min(len(r), len(buf))]), fuse.OK
}

// content is the file's text, made now if it was not yet or if reading starts over. The
// result is not changed later.
func (h *handle) content(ctx context.Context, off uint64) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.shown || off == 0 {
		text, err := h.file.Content(ctx)
		if err != nil {
			return nil, err
		}
		h.text, h.shown = text, true
	}
	return h.text, nil
}

// readBinary reads at most a page, inside the file's size.
func (t *tree) readBinary(by interrupt, h *handle, off int64, n int) (fuse.ReadResult, fuse.Status) {
	n = min(n, pageSize)
	if size := int64(h.file.Size); size > 0 {
		n = int(max(0, min(int64(n), size-off)))
	}
	if n == 0 || off < 0 {
		return fuse.ReadResultData(nil), fuse.OK
	}
	p, st := call(t, by, h.name+": read", func(context.Context) ([]byte, error) {
		p := make([]byte, n)
		got, err := h.file.ReadAt(p, off)
		if got > 0 { // io.EOF comes with the last bytes, or alone at the end
			return p[:min(got, n)], nil
		}
		return nil, notEOF(err)
	})
	return fuse.ReadResultData(p), st
}

func (t *tree) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h, st := t.handleOf(in.Fh)
	if st != fuse.OK {
		return 0, st
	}
	p := append([]byte(nil), data...) // data is reused once this call returns
	by := interruptOf(cancel, &in.InHeader)
	if h.stream != nil {
		return t.writeStream(by, h, int(in.Flags), p)
	}
	n, st := call(t, by, h.name+": store", func(ctx context.Context) (int, error) {
		if h.file.WriteAt != nil {
			return h.writeBinary(p, int64(in.Offset))
		}
		return h.file.Write(ctx, p)
	})
	if st != fuse.OK {
		return 0, st
	}
	if n < 0 || n > len(p) {
		t.log.Error("a store took an impossible number of bytes", "file", h.name, "took", n, "of", len(p))
		return 0, fuse.EIO
	}
	return uint32(n), fuse.OK
}

// writeBinary writes at most a page, inside the file's size.
func (h *handle) writeBinary(p []byte, off int64) (int, error) {
	p = p[:min(len(p), pageSize)]
	if size := int64(h.file.Size); size > 0 {
		if off < 0 || off >= size {
			return 0, syscall.EFBIG
		}
		p = p[:min(int64(len(p)), size-off)]
	}
	return h.file.WriteAt(p, off)
}
