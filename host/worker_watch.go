package host

// watchdog is a worker's own.
type watchdog struct{}

func newWatchdog(s *System, say func(suspect)) *watchdog { return &watchdog{} }

func (w *watchdog) stop() {}
