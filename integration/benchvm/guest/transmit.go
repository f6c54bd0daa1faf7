//go:build linux

package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ring3dev/ring3/integration/benchvm/row"
)

// smallest is the shortest frame, without its check sequence.
const smallest = 60

// manyClones is clone_skb of a packet that is built once and sent all the time.
const manyClones = 100000

// The cases of transmit: a packet that is sent again and again, and packets that are built anew.
var (
	clonedCases = []sendCase{
		{Size: smallest, Burst: 1, Clone: manyClones}, {Size: smallest, Burst: 8, Clone: manyClones},
		{Size: smallest, Burst: 32, Clone: manyClones}, {Size: smallest, Burst: 128, Clone: manyClones},
	}
	builtCases = []sendCase{
		{Size: smallest, Burst: 1}, {Size: smallest, Burst: 8}, {Size: smallest, Burst: 32}, {Size: smallest, Burst: 128},
	}
)

// sender is one way to send: it takes the device, sends each case, and gives up the device.
type sender struct {
	name  string
	cases []sendCase
	label func(sendCase) string
	send  func(cases []sendCase) ([]float64, error) // packets a second
	why   string                                    // it cannot be: why
	// foreign: nothing of ring3's or the kernel's. That it fails is a row, too.
	foreign bool
}

// transmit compares generators on the same device, one after the other, several times.
func transmit(s *session, emit func(...row.Row) error) error {
	set := s.set("tx")
	bare := "the model alone (bare loop) burst=32"
	senders := s.kernelSenders(append(append([]sendCase{}, clonedCases...), builtCases[0]))
	if !s.NoIOMMU {
		pmd := s.testpmdSender(clonedCases)
		pmd.label = func(c sendCase) string { return fmt.Sprintf("burst=%d", c.Burst) }
		senders = append(senders, pmd, sender{
			name: "ring3", cases: append(append([]sendCase{}, clonedCases...), builtCases...), label: sendCase.String,
			send: func(cases []sendCase) ([]float64, error) {
				var r sent
				err := s.asNobody(row.Sender, "send", sendArg{Addr: row.Sender, Cases: cases, Time: s.Time, Bare: set.Wants(bare)}, &r)
				if r.Bare != 0 {
					set.Add(bare, "pps", r.Bare)
				}
				return r.Rates, err
			},
		})
	}
	if err := s.inTurn(set, senders, "pps", func(_ sendCase, pps float64) float64 { return pps }); err != nil {
		return err
	}
	rows := set.Rows()
	for _, clone := range []string{"100000", "0"} {
		ours := "ring3 burst=32 clone_skb=" + clone
		best := set.Best("pps", func(n string) bool { return strings.HasPrefix(n, "kernel") })
		for _, other := range []string{"testpmd burst=32", best} {
			if r, ok := set.Compare(ours, other, "pps"); ok {
				rows = append(rows, r)
			}
		}
	}
	return emit(rows...)
}

// sizes compares them over the size of the frames.
func sizes(s *session, emit func(...row.Row) error) error {
	set := s.set("size")
	const jumbo = 9000
	var cases []sendCase
	for _, n := range []int{64, 128, 256, 512, 1024, 1500, jumbo} {
		cases = append(cases, sendCase{Size: n, Burst: 32, Clone: manyClones})
	}
	// Longer than a frame of the usual MTU: its own run, with buffers of that size for testpmd.
	usual, large := cases[:len(cases)-1], cases[len(cases)-1:]
	senders := s.kernelSenders(cases)
	for _, cs := range [][]sendCase{usual, large} {
		senders = append(senders, s.testpmdSender(cs))
	}
	senders = append(senders, sender{name: "ring3", cases: cases, send: func(cases []sendCase) ([]float64, error) {
		var r sent
		err := s.asNobody(row.Sender, "send", sendArg{Addr: row.Sender, Cases: cases, Time: s.Time, MTU: mtuFor(cases)}, &r)
		return r.Rates, err
	}})
	for i := range senders {
		senders[i].label = func(c sendCase) string { return fmt.Sprintf("bytes=%d", c.Size) }
	}
	short := *s
	short.Reps = min(s.Reps, 3)
	if err := short.inTurn(set, senders, "Mb/s", func(c sendCase, pps float64) float64 { return pps * float64(c.Size) * 8 / 1e6 }); err != nil {
		return err
	}
	return emit(set.Rows()...)
}

