package mirror

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/node"
)

// Class is the high byte of this package's methods.
const Class = 0x01

// What the supervisor calls; each body begins with the number of a file, or of a stream that is open.
const (
	methodShow    link.Method = Class<<8 | 0x01 // -> text
	methodStore   link.Method = Class<<8 | 0x02 // bytes -> count
	methodReadAt  link.Method = Class<<8 | 0x03 // offset, count -> bytes
	methodWriteAt link.Method = Class<<8 | 0x04 // offset, bytes -> count
	methodOpen    link.Method = Class<<8 | 0x05 // flags -> stream, whether it is a Poller
	methodRead    link.Method = Class<<8 | 0x06 // flags, count -> bytes
	methodWrite   link.Method = Class<<8 | 0x07 // flags, bytes -> count
	methodClose   link.Method = Class<<8 | 0x08 // -> nothing
	methodPoll    link.Method = Class<<8 | 0x09 // -> events, whether a change will be told
)

// What the worker tells.
const (
	eventRecords link.Method = Class<<8 | 0x81 // entries that came and went
	eventWhole   link.Method = Class<<8 | 0x82 // all that there was has been told
	eventChanged link.Method = Class<<8 | 0x83 // a stream: Poll may say something else
)

var wire = binary.LittleEndian

// kind is what an entry is.
type kind uint8

const (
	kindDir kind = iota + 1
	kindFile
	kindLink
)

// Operations of a record.
const (
	opPut    = 1
	opRemove = 2
)

// What a file has.
const (
	hasShow = 1 << iota
	hasStore
	hasReadAt
	hasWriteAt
	hasOpen
	hasOneOpen
	allFlags = 1<<iota - 1
)

// Bounds of what a worker's tree may be.
const (
	maxNodes  = 1 << 16
	maxBytes  = 16 << 20 // of names and targets
	maxDepth  = 24
	maxName   = 255
	maxTarget = 4095
	maxSize   = 1 << 30 // of a file
	maxIO     = 1 << 20 // that one call moves
	maxText   = 1 << 20 // of a file
)

// kindInfo is what a node is, and what its looks depend on. Nodes with the same kindInfo may stand for each other.
type kindInfo struct {
	kind    kind
	mode    uint16
	flavour uint8
	flags   uint8
	size    uint32
	target  string
}

// record is one entry that came (or, with remove, went).
type record struct {
	remove     bool
	id, parent uint64 // parent 0 is the top
	name       string
	kindInfo
}

// describe is a node's kindInfo.
func describe(n node.Node) (kindInfo, bool) {
	switch n := n.(type) {
	case *node.Dir:
		return kindInfo{kind: kindDir, mode: uint16(n.Mode.Perm())}, true
	case *node.Link:
		return kindInfo{kind: kindLink, target: n.Target}, n.Target != "" && len(n.Target) <= maxTarget && !strings.ContainsFunc(n.Target, unicode.IsControl)
	case *node.File:
		k := kindInfo{kind: kindFile, mode: uint16(n.Mode.Perm()), flavour: uint8(n.Flavour), size: uint32(min(max(n.Size, 0), maxSize))}
		for _, f := range []struct {
			has bool
			bit uint8
		}{{n.Show != nil || n.ShowContext != nil, hasShow}, {n.Store != nil, hasStore}, {n.ReadAt != nil, hasReadAt}, {n.WriteAt != nil, hasWriteAt},
			{n.Open != nil, hasOpen}, {n.OneOpen, hasOneOpen}} {
			if f.has {
				k.flags |= f.bit
			}
		}
		return k, true
	}
	return kindInfo{}, false
}

// append encodes a record: operation, number, then of a put parent, kind, flavour, flags, mode, size, name and target with their lengths before them.
func (r *record) append(b []byte) []byte {
	if r.remove {
		return wire.AppendUint64(append(b, opRemove), r.id)
	}
	b = wire.AppendUint64(append(b, opPut), r.id)
	b = wire.AppendUint64(b, r.parent)
	b = append(b, uint8(r.kind), r.flavour, r.flags)
	b = wire.AppendUint16(b, r.mode)
	b = wire.AppendUint32(b, r.size)
	b = append(b, uint8(len(r.name)))
	b = append(b, r.name...)
	b = wire.AppendUint16(b, uint16(len(r.target)))
	return append(b, r.target...)
}

// errRecord is what a record that cannot be is refused with.
var errRecord = errors.New("a record that is cut off")

// parseRecord decodes the first record in b, checked as far as it can be alone.
func parseRecord(b []byte) (r record, rest []byte, err error) {
	const fixed = 1 + 8 + 8 + 3 + 2 + 4 + 1
	if len(b) < 9 {
		return r, nil, errRecord
	}
	op := b[0]
	r.id = wire.Uint64(b[1:])
	switch {
	case r.id == 0:
		return r, nil, errors.New("a record about the top itself")
	case op == opRemove:
		r.remove = true
		return r, b[9:], nil
	case op != opPut:
		return r, nil, fmt.Errorf("a record of operation %d", op)
	case len(b) < fixed:
		return r, nil, errRecord
	}
	r.parent = wire.Uint64(b[9:])
	r.kind, r.flavour, r.flags = kind(b[17]), b[18], b[19]
	r.mode, r.size = wire.Uint16(b[20:]), wire.Uint32(b[22:])
	n := int(b[26])
	b = b[fixed:]
	if len(b) < n+2 {
		return r, nil, errRecord
	}
	r.name = string(b[:n])
	n, b = int(wire.Uint16(b[n:])), b[n+2:]
	if len(b) < n {
		return r, nil, errRecord
	}
	r.target = string(b[:n])
	return r, b[n:], r.check()
}

// goodName says whether a name can be told. It may hold control characters, since what users name is called so; whoever shows it sees to that.
func goodName(s string) bool {
	return s != "" && len(s) <= maxName && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00")
}

// check refuses what no tree has.
func (r *record) check() error {
	switch {
	case !goodName(r.name):
		return fmt.Errorf("an entry of the name %q", r.name)
	case r.mode&^uint16(fs.ModePerm) != 0 || r.flavour > uint8(node.Sys) || r.flags > allFlags || r.size > maxSize || len(r.target) > maxTarget:
		return fmt.Errorf("%q: mode %#o, flavour %d, flags %#x, size %d, a target of %d bytes", r.name, r.mode, r.flavour, r.flags, r.size, len(r.target))
	case r.kind == kindDir && r.flavour|r.flags == 0 && r.size == 0 && r.target == "":
	case r.kind == kindFile && r.target == "":
	case r.kind == kindLink && r.flavour|r.flags == 0 && r.size == 0 && r.mode == 0 && r.target != "" && !strings.ContainsFunc(r.target, unicode.IsControl):
	default:
		return fmt.Errorf("%q: an entry of kind %d, with what that kind has not", r.name, r.kind)
	}
	return nil
}

// protocol is an error that ends the connection.
func protocol(format string, args ...any) error {
	return fmt.Errorf("tree: "+format+": %w", append(args, bus.ErrProtocol)...)
}
