package host

import (
	"context"
	"fmt"
	"log/slog"
)

// uncontained says why a group's workers keep their rights, and are not replaced by themselves; nil: they do not, and are.
func (s *supervisor) uncontained(g groupPlan) error {
	f := unconfined
	if s.c.Unconfined != nil {
		f = s.c.Unconfined
	}
	for _, d := range g.Plan.Devices {
		if err := f(d); err != nil {
			return err
		}
	}
	return nil
}

// tellBare says that a group is not contained.
func (ch *charge) tellBare() {
	if ch.bare == nil {
		return
	}
	level := slog.LevelInfo // as it is meant to be
	if ch.s.c.Asked {
		level = slog.LevelWarn
	}
	ch.s.log.Log(context.Background(), level, fmt.Sprintf("%s: the driver has a process of its own, but keeps its user's rights: %v", ch.Name, ch.bare))
}
