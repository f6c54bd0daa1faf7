package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/ring3dev/ring3/host"
)

// Command is `ring3 bench`: it prints the rows as they come, as text or as one JSON object a
// line.
func Command(ctx context.Context, o host.BenchOptions) error {
	if text, ok := rioNodeOf(); ok {
		return runRIONode(ctx, text, o.Log, os.Stdin, o.Stdout)
	}
	rows := 0
	emit := func(r Row) error {
		rows++
		_, err := fmt.Fprintln(o.Stdout, r)
		return err
	}
	if o.JSON {
		enc := json.NewEncoder(o.Stdout)
		emit = func(r Row) error {
			rows++
			return enc.Encode(r)
		}
	}
	err := Run(ctx, Options{
		Only: o.Only, Time: o.Time, Pairs: o.Pairs, Drivers: o.Drivers, Services: o.Services,
		Log: o.Log, Stderr: o.Stderr, FirstFrame: o.FirstFrame, PlugFrame: o.PlugFrame,
	}, emit)
	if err == nil && rows == 0 {
		return fmt.Errorf("bench: no row was measured of --only %q", o.Only)
	}
	return err
}

// CompareCommand is `ring3 bench compare`.
func CompareCommand(before, after string, asJSON bool, w io.Writer) error {
	rows, missing, err := Compare(before, after)
	if err != nil {
		return err
	}
	if !asJSON {
		return printCompared(w, rows, missing)
	}
	enc := json.NewEncoder(w)
	for _, c := range rows {
		if err := enc.Encode(c); err != nil {
			return err
		}
	}
	return nil
}
