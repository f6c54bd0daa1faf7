package host

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// What a QEMU may say: whoever has its qtest socket can have it complain as often as it is asked to.
const (
	qemuWords    = 50 // warnings and errors at once
	qemuWordRate = 1  // a second, after those
)

// pacedHandler leaves out warnings and errors that come too fast, and counts them.
type pacedHandler struct {
	slog.Handler
	who string
	b   *bucket
}

// paced is a log for what who says.
func paced(log *slog.Logger, who string) *slog.Logger {
	return slog.New(pacedHandler{log.Handler(), who, &bucket{burst: qemuWords, rate: qemuWordRate}})
}

// Handle implements slog.Handler.
func (h pacedHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		return h.Handler.Handle(ctx, r)
	}
	ok, missed := h.b.take(time.Now())
	if missed > 0 {
		left := slog.NewRecord(r.Time, slog.LevelWarn, fmt.Sprintf("%s: %d messages of its QEMU's are left out", h.who, missed), 0)
		if err := h.Handler.Handle(ctx, left); err != nil {
			return err
		}
	}
	if !ok {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h pacedHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return pacedHandler{h.Handler.WithAttrs(a), h.who, h.b}
}

// WithGroup implements slog.Handler.
func (h pacedHandler) WithGroup(name string) slog.Handler {
	return pacedHandler{h.Handler.WithGroup(name), h.who, h.b}
}
