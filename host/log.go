package host

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
)

// plainHandler prints warnings and errors as the lines that commands print: "ring3: ...".
type plainHandler struct {
	mu *sync.Mutex
	w  io.Writer
}

func newPlainHandler(w io.Writer) slog.Handler { return &plainHandler{mu: &sync.Mutex{}, w: w} }

func (h *plainHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (h *plainHandler) Handle(_ context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := fmt.Fprintf(h.w, "ring3: %s\n", r.Message)
	return err
}

func (h *plainHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h *plainHandler) WithGroup(string) slog.Handler      { return h }
