package mirror

import (
	"io"
	"os"
	"slices"
	"testing"
	"time"
)

// BenchmarkControlFile opens, reads to the end and closes a file through FUSE, by turns one of a tree in the process that serves it and one of a
// worker's: direct-ns and mirror-ns are medians, ratio is what a worker costs.
func BenchmarkControlFile(b *testing.B) {
	m := mount(b)
	p := make([]byte, 4096)
	read := func(path string) time.Duration {
		from := time.Now()
		f, err := os.Open(m.dir + path)
		if err != nil {
			b.Fatal(err)
		}
		for err == nil {
			_, err = f.Read(p)
		}
		if f.Close(); err != io.EOF {
			b.Fatal(err)
		}
		return time.Since(from)
	}
	var direct, mirror []time.Duration
	for b.Loop() {
		direct = append(direct, read("/direct/proc/net/dev"))
		mirror = append(mirror, read("/deep/proc/net/dev"))
	}
	median := func(all []time.Duration) float64 {
		slices.Sort(all)
		return float64(all[len(all)/2])
	}
	d, w := median(direct), median(mirror)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(d, "direct-ns")
	b.ReportMetric(w, "mirror-ns")
	b.ReportMetric(w/d, "ratio")
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
