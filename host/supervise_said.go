package host

import (
	"fmt"
	"reflect"
	"strings"
)

// A worker says what its devices are called and how they are. None may say so of another group's, nor steer the terminal of who reads it.

// maxClaim is how much of each text is taken over, in bytes.
const maxClaim = 1024

// mayName says whether a group may have a device of that name: it must be a word, and the plan must not have given it to another group.
func (ch *charge) mayName(device string) bool {
	if device == "" || len(device) > maxClaim || strings.ContainsFunc(device, func(c rune) bool { return c <= ' ' || c >= 0x7f && c < 0xa0 }) {
		return false
	}
	for _, other := range ch.s.charges {
		if other != ch && other.Plan.find(device) != nil {
			return false
		}
	}
	return true
}

// bounded is what is taken over of what a worker says of its devices.
func (ch *charge) bounded(said []DeviceInfo) []DeviceInfo {
	d := []DeviceInfo{}
	for _, v := range said[:min(len(said), maxDevices)] {
		if ch.mayName(v.Name) {
			d = append(d, v)
		}
	}
	tame(reflect.ValueOf(d))
	return d
}

// mendLedger replaces a ledger of which a worker that is dead has made nonsense: the next one would not come up.
func (ch *charge) mendLedger() error {
	ch.mu.Lock()
	err := ch.ledger.Check()
	ch.mu.Unlock()
	if err == nil {
		return nil
	}
	ch.s.log.Warn(fmt.Sprintf("%s: its counters begin anew: %v", ch.Name, err))
	return ch.newLedger()
}

// maxLost is how many lines of what could not be replayed a worker may have logged.
const maxLost = 64

// lost tells what a worker says that it could not replay.
func (ch *charge) lost(lines []string) {
	for _, l := range lines[:min(len(lines), maxLost)] {
		ch.s.log.Warn(said(l))
	}
	if n := len(lines) - maxLost; n > 0 {
		ch.s.log.Warn(fmt.Sprintf("%s: and %d more", ch.Name, n))
	}
}

// said is what a worker said as one bearable line that steers no terminal.
func said(s string) string {
	s = strings.TrimSpace(printable(s[:min(len(s), maxClaim)]))
	return strings.NewReplacer("\n", "; ", "\t", " ").Replace(s)
}

// plain is an error whose text may come from a worker, with the text as said; nil for nil.
func plain(err error) error {
	if err == nil || said(err.Error()) == err.Error() {
		return err
	}
	return &plainError{said(err.Error()), err}
}

// plainError is what [plain] makes.
type plainError struct {
	text string
	err  error
}

func (e *plainError) Error() string { return e.text }
func (e *plainError) Unwrap() error { return e.err }

// tame makes one bearable line of each text that v holds or points to.
func tame(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		if v.CanSet() {
			v.SetString(said(v.String()))
		}
	case reflect.Pointer:
		if !v.IsNil() {
			tame(v.Elem())
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			tame(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			tame(v.Field(i))
		}
	}
}
