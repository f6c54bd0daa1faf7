package host

import (
	"strconv"
	"strings"

	"github.com/ring3dev/ring3/internal/hwbind"
)

// onFabric is the backend of nodes of a RapidIO fabric that a daemon (ring3 fabric up) has: Device is the daemon's socket.
const onFabric = "fabric"

// ivshmemModel is QEMU's device by which a machine is a node of a fabric.
const ivshmemModel = "ivshmem-doorbell"

// fabricNode says which node of which fabric a device is.
type fabricNode struct{ path, node string }

// fabricOf is the node that a device is; the zero value if it is none, or if nobody can tell before it runs.
func fabricOf(d DeviceSpec) fabricNode {
	switch {
	case d.Backend == onFabric:
		return fabricNode{d.Device, d.Bus["node"]}
	case d.Backend == "qemu" && d.Device == ivshmemModel:
		return fabricNode{d.Bus["fabric"], d.Bus["node"]}
	}
	return fabricNode{}
}

// ownersOf is who may run the fabric that a device is a node of, besides this user and root.
func ownersOf(d DeviceSpec) []int {
	if v, ok := d.Bus["owner"]; ok {
		if o, err := hwbind.FindUser(v); err == nil { // or checkFabric says so
			return []int{o.UID}
		}
	}
	return nil
}

// nodeOf is the first of the devices named that is a node of a fabric; "" if none is.
func (p *Plan) nodeOf(names ...string) string {
	for _, n := range names {
		if d := p.find(n); d != nil && fabricOf(*d).path != "" {
			return n
		}
	}
	return ""
}

// maxHost is the highest host device ID: that of 16-bit IDs, of which the last means any.
const maxHost = 0xfffe

// maxWindow is as large as a memory window may be, and maxWindows as many as a node may have.
const (
	maxWindow  = 1 << 30
	maxWindows = 8
)

// checkFabric checks what only a node of a fabric has, and that nothing else has it.
func checkFabric(d *DeviceSpec) error {
	n := fabricOf(*d)
	switch {
	case d.Backend == "qemu" && d.Device != ivshmemModel && d.Bus["fabric"]+d.Bus["node"]+d.Bus["owner"] != "":
		return usagef("device %s: fabric=, node= and owner= are options of qemu:%s", d.Name, ivshmemModel)
	case d.Backend == "qemu" && d.Device == ivshmemModel && (n.path == "" || n.node == ""):
		return usagef("device %s: want fabric=PATH and node=NAME: the fabric's socket ('ring3 fabric up'), and which of its endpoints this is", d.Name)
	case n.path == "":
		return nil
	case n.node == "":
		return usagef("device %s: want node=NAME: which of the fabric's endpoints it is ('ring3 fabric show' lists them)", d.Name)
	case strings.ContainsAny(n.node, "/\x00"):
		return usagef("device %s: node=%s: no endpoint has such a name", d.Name, n.node)
	}
	for o, v := range d.Options {
		switch o {
		case "host":
			if _, err := parseHost(v); err != nil {
				return usagef("device %s: host=%s: want a device ID, 0 to %#x", d.Name, v, maxHost)
			}
		case "exact":
			if v != "on" && v != "off" {
				return usagef("device %s: exact=%s: want exact=on or exact=off", d.Name, v)
			}
		default:
			return usagef("device %s: unknown option %q: there is node, host, ids, window, owner and exact", d.Name, o)
		}
	}
	if v, ok := d.Bus["window"]; ok {
		if _, err := parseWindows(v); err != nil {
			return usagef("device %s: window=%s: %v", d.Name, v, err)
		}
	}
	if v, ok := d.Bus["owner"]; ok {
		if _, err := hwbind.FindUser(v); err != nil {
			return usagef("device %s: owner=%s: %v", d.Name, v, err)
		}
	}
	return nil
}

// parseHost reads a host device ID, decimal or 0x.
func parseHost(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 0, 16)
	if err == nil && n > maxHost {
		err = strconv.ErrRange
	}
	return uint16(n), err
}

// parseWindows reads the sizes of memory windows: SIZE[+SIZE...].
func parseWindows(s string) ([]int64, error) {
	var sizes []int64
	for _, one := range strings.Split(s, "+") {
		n, err := parseSize(one)
		if err != nil || n == 0 || n > maxWindow || n%4096 != 0 {
			return nil, usagef("%q: want whole pages, 4K to 1G, as in 64K or 64K+1M", one)
		}
		sizes = append(sizes, int64(n))
	}
	if len(sizes) > maxWindows {
		return nil, usagef("%d windows: want at most %d", len(sizes), maxWindows)
	}
	return sizes, nil
}
