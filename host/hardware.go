package host

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/ring3dev/ring3/internal/hwbind"
)

// hardware prints the machine's PCI functions.
func (a *app) hardware() error {
	list, err := hwbind.This().Status(true)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(list)
	}
	return printHardware(a.stdout, list)
}

// boundHardware are the functions that are with a driver for user space; what cannot be
// listed is not.
func (a *app) boundHardware() []hwbind.Status {
	list, _ := hwbind.This().Status(false)
	return list
}

// printHardware prints a line for each function.
func printHardware(out io.Writer, list []hwbind.Status) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ADDRESS\tID\tKIND\tNAME\tDRIVER\tGROUP\tNODE\tOPEN TO\tSTATE")
	for _, s := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Address, s.ID, s.Kind, cut(s.Name, 40), dash(s.Driver), groupText(s),
			dash(strings.Join(s.Nodes, " ")), openTo(s), stateOf(s))
	}
	return w.Flush()
}

// cut shortens a long name.
func cut(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// groupText is the IOMMU group and who else is in it: "7", "7 with 0000:03:00.1".
func groupText(s hwbind.Status) string {
	if s.Group < 0 {
		return "-"
	}
	others := slices.DeleteFunc(slices.Clone(s.Members), func(m string) bool { return m == s.Address })
	text := fmt.Sprint(s.Group)
	switch {
	case len(others) > 2:
		text += fmt.Sprintf(" with %s and %d more", others[0], len(others)-1)
	case len(others) > 0:
		text += " with " + strings.Join(others, ", ")
	}
	return text
}

// openTo says who may open a function's nodes.
func openTo(s hwbind.Status) string {
	switch {
	case len(s.Nodes) == 0:
		return "-"
	case len(s.Owners) == 0:
		return "root"
	}
	return "root, " + strings.Join(slices.Compact(s.Owners), ", ")
}

// stateOf says whether a function can be used, or why not.
func stateOf(s hwbind.Status) string {
	switch {
	case s.Usable && len(s.Uses) > 0:
		return "in use: " + strings.Join(s.Uses, "; ")
	case s.Usable:
		return "ready"
	}
	return s.Why
}
