package klog

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"unicode"
)

// prefixKeys are the attributes that begin a line, in this order.
var prefixKeys = [...]string{"driver", "address", "device"}

// handler is a slog.Handler with the attributes of its With calls, already in text.
type handler struct {
	ring   *Ring
	prefix [len(prefixKeys)]string
	attrs  string // " key=value key=value"
	group  string // "a.b."
}

// Handler is the ring as a slog.Handler.
func (r *Ring) Handler() slog.Handler { return &handler{ring: r} }

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, l slog.Level) bool {
	return l >= h.ring.o.Level.Level() ||
		h.ring.o.Stderr != nil && l >= h.ring.o.StderrLevel.Level()
}

// Handle implements slog.Handler.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	line := *h
	r.Attrs(func(a slog.Attr) bool {
		line.add(line.group, a)
		return true
	})
	var b strings.Builder
	for _, p := range line.prefix {
		if p == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(p)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(strings.TrimRight(r.Message, "\n"))
	b.WriteString(line.attrs)
	h.ring.add(r.Level, b.String())
	return nil
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(as []slog.Attr) slog.Handler {
	c := *h
	for _, a := range as {
		c.add(c.group, a)
	}
	return &c
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.group += name + "."
	return &c
}

// add takes in one attribute.
func (h *handler) add(group string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, sub := range v.Group() {
			h.add(group, sub)
		}
		return
	}
	if a.Key == "" && v.Equal(slog.Value{}) { // slog says to leave those out
		return
	}
	s := v.String()
	if group == "" {
		for i, k := range prefixKeys {
			if a.Key == k {
				h.prefix[i] = s
				return
			}
		}
	}
	h.attrs += " " + quote(group+a.Key) + "=" + quote(s)
}

// quote quotes what would not read as one word.
func quote(s string) string {
	if s == "" {
		return `""`
	}
	for _, c := range s {
		if c == '"' || c == '=' || unicode.IsSpace(c) || !unicode.IsPrint(c) {
			return strconv.Quote(s)
		}
	}
	return s
}
