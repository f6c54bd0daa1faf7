package host

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/internal/frame"
)

func (a *app) pcapCmd() *cobra.Command {
	var count int
	c := &cobra.Command{
		Use:     "pcap FILE",
		Short:   "Print the frames of a capture, decoded",
		Example: "  ring3 pcap -n 5 eth0.pcap",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			if count < 0 {
				return usagef("pcap: -n %d: want 0 or more", count)
			}
			return a.pcap(args[0], count)
		},
	}
	c.Flags().IntVarP(&count, "count", "n", 0, "stop after `N` frames (0: all)")
	return c
}

// pcap prints one line a frame: its time since the first, length and content. A capture
// that ends in the middle of a record (a full disk, a killed QEMU) is printed up to there,
// with a warning.
func (a *app) pcap(file string, count int) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("pcap: %w", err)
	}
	defer f.Close()
	p, err := frame.NewPcap(f)
	if err != nil {
		return fmt.Errorf("pcap: %s: %w", file, err)
	}
	var first time.Time
	for n := 1; count == 0 || n <= count; n++ {
		b, at, err := p.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			fmt.Fprintf(a.stderr, "ring3: pcap: %s: frame %d is cut short; the capture ends there\n", file, n)
			return nil
		case err != nil:
			return fmt.Errorf("pcap: %s: %w", file, err)
		}
		if n == 1 {
			first = at
		}
		d, err := frame.Decode(b)
		if a.json {
			if err := a.printJSON(d); err != nil {
				return err
			}
			continue
		}
		text := d.String()
		if err != nil {
			text = err.Error()
		}
		if _, err := fmt.Fprintf(a.stdout, "%4d %10.6f %5d  %s\n", n, at.Sub(first).Seconds(), len(b), text); err != nil {
			return err
		}
	}
	return nil
}
