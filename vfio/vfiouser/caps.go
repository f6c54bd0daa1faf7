package vfiouser

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/ring3dev/ring3/bus"
)

// Limits that this package announces, and those that hold where a peer announces none.
const (
	ownFDs      = 16 // QEMU takes no peer that announces more
	ownTransfer = 1 << 20
	ownMaps     = 65535
	pageSize    = 4096

	defaultFDs      = 1
	defaultTransfer = 1 << 20
	defaultMaps     = 65535
	// maxVersion is the most that a VERSION message may hold.
	maxVersion = 16 << 10
)

// capabilities are what a peer says of itself in VERSION.
type capabilities struct {
	MaxFDs        *int64      `json:"max_msg_fds,omitempty"`
	MaxTransfer   *int64      `json:"max_data_xfer_size,omitempty"`
	MaxMaps       *int64      `json:"max_dma_maps,omitempty"`
	PageSizes     *uint64     `json:"pgsizes,omitempty"`
	WriteMultiple bool        `json:"write_multiple,omitempty"`
	Twin          *twinSocket `json:"twin_socket,omitempty"`
	Ring3         *ring3Caps  `json:"ring3,omitempty"`
}

// twinSocket is a second socket, for the server's commands.
type twinSocket struct {
	Supported bool `json:"supported"`
	FD        *int `json:"fd_index,omitempty"`
}

// ring3Caps are what only this package's two sides say to each other.
type ring3Caps struct {
	LastWords bool        `json:"last_words,omitempty"`
	Queue     *queueOffer `json:"write_queue,omitempty"`
}

// queueOffer is the write queue: wanted, in the client's VERSION; and where it is, in the reply.
type queueOffer struct {
	Memory  *int `json:"fd_index,omitempty"`
	Kick    *int `json:"kick_index,omitempty"`
	Entries int  `json:"entries,omitempty"`
	Timed   bool `json:"timed,omitempty"`
}

// version is the body of a VERSION message.
type version struct {
	major, minor uint16
	caps         capabilities
}

func (v *version) body() ([]byte, error) {
	j, err := json.Marshal(struct {
		Capabilities *capabilities `json:"capabilities"`
	}{&v.caps})
	if err != nil {
		return nil, fmt.Errorf("writing the capabilities: %w", err)
	}
	var w writer
	w.u16(v.major)
	w.u16(v.minor)
	return append(append(w, j...), 0), nil
}

// parseVersion reads a body. Capabilities that are not known are passed over.
func parseVersion(b []byte) (v version, err error) {
	r := reader{b: b}
	v.major, v.minor = r.u16(), r.u16()
	if r.short {
		return v, fmt.Errorf("a version of %d bytes: %w", len(b), bus.ErrProtocol)
	}
	if len(r.b) > 0 {
		j, ok := bytes.CutSuffix(r.b, []byte{0})
		if !ok {
			return v, fmt.Errorf("capabilities that do not end with a zero: %w", bus.ErrProtocol)
		}
		var t struct {
			Capabilities *capabilities `json:"capabilities"`
		}
		if err := json.Unmarshal(j, &t); err != nil {
			return v, fmt.Errorf("reading the capabilities: %w (%w)", err, bus.ErrProtocol)
		}
		if t.Capabilities != nil {
			v.caps = *t.Capabilities
		}
	}
	return v, v.caps.check()
}

// check holds numbers to what they can be.
func (c *capabilities) check() error {
	for _, n := range []struct {
		name     string
		v        *int64
		min, max int64
	}{{"max_msg_fds", c.MaxFDs, 0, 1 << 16}, {"max_data_xfer_size", c.MaxTransfer, 1, 1 << 32}, {"max_dma_maps", c.MaxMaps, 0, 1 << 32}} {
		if n.v != nil && (*n.v < n.min || *n.v > n.max) {
			return fmt.Errorf("capability %s is %d, want %d to %d: %w", n.name, *n.v, n.min, n.max, bus.ErrProtocol)
		}
	}
	if c.PageSizes != nil && *c.PageSizes&(pageSize-1) != 0 {
		return fmt.Errorf("capability pgsizes is %#x, want no bit below %#x: %w", *c.PageSizes, pageSize, bus.ErrProtocol)
	}
	return nil
}

// fds is the most descriptors that the peer takes in a message.
func (c *capabilities) fds() int { return int(min(orDefault(c.MaxFDs, defaultFDs), ownFDs)) }

// transfer is the most bytes that the peer takes in a read or write.
func (c *capabilities) transfer() int {
	return int(min(orDefault(c.MaxTransfer, defaultTransfer), ownTransfer))
}

// maps is how many DMA windows the peer takes.
func (c *capabilities) maps() int { return int(min(orDefault(c.MaxMaps, defaultMaps), ownMaps)) }

// page is the smallest page of DMA windows that the peer takes.
func (c *capabilities) page() uint64 {
	if c.PageSizes == nil || *c.PageSizes == 0 {
		return pageSize
	}
	return *c.PageSizes & -*c.PageSizes
}

func orDefault(v *int64, def int64) int64 {
	if v == nil {
		return def
	}
	return *v
}

// ownLimits are what both sides announce.
func ownLimits() capabilities {
	fds, transfer, maps, pages := int64(ownFDs), int64(ownTransfer), int64(ownMaps), uint64(pageSize)
	return capabilities{MaxFDs: &fds, MaxTransfer: &transfer, MaxMaps: &maps, PageSizes: &pages, WriteMultiple: true}
}
