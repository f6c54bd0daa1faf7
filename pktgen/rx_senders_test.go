package pktgen

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
)

// channel loses, doubles and delays frames, and says what a receiver should count.
type channel struct {
	rng                            *rand.Rand
	lose, double, delay            float64 // parts of the frames
	far                            int     // us that a delayed one comes later
	received, lost, doubled, moved int
}

// arrival is a frame: when it was built, and when it arrives, us.
type arrival struct {
	built, at int
	seq       uint32
	sender    int
}

// carry carries the frames of one sender, one a us on average; it adds to what is to be counted.
func (c *channel) carry(count, sender int) (all []arrival) {
	now := c.rng.IntN(1000)
	for n := 1; n <= count; n++ {
		if now += c.rng.IntN(3); c.rng.Float64() < c.lose {
			continue
		}
		times := 1
		if c.rng.Float64() < c.double {
			times = 2 + c.rng.IntN(2)
		}
		for range times {
			at := now
			if c.rng.Float64() < c.delay {
				at += c.rng.IntN(c.far)
			}
			all = append(all, arrival{now, at, uint32(n), sender})
		}
	}
	inOrder(all)
	seen, newest := map[uint32]bool{}, uint32(0)
	for _, i := range all {
		switch {
		case seen[i.seq]:
			c.doubled++
		case i.seq < newest:
			c.moved++
		}
		seen[i.seq] = true
		newest = max(newest, i.seq)
	}
	c.received += len(all)
	c.lost += int(newest) - len(seen)
	return all
}

func inOrder(all []arrival) {
	slices.SortStableFunc(all, func(a, b arrival) int { return a.at - b.at })
}

// wants is what the file must show.
func (c *channel) wants() string {
	return fmt.Sprintf("received %d lost %d duplicated %d reordered %d clones 0", c.received, c.lost, c.doubled, c.moved)
}

func newChannel(seed uint64) *channel {
	return &channel{rng: rand.New(rand.NewPCG(seed, 1)), lose: 0.02, double: 0.02, delay: 0.05, far: 3000}
}

// Whatever a network does to frames, in any order, is counted exactly.
func TestReceiveThroughBadNetwork(t *testing.T) {
	for seed := range uint64(10) {
		c := newChannel(seed)
		b := newRxBench(t)
		var frames [][]byte
		for _, a := range c.carry(20000, 0) {
			frames = append(frames, packet(t, spec(), a.seq, b.base+uint64(a.built), 18))
		}
		for burst := range slices.Chunk(frames, 64) {
			b.feed(burst...)
		}
		b.wants(fmt.Sprint("seed ", seed), c.wants()+" runs 1")
	}
}

// Senders that send at the same time are told apart, whether or not their frames look alike.
func TestReceiveSeveralSenders(t *testing.T) {
	for _, like := range []string{"other ports", "other ports, no time", "alike", "any ports"} {
		for seed := range uint64(5) {
			b := newRxBench(t)
			c := newChannel(seed)
			alike := like == "alike" || like == "any ports"
			if alike {
				// Whose a number is that is late, or is there twice, nobody can know: it may be what another one lost.
				c.delay, c.double = 0, 0
			}
			all := slices.Concat(c.carry(5000, 0), c.carry(3000, 1), c.carry(4000, 2))
			inOrder(all)
			var frames [][]byte
			for _, a := range all {
				s, us := spec(), b.base+uint64(a.built)
				switch like {
				case "other ports":
					s.SrcPort = uint16(a.sender)
				case "other ports, no time":
					s.SrcPort, us = uint16(a.sender), 0
				case "any ports":
					s.SrcPort = uint16(a.seq * 7919 % 500)
				}
				frames = append(frames, packet(t, s, a.seq, us, 18))
			}
			b.feed(frames...)
			if alike {
				// Frames of two senders with one number in one us are one frame twice.
				double, err := strconv.Atoi(b.value("duplicated"))
				if err != nil || double > 20 {
					t.Errorf("%s, seed %d: duplicated: %d", like, seed, double)
				}
				c.doubled += double
				c.lost += double
			}
			b.wants(fmt.Sprintf("%s, seed %d", like, seed), c.wants()+" runs 3")
		}
	}
}
