package integration

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/frame"
)

// goldenDir is where package pktgen's tests find what the kernel sent: a capture for each case of
// integration/guest/testdata/pktgen.txt, and below random for each of pktgen_random.txt. A frame's second of
// capture says which start of its case sent it, from 0.
const goldenDir = "../pktgen/testdata/kernel-6.1"

// goldenPktgen is told by a test in the VM (guest.TestRootPktgen) what the kernel's pktgen sent, by case and start. It
// compares that with the captures in goldenDir and returns the differences; with RING3_GOLDEN (make golden) it
// makes the captures.
func goldenPktgen(args json.RawMessage) (any, error) {
	var a struct{ Fixed, Random map[string][][][]byte }
	if err := json.Unmarshal(args, &a); err != nil {
		return nil, err
	}
	if os.Getenv("RING3_GOLDEN") != "" {
		if err := os.RemoveAll(goldenDir); err != nil {
			return nil, err
		}
		return nil, errors.Join(writeCaptures(goldenDir, a.Fixed), writeCaptures(filepath.Join(goldenDir, "random"), a.Random))
	}
	var differences []string
	for _, name := range slices.Sorted(maps.Keys(a.Fixed)) {
		had, err := readCapture(captureName(goldenDir, name))
		if err == nil && !slices.EqualFunc(had, slices.Concat(a.Fixed[name]...), bytes.Equal) {
			err = fmt.Errorf("the kernel sends other frames than those in %s; make golden makes it again", captureName(goldenDir, name))
		}
		if err != nil {
			differences = append(differences, fmt.Sprintf("%s: %v", name, err))
		}
	}
	return differences, nil
}

// captureName is the file of a case; package pktgen's tests know it too.
func captureName(dir, name string) string {
	return filepath.Join(dir, strings.NewReplacer(" ", "-", ",", "", "'", "").Replace(strings.ToLower(name))+".pcap.gz")
}

func writeCaptures(dir string, cases map[string][][][]byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, runs := range cases {
		var b bytes.Buffer
		z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
		if err != nil {
			return err
		}
		p, err := frame.NewPcapWriter(z)
		if err != nil {
			return err
		}
		for i, frames := range runs {
			for _, f := range frames {
				if err := p.Write(f, time.Unix(int64(i), 0)); err != nil {
					return err
				}
			}
		}
		if err := z.Close(); err != nil {
			return err
		}
		if err := os.WriteFile(captureName(dir, name), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func readCapture(file string) (frames [][]byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := frame.NewPcap(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for {
		b, _, err := p.NextWhole()
		if errors.Is(err, io.EOF) {
			return frames, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		frames = append(frames, bytes.Clone(b))
	}
}

// TestGoldenPktgen checks that a difference to what the kernel sent is noticed.
func TestGoldenPktgen(t *testing.T) {
	t.Setenv("RING3_GOLDEN", "")
	files, err := filepath.Glob(goldenDir + "/*.pcap.gz")
	if err != nil || len(files) < 40 {
		t.Fatalf("%d captures, want 40 at least: %v", len(files), err)
	}
	sent := map[string][][][]byte{}
	differences := func() []string {
		t.Helper()
		args, err := json.Marshal(map[string]any{"fixed": sent})
		if err != nil {
			t.Fatal(err)
		}
		d, err := goldenPktgen(args)
		if err != nil {
			t.Fatal(err)
		}
		return d.([]string)
	}
	for _, f := range files {
		frames, err := readCapture(f)
		if err != nil {
			t.Fatal(err)
		}
		sent[strings.TrimSuffix(filepath.Base(f), ".pcap.gz")] = [][][]byte{frames[:1], frames[1:]}
	}
	if d := differences(); len(d) != 0 {
		t.Errorf("the same frames: %q, want no difference", d)
	}
	sent["vlan"][0][0][0] ^= 1
	sent["ipv6"][1] = sent["ipv6"][1][1:]
	sent["none-such"] = nil
	if d := differences(); len(d) != 3 {
		t.Errorf("a bit, a frame and a case: %q, want 3 differences", d)
	}
}
