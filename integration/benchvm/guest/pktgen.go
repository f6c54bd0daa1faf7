//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ring3dev/ring3/procfs"
)

// generator is a pktgen, the kernel's or ring3's: the same files, the same commands.
type generator interface {
	write(file, command string) error
	read(file string) (string, error)
}

// kernelPktgen is the kernel's.
type kernelPktgen struct{}

const pktgenDir = "/proc/net/pktgen"

func (kernelPktgen) write(file, command string) error {
	return write(filepath.Join(pktgenDir, file), command)
}

func (kernelPktgen) read(file string) (string, error) {
	b, err := os.ReadFile(filepath.Join(pktgenDir, file))
	return string(b), err
}

// ring3Pktgen is ring3's.
type ring3Pktgen struct{ dir *procfs.Dir }

func (g ring3Pktgen) file(name string) (*procfs.File, error) {
	n, err := g.dir.Walk(name)
	f, ok := n.(*procfs.File)
	if err != nil || !ok {
		return nil, fmt.Errorf("pktgen has no file %s", name)
	}
	return f, nil
}

func (g ring3Pktgen) write(file, command string) error {
	f, err := g.file(file)
	if err != nil {
		return err
	}
	if _, err := f.Write(context.Background(), []byte(command+"\n")); err != nil {
		return fmt.Errorf("%s > %s: %w", command, file, err)
	}
	return nil
}

func (g ring3Pktgen) read(file string) (string, error) {
	f, err := g.file(file)
	if err != nil {
		return "", err
	}
	b, err := f.ReadAll()
	return string(b), err
}

// sendCase is what is sent.
type sendCase struct {
	Size  int `json:"size"` // of a frame, without its check sequence
	Burst int `json:"burst"`
	Clone int `json:"clone"` // clone_skb
	Rate  int `json:"rate"`  // packets a second; 0: as many as can be
	// To is where frames go; the zero value is nobody.
	MAC string `json:"mac,omitempty"`
	IP  string `json:"ip,omitempty"`
}

func (c sendCase) String() string {
	return fmt.Sprintf("burst=%d clone_skb=%d", c.Burst, c.Clone)
}

func (c sendCase) commands() []string {
	mac, ip := c.MAC, c.IP
	if mac == "" {
		mac, ip = nobodyMAC, nobodyIP
	}
	delay := 0
	if c.Rate > 0 {
		delay = int(time.Second) / c.Rate
	}
	out := []string{"count 0", "pkt_size " + strconv.Itoa(c.Size), "clone_skb " + strconv.Itoa(c.Clone), "burst " + strconv.Itoa(c.Burst),
		"delay " + strconv.Itoa(delay), "dst_mac " + mac, "dst_min " + ip, "dst_max " + ip}
	return out
}

// Whom frames go to that nobody receives.
const (
	nobodyMAC = "02:00:00:00:00:02"
	nobodyIP  = "10.0.0.2"
)

// kernelThread and ring3's counterpart are one CPU's: the second, where testpmd sends too.
const kernelThread = "kpktgend_" + senderCPUName

const (
	senderCPU     = 1
	senderCPUName = "1"
)

var resultRate = regexp.MustCompile(`Result: OK: [0-9]+\(c[0-9]+\+d[0-9]+\) [a-z]+, ([0-9]+) \([^)]*\)\s+([0-9]+)pps`)

// generate sends for so long on a thread, and returns how many packets and at what rate, as pktgen says.
func generate(g generator, thread, dev string, c sendCase, d time.Duration) (sent uint64, pps float64, err error) {
	for _, cmd := range c.commands() {
		if err := g.write(dev, cmd); err != nil {
			return 0, 0, err
		}
	}
	// The kernel's start returns when nothing runs, also where the thread has not come to it yet.
	ended := make(chan error, 1)
	go func() { ended <- g.write("pgctrl", "start") }()
	running := func() bool {
		text, err := g.read(thread)
		list, _, _ := strings.Cut(strings.TrimPrefix(text, "Running:"), "\n")
		return err == nil && slices.Contains(strings.Fields(list), dev)
	}
	if err := waitFor("pktgen's beginning", running); err != nil {
		return 0, 0, err
	}
	time.Sleep(d)
	if err := errors.Join(g.write("pgctrl", "stop"), <-ended); err != nil {
		return 0, 0, fmt.Errorf("pktgen: %w", err)
	}
	if err := waitFor("pktgen's end", func() bool { return !running() }); err != nil {
		return 0, 0, err
	}
	text, err := g.read(dev)
	if err != nil {
		return 0, 0, err
	}
	m := resultRate.FindStringSubmatch(text)
	if m == nil {
		_, result, _ := strings.Cut(text, "Result:")
		return 0, 0, fmt.Errorf("pktgen: unexpected result:%s", strings.TrimRight(result, "\n"))
	}
	sent, err = strconv.ParseUint(m[1], 10, 64)
	if err == nil {
		pps, err = strconv.ParseFloat(m[2], 64)
	}
	return sent, pps, err
}
