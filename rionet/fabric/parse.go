package fabric

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// maxFile is the size of a topology file at the most.
const maxFile = 16 << 20

// Parse reads a topology file; name is for the errors, which are one line: NAME:LINE: what.
func Parse(name string, data []byte) (*Topology, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: %d bytes; a topology has at most %d", name, len(data), maxFile)
	}
	p := &parser{file: name, t: &Topology{IDs: rapidio.Small}}
	root, err := p.document(data)
	if err != nil {
		return nil, err
	}
	if err := p.topology(root); err != nil {
		return nil, err
	}
	if f := p.t.check(); f != nil {
		line := 1
		if lines := p.lines[f.list]; f.index < len(lines) {
			line = lines[f.index]
		}
		return nil, fmt.Errorf("%s:%d: %s", name, line, f.msg)
	}
	return p.t, nil
}

// parser turns the nodes of a YAML document into a Topology. It takes the nodes and not the library's own decoding into a struct,
// because a breach of our rules too needs its line.
type parser struct {
	file  string
	t     *Topology
	lines [listLinks + 1][]int // of each item
}

func (p *parser) errorf(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s", p.file, max(n.Line, 1), fmt.Sprintf(format, args...))
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?((?s).*)$`)

// document is the one document of a file.
func (p *parser) document(data []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s:1: no topology: the file is empty", p.file)
		}
		return nil, p.syntax(err)
	}
	switch err := dec.Decode(&more); {
	case err == nil:
		return nil, p.errorf(&more, "a second document")
	case !errors.Is(err, io.EOF):
		return nil, p.syntax(err)
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, p.errorf(&doc, "no topology: the file is empty")
	}
	return doc.Content[0], nil
}

// maxYAMLError bounds what the YAML library says, in bytes.
const maxYAMLError = 100

func (p *parser) syntax(err error) error {
	m := yamlLine.FindStringSubmatch(err.Error())
	line := m[1]
	if line == "" {
		line = "1"
	}
	return fmt.Errorf("%s:%s: not YAML: %s", p.file, line, clipTo(strings.Join(strings.Fields(m[2]), " "), maxYAMLError)) // it may quote what it does not know
}

func (p *parser) topology(n *yaml.Node) error {
	return p.mapping(n, "a topology", map[string]func(*yaml.Node) error{
		"ids": func(v *yaml.Node) error {
			bits, err := p.number(v, "ids")
			if err == nil && bits != 8 && bits != 16 {
				return p.errorf(v, "ids: %d; 8 or 16 are", bits)
			}
			p.t.IDs = rapidio.IDSize(bits)
			return err
		},
		"switches":  func(v *yaml.Node) error { return p.sequence(v, "switches", listSwitches, p.aSwitch) },
		"endpoints": func(v *yaml.Node) error { return p.sequence(v, "endpoints", listEndpoints, p.endpoint) },
		"links":     func(v *yaml.Node) error { return p.sequence(v, "links", listLinks, p.link) },
	})
}

func (p *parser) aSwitch(n *yaml.Node) error {
	s := Switch{Kind: Standard}
	err := p.mapping(n, "a switch", map[string]func(*yaml.Node) error{
		"name":  p.text("name", &s.Name),
		"kind":  p.text("kind", &s.Kind),
		"ports": func(v *yaml.Node) (err error) { s.Ports, err = p.number(v, "ports"); return err },
	})
	p.t.Switches = append(p.t.Switches, s)
	return err
}

func (p *parser) endpoint(n *yaml.Node) error {
	var e Endpoint
	err := p.mapping(n, "an endpoint", map[string]func(*yaml.Node) error{
		"name":      p.text("name", &e.Name),
		"mailboxes": func(v *yaml.Node) error { has, err := p.truth(v, "mailboxes"); e.NoMailboxes = !has; return err },
		"serial":    func(v *yaml.Node) error { has, err := p.truth(v, "serial"); e.NoSerial = !has; return err },
	})
	p.t.Endpoints = append(p.t.Endpoints, e)
	return err
}

func (p *parser) link(n *yaml.Node) error {
	var l Link
	var err error
	if n.Kind == yaml.SequenceNode {
		err = p.ends(n, &l)
	} else {
		err = p.mapping(n, "a link", map[string]func(*yaml.Node) error{
			"ends":  func(v *yaml.Node) error { return p.ends(v, &l) },
			"width": func(v *yaml.Node) (err error) { l.Width, err = p.number(v, "width"); return err },
			"rate":  func(v *yaml.Node) (err error) { l.Rate, err = p.rate(v); return err },
			"delay": func(v *yaml.Node) (err error) { l.Delay, err = p.delay(v); return err },
			"loss":  func(v *yaml.Node) (err error) { l.Loss, err = p.loss(v); return err },
			"trust": func(v *yaml.Node) (err error) { l.Trust, err = p.truth(v, "trust"); return err },
		})
		if err == nil && l.Ends[0] == "" {
			err = p.errorf(n, "a link without ends")
		}
	}
	p.t.Links = append(p.t.Links, l)
	return err
}

func (p *parser) ends(n *yaml.Node, l *Link) error {
	if n.Kind != yaml.SequenceNode || len(n.Content) != 2 {
		return p.errorf(n, "a link has two ends, as in [pe0, \"sw0:0\"]")
	}
	for i, c := range n.Content {
		if err := p.text("end", &l.Ends[i])(c); err != nil {
			return err
		}
	}
	return nil
}

// mapping gives the value of each key to the function that keys has for it.
func (p *parser) mapping(n *yaml.Node, what string, keys map[string]func(*yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		return p.errorf(n, "%s is keys and values", what)
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		f, ok := keys[k.Value]
		if !ok || k.Kind != yaml.ScalarNode {
			var known []string
			for name := range keys {
				known = append(known, name)
			}
			slices.Sort(known)
			return p.errorf(k, "%s has no key %q; its keys are %s", what, clip(k.Value), strings.Join(known, ", "))
		}
		if seen[k.Value] {
			return p.errorf(k, "%s: given twice", k.Value)
		}
		seen[k.Value] = true
		if err := f(v); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) sequence(n *yaml.Node, what string, l list, item func(*yaml.Node) error) error {
	if n.Kind != yaml.SequenceNode {
		return p.errorf(n, "%s is a list", what)
	}
	for _, c := range n.Content {
		p.lines[l] = append(p.lines[l], c.Line)
		if err := item(c); err != nil {
			return err
		}
	}
	return nil
}

// scalar refuses lists and keys, nothing at all, and aliases.
func (p *parser) scalar(n *yaml.Node, what string) (string, error) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		return "", p.errorf(n, "%s: one value is wanted", what)
	}
	return n.Value, nil
}

func (p *parser) text(what string, to *string) func(*yaml.Node) error {
	return func(n *yaml.Node) (err error) {
		*to, err = p.scalar(n, what)
		if err == nil && *to == "" {
			return p.errorf(n, "%s: is empty", what)
		}
		return err
	}
}

func (p *parser) number(n *yaml.Node, what string) (int, error) {
	s, err := p.scalar(n, what)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return 0, p.errorf(n, "%s: %q is not a number", what, clip(s))
	}
	return int(v), nil
}

func (p *parser) truth(n *yaml.Node, what string) (bool, error) {
	s, err := p.scalar(n, what)
	if err != nil {
		return false, err
	}
	if s != "true" && s != "false" {
		return false, p.errorf(n, "%s: %q; true or false are possible", what, clip(s))
	}
	return s == "true", nil
}

// rate reads bits a second: 10G, 1.25G, 100M, 64k, 1000000.
func (p *parser) rate(n *yaml.Node) (int64, error) {
	s, err := p.scalar(n, "rate")
	if err != nil {
		return 0, err
	}
	num, unit := s, 1.0
	for suffix, u := range map[string]float64{"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			num, unit = rest, u
		}
	}
	v, err := strconv.ParseFloat(num, 64)
	if err != nil || !(v*unit >= minRate && v*unit <= maxRate) {
		return 0, p.errorf(n, "rate: %q; bits a second are wanted, as in 10G, at least 1k and at most 100T", clip(s))
	}
	return int64(v * unit), nil
}

func (p *parser) delay(n *yaml.Node) (time.Duration, error) {
	s, err := p.scalar(n, "delay")
	if err != nil {
		return 0, err
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > maxDelay {
		return 0, p.errorf(n, "delay: %q; a time is wanted, as in 5us, at most %v", clip(s), maxDelay)
	}
	return d, nil
}

func (p *parser) loss(n *yaml.Node) (float64, error) {
	s, err := p.scalar(n, "loss")
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || !(v >= 0 && v <= 1) {
		return 0, p.errorf(n, "loss: %q; a part of the packets is wanted, 0 to 1", clip(s))
	}
	return v, nil
}

// clip keeps a foreign word short enough for a line.
func clip(s string) string { return clipTo(s, 40) }

// clipTo keeps as many bytes as n, and not half of a character.
func clipTo(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for ; n > 0 && !utf8.RuneStart(s[n]); n-- {
	}
	return s[:n] + "..."
}
