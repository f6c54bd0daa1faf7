package host

import "github.com/ring3dev/ring3/internal/sandbox"

// enterSandbox gives up what a worker does not need.
func enterSandbox() error { return sandbox.Enter() }