// mtuFor is the MTU that the longest frame takes; 0: the usual one.
func mtuFor(cases []sendCase) int {
	n := 0
	for _, c := range cases {
		n = max(n, c.Size-14)
	}
	if n <= 1500 {
		return 0
	}
	return n
}

// inTurn measures each sender once, and that again and again.
func (s *session) inTurn(set *row.Set, senders []sender, unit string, value func(sendCase, float64) float64) error {
	for range s.Reps {
		for _, x := range senders {
			var wanted []sendCase
			for _, c := range x.cases {
				switch name := x.name + " " + x.label(c); {
				case !set.Wants(name):
				case x.why != "":
					set.Skip(name, x.why)
				default:
					wanted = append(wanted, c)
				}
			}
			if len(wanted) == 0 {
				continue
			}
			rates, err := x.send(wanted)
			if err != nil && x.foreign {
				for _, c := range wanted {
					set.Skip(x.name+" "+x.label(c), err.Error())
				}
				continue
			}
			if err != nil {
				return fmt.Errorf("%s: %w", x.name, err)
			}
			for i, c := range wanted {
				set.Add(x.name+" "+x.label(c), unit, value(c, rates[i]))
			}
		}
	}
	return nil
}

// kernelSenders are the kernel's driver and pktgen: with the IOMMU as the machine was booted, and past
// it.
func (s *session) kernelSenders(cases []sendCase) []sender {
	var out []sender
	domains := map[string]string{"kernel iommu=on": "auto", "kernel iommu=pt": "identity"}
	names := []string{"kernel iommu=on", "kernel iommu=pt"}
	if s.NoIOMMU {
		names = []string{"kernel iommu=off"}
	}
	for _, name := range names {
		out = append(out, sender{name: name, cases: cases, label: sendCase.String, send: func(cases []sendCase) ([]float64, error) {
			return s.kernelSend(domains[name], cases)
		}})
	}
	return out
}

// kernelSend sends with the kernel's pktgen and driver.
func (s *session) kernelSend(kind string, cases []sendCase) (rates []float64, err error) {
	if err := s.bind(row.Sender, ""); err != nil {
		return nil, err
	}
	if kind != "" {
		if err := domain(row.Sender, kind); err != nil {
			return nil, err
		}
		if kind != "auto" {
			defer func() { err = errors.Join(err, s.bind(row.Sender, ""), domain(row.Sender, "auto")) }()
		}
	}
	name, err := s.kernelDriver(row.Sender)
	if err != nil {
		return nil, err
	}
	if mtu := mtuFor(cases); mtu != 0 {
		if err := setMTU(name, mtu); err != nil {
			return nil, err
		}
		if err := up(name); err != nil {
			return nil, err
		}
	}
	g := kernelPktgen{}
	if err := g.write(kernelThread, "add_device "+name); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.write(kernelThread, "rem_device_all")) }()
	for _, c := range cases {
		_, pps, err := generate(g, kernelThread, name, c, s.Time)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c, err)
		}
		rates = append(rates, pps)
	}
	return rates, nil
}

// testpmdSender is DPDK's testpmd.
func (s *session) testpmdSender(cases []sendCase) sender {
	return sender{name: "testpmd", cases: cases, why: s.NoDPDK, foreign: true, send: func(cases []sendCase) (rates []float64, err error) {
		if err := s.bind(row.Sender, "vfio-pci"); err != nil {
			return nil, err
		}
		longest := 0
		for _, c := range cases {
			longest = max(longest, c.Size)
		}
		t, err := startTestpmd(s.Testpmd, row.Sender, longest)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, t.close()) }()
		for _, c := range cases {
			pps, err := t.send(c, s.Time)
			if err != nil {
				return nil, err
			}
			rates = append(rates, pps)
		}
		return rates, nil
	}}
}

// asNobody gives a device to vfio-pci and runs a child that has it, as nobody.
func (s *session) asNobody(addr, name string, arg, result any) error {
	if err := s.bind(addr, "vfio-pci"); err != nil {
		return err
	}
	return ask(who{nobody: true, cpu: -1}, name, arg, result)
}
