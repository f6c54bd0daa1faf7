package fabric

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

func TestParse(t *testing.T) {
	got, err := Parse("t.yaml", []byte(`
ids: 16
switches:
- {name: sw0, ports: 4, kind: standard}
- {name: sw1, ports: 8}
endpoints: [{name: pe0}, {name: pe1, mailboxes: false}, {name: pe2, serial: false}]
links:
- [pe0, "sw0:0"]
- {ends: [pe1, "sw0:1"], width: 4, rate: 1.25G, delay: 5us, loss: 0.01}
- ["sw0:3", "sw1:7"]
- {ends: [pe2, pe0], trust: true}
`))
	want := &Topology{
		IDs:       rapidio.Large,
		Switches:  []Switch{{"sw0", 4, Standard}, {"sw1", 8, Standard}},
		Endpoints: []Endpoint{{Name: "pe0"}, {Name: "pe1", NoMailboxes: true}, {Name: "pe2", NoSerial: true}},
		Links: []Link{{Ends: [2]string{"pe0", "sw0:0"}},
			{Ends: [2]string{"pe1", "sw0:1"}, Width: 4, Rate: 1_250_000_000, Delay: 5 * time.Microsecond, Loss: 0.01},
			{Ends: [2]string{"sw0:3", "sw1:7"}}, {Ends: [2]string{"pe2", "pe0"}, Trust: true}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("Parse = %+v, %v\nwant %+v", got, err, want)
	}
	if got := got.Trusts(); !reflect.DeepEqual(got, [][2]int{{0, 2}}) {
		t.Errorf("Trusts = %v, want [[0 2]]", got)
	}
}

func TestParseErrors(t *testing.T) {
	const one = "endpoints: [{name: pe0}]\n"
	const net = "switches: [{name: sw0, ports: 2}]\nendpoints: [{name: pe0}, {name: pe1}]\nlinks:\n"
	for _, c := range []struct{ in, want string }{
		{"", "t.yaml:1: no topology: the file is empty"},
		{"# nothing\n", "t.yaml:1: no topology: the file is empty"},
		{"a: b: c", "t.yaml:1: not YAML: mapping values are not allowed in this context"},
		{"a: *" + strings.Repeat("b", 200), "t.yaml:1: not YAML: unknown anchor '" + strings.Repeat("b", 84) + "..."},
		{"a: 1\n\tb: 2", "t.yaml:2: not YAML: found a tab character that violates indentation"},
		{one + "---\n" + one, "t.yaml:2: a second document"},
		{"[1]", "t.yaml:1: a topology is keys and values"},
		{"ids: 8\n", "t.yaml:1: no endpoints"},
		{one + "ids: 12", "t.yaml:2: ids: 12; 8 or 16 are"},
		{one + "ids: 0", "t.yaml:2: ids: 0; 8 or 16 are"},
		{one + "ids: many", `t.yaml:2: ids: "many" is not a number`},
		{one + "nodes: []", `t.yaml:2: a topology has no key "nodes"; its keys are endpoints, ids, links, switches`},
		{one + one, "t.yaml:2: endpoints: given twice"},
		{"endpoints:\n- {name: pe0}\n- {nme: pe1}", `t.yaml:3: an endpoint has no key "nme"; its keys are mailboxes, name, serial`},
		{"endpoints:\n- {name: pe0}\n- {}", "t.yaml:3: no name"},
		{"endpoints:\n- {name: pe0}\n- {name: pe0}", "t.yaml:3: name pe0: given twice"},
		{"endpoints: {name: pe0}", "t.yaml:1: endpoints is a list"},
		{"endpoints: [{name: ../x}]", `t.yaml:1: name "../x": letters, digits, _, and then - and . make a name`},
		{"endpoints: [{name: 'pe0:1'}]", `t.yaml:1: name "pe0:1": letters, digits, _, and then - and . make a name`},
		{"endpoints: [{name: " + strings.Repeat("x", 33) + "}]", `t.yaml:1: name "` + strings.Repeat("x", 33) + `": longer than 32 characters`},
		{"endpoints: [{name: }]", "t.yaml:1: name: one value is wanted"},
		{"endpoints: [{name: pe0, serial: 1}]", `t.yaml:1: serial: "1"; true or false are possible`},
		{"endpoints: [&a {name: pe0}, *a]", "t.yaml:1: an endpoint is keys and values"},
		{one + "switches: [{name: pe0, ports: 4}]", "t.yaml:1: name pe0: given twice"},
		{one + "switches:\n- {name: sw0, ports: 256}", "t.yaml:3: switch sw0: 256 ports; 1 to 255 are possible"},
		{one + "switches:\n- {name: sw0}", "t.yaml:3: switch sw0: 0 ports; 1 to 255 are possible"},
		{one + "switches:\n- {name: sw0, ports: 5, kind: tsi500}", "t.yaml:3: switch sw0: 5 ports; 1 to 4 are possible"},
		{one + "switches:\n- {name: sw0, ports: 4, kind: cps}", `t.yaml:3: switch sw0: kind "cps"; standard and tsi500 are known`},
		{one + "ids: 16\nswitches:\n- {name: sw0, ports: 4, kind: tsi500}", "t.yaml:4: switch sw0: kind tsi500 routes 8-bit IDs only"},
		{net + "- [pe0]", `t.yaml:4: a link has two ends, as in [pe0, "sw0:0"]`},
		{net + "- {width: 4}", "t.yaml:4: a link without ends"},
		{net + "- pe0", "t.yaml:4: a link is keys and values"},
		{net + "- [pe0, pe2]", `t.yaml:4: end "pe2": no endpoint or switch has this name`},
		{net + "- [pe0, 'sw0:2']", `t.yaml:4: end "sw0:2": switch sw0 has ports 0 to 1`},
		{net + "- [pe0, 'sw0:00']", `t.yaml:4: end "sw0:00": switch sw0 has ports 0 to 1`},
		{net + "- [pe0, 'sw0:-1']", `t.yaml:4: end "sw0:-1": switch sw0 has ports 0 to 1`},
		{net + "- [pe0, sw0]", `t.yaml:4: end "sw0": sw0 is a switch; which port, as in "sw0:0"?`},
		{net + "- ['pe0:0', pe1]", `t.yaml:4: end "pe0:0": pe0 is an endpoint, which has one port without a number`},
		{net + "- [pe0, pe0]", "t.yaml:4: pe0 is linked to itself"},
		{net + "- ['sw0:0', 'sw0:0']", "t.yaml:4: sw0:0 is linked to itself"},
		{net + "- [pe0, 'sw0:0']\n- [pe1, 'sw0:0']", `t.yaml:5: end "sw0:0": this port has a link already`},
		{net + "- [pe0, 'sw0:0']\n- [pe0, 'sw0:1']", `t.yaml:5: end "pe0": this endpoint has a link already`},
		{net + "- {ends: [pe0, 'sw0:0'], width: 3}", "t.yaml:4: width: 3; 1, 2, 4, 8 or 16 lanes make a link"},
		{net + "- {ends: [pe0, 'sw0:0'], rate: fast}", `t.yaml:4: rate: "fast"; bits a second are wanted, as in 10G, at least 1k and at most 100T`},
		{net + "- {ends: [pe0, 'sw0:0'], rate: 1e300G}", `t.yaml:4: rate: "1e300G"; bits a second are wanted, as in 10G, at least 1k and at most 100T`},
		{net + "- {ends: [pe0, 'sw0:0'], delay: 5}", `t.yaml:4: delay: "5"; a time is wanted, as in 5us, at most 10s`},
		{net + "- {ends: [pe0, 'sw0:0'], loss: NaN}", `t.yaml:4: loss: "NaN"; a part of the packets is wanted, 0 to 1`},
		{net + "- {ends: [pe0, 'sw0:0'], trust: true}", `t.yaml:4: end "sw0:0": only endpoints trust each other`},
		{net + "- {ends: [pe0, pe1], trust: true}\n- {ends: [pe1, pe0], trust: true}", "t.yaml:5: pe1 and pe0 trust each other already"},
		{net + "- {ends: [pe0, pe1], trust: true, rate: 1G}", "t.yaml:4: a trust link is shared memory: it has no width, rate, delay or loss"},
	} {
		topo, err := Parse("t.yaml", []byte(c.in))
		if err == nil || err.Error() != c.want || topo != nil {
			t.Errorf("Parse(%q) = %v, %v\nwant %s", c.in, topo, err, c.want)
		}
	}
}

func TestTooManyEndpoints(t *testing.T) {
	in := "endpoints:\n" + strings.Repeat("- {name: x}\n", 256)
	_, err := Parse("t.yaml", []byte(in))
	if want := "t.yaml:257: 256 endpoints; 8-bit IDs are enough for 255"; err == nil || err.Error() != want {
		t.Errorf("Parse of 256 endpoints: %v, want %s", err, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(star(3, "rate: 1G"))
	f.Add("ids: 16\nswitches: [{name: a, ports: 2, kind: tsi500}]\nendpoints: [{name: b, serial: false}]\nlinks: [[b, 'a:0']]")
	f.Add("a: &a [*a]")
	f.Fuzz(func(t *testing.T, in string) {
		topo, err := Parse("t.yaml", []byte(in))
		if (topo == nil) == (err == nil) {
			t.Fatalf("Parse = %v, %v", topo, err)
		}
		if err != nil {
			if s := err.Error(); !strings.HasPrefix(s, "t.yaml:") || strings.Contains(s, "\n") || len(s) > 400 {
				t.Fatalf("Parse: %q is not one line that begins with the file", s)
			}
			return
		}
		if err := topo.Check(); err != nil {
			t.Fatalf("Parse took what Check refuses: %v", err)
		}
		fab := New(topo, Options{})
		fab.Links()
		topo.Trusts()
	})
}
