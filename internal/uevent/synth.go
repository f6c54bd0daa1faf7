package uevent

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// What follows an action in a write to a file uevent (Linux, Documentation/ABI/testing/sysfs-uevent).
var (
	synthUUID = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	synthArg  = regexp.MustCompile(`^[0-9a-zA-Z]+=[0-9a-zA-Z]+$`)
)

// ParseSynth reads the event that a write to a file uevent asks for: "add", or "add UUID [KEY=VALUE]...". env is what its message holds
// of that. Anything else gives EINVAL.
func ParseSynth(s string) (action string, env []string, err error) {
	if s != "" && (s[len(s)-1] == '\n' || s[len(s)-1] == 0) {
		s = s[:len(s)-1]
	}
	action, rest, more := strings.Cut(s, " ")
	if !slices.Contains(Actions, action) {
		return "", nil, fmt.Errorf("uevent: no action %q: %w", action, unix.EINVAL)
	}
	env = []string{"SYNTH_UUID=0"}
	if !more {
		return action, env, nil
	}
	args := strings.Split(rest, " ")
	if !synthUUID.MatchString(args[0]) {
		return "", nil, fmt.Errorf("uevent: %q, want a UUID: %w", args[0], unix.EINVAL)
	}
	env[0] = "SYNTH_UUID=" + args[0]
	for _, a := range args[1:] {
		if !synthArg.MatchString(a) {
			return "", nil, fmt.Errorf("uevent: %q, want KEY=VALUE of letters and digits: %w", a, unix.EINVAL)
		}
		env = append(env, "SYNTH_ARG_"+a)
	}
	return action, env, nil
}
