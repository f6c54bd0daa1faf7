package mirror

import (
	"io"
	"os"
	"testing"
)

// BenchmarkControlFile opens, reads to the end and closes a file through FUSE: of a tree in the process that serves it, and of a worker's.
func BenchmarkControlFile(b *testing.B) {
	m := mount(b)
	for _, c := range []struct{ name, path string }{{"direct", "/direct/proc/net/dev"}, {"mirror", "/deep/proc/net/dev"}} {
		b.Run(c.name, func(b *testing.B) {
			p := make([]byte, 4096)
			for b.Loop() {
				f, err := os.Open(m.dir + c.path)
				if err != nil {
					b.Fatal(err)
				}
				for err == nil {
					_, err = f.Read(p)
				}
				if f.Close(); err != io.EOF {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkShow is the mirror's part of it.
func BenchmarkShow(b *testing.B) {
	t := NewTree(TreeOptions{})
	p := t.Part("a")
	w, err := spawnWorker(p, "1")
	if err != nil {
		b.Fatal(err)
	}
	defer w.kill()
	p.Attach(w.link)
	if err := p.Sync(patient(b)); err != nil {
		b.Fatal(err)
	}
	f := find(b, t, "proc/net/dev")
	for b.Loop() {
		if _, err := f.ReadAll(); err != nil {
			b.Fatal(err)
		}
	}
}
