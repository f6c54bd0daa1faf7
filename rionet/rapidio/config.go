package rapidio

import (
	"context"
	"encoding/binary"

	"github.com/ring3dev/ring3/sysfs"
)

// configChunk is the most that one read or write of config moves: a page, which is what the kernel asks for at a time, too. `ring3 get`
// asks for all of the 16 MiB at once, and would wait for four million transactions.
const configChunk = pageSize

// configFile is a device's configuration space as a file, big-endian as it is: aligned words are accessed as such, the rest as bytes and
// halves. What fails ends a read or write; at its beginning it is its error.
func configFile(d *Device) *sysfs.File {
	transfer := func(p []byte, off int64, access func(p []byte, off Off, w Width) error) (int, error) {
		if off < 0 || off >= ConfigSize {
			return 0, nil
		}
		p = p[:min(int64(len(p)), ConfigSize-off, configChunk)]
		for done := 0; done < len(p); {
			at := Off(off) + Off(done)
			w := widthAt(at, len(p)-done)
			if err := access(p[done:done+int(w)], at, w); err != nil {
				if done > 0 {
					return done, nil
				}
				return 0, errno(err)
			}
			done += int(w)
		}
		return len(p), nil
	}
	read := func(p []byte, off Off, w Width) error {
		ctx, cancel := context.WithTimeout(context.Background(), showTime)
		defer cancel()
		v, err := d.read(ctx, off, w)
		if err != nil {
			return err
		}
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], v<<(32-8*uint(w)))
		copy(p, b[:w])
		return nil
	}
	write := func(p []byte, off Off, w Width) error {
		ctx, cancel := context.WithTimeout(context.Background(), showTime)
		defer cancel()
		var b [4]byte
		copy(b[4-w:], p)
		return d.write(ctx, off, w, binary.BigEndian.Uint32(b[:]))
	}
	return sysfs.Binary(0o644, ConfigSize,
		func(p []byte, off int64) (int, error) { return transfer(p, off, read) },
		func(p []byte, off int64) (int, error) { return transfer(p, off, write) })
}

// widthAt is the widest access at an offset that takes no more than n bytes.
func widthAt(off Off, n int) Width {
	switch {
	case off&1 != 0 || n < 2:
		return 1
	case off&3 != 0 || n < 4:
		return 2
	}
	return 4
}
