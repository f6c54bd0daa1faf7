// Package runlabel names the goroutines of a run, of which many are made side by side, and all that they start: in profiles, in the traceback of a panic that
// nobody here can guard, and to find those that a run left behind.
package runlabel

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"runtime/pprof"
	"strings"
)

const label = "ring3fault"

// Do calls f, whose goroutine and all that it starts bear the run's name until they end. A name has one line.
func Do(ctx context.Context, run string, f func(context.Context)) {
	pprof.Do(ctx, pprof.Labels(label, run), f)
}

// entry is a group of goroutines with a label in a profile.
var entry = regexp.MustCompile(`^[0-9]+ @.*\n# labels: \{.*"` + label + `":"([^"]*)"`)

// Left are the runs whose goroutines are there now: a name, and a stack below it.
func Left() []string {
	var b bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&b, 1)
	var out []string
	for _, g := range strings.Split(b.String(), "\n\n") {
		if _, rest, ok := strings.Cut(g, "goroutine profile:"); ok {
			_, g, _ = strings.Cut(rest, "\n")
		}
		if m := entry.FindStringSubmatch(g); m != nil {
			out = append(out, m[1]+"\n"+g)
		}
	}
	return out
}

// InTracebacks has the runtime print names in tracebacks, until undo.
func InTracebacks() (undo func()) {
	const name = "GODEBUG"
	old, was := os.LookupEnv(name)
	if strings.Contains(old, "tracebacklabels") {
		return func() {}
	}
	_ = os.Setenv(name, strings.TrimPrefix(old+",tracebacklabels=1", ","))
	return func() {
		if was {
			_ = os.Setenv(name, old)
		} else {
			_ = os.Unsetenv(name)
		}
	}
}
