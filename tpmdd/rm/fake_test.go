package rm

import (
	"context"
	"encoding/binary"
	"sync"

	"github.com/ring3dev/ring3/tpmdd"
)

// Commands that the fake has beside those of the manager.
const (
	ccMake    = 0x131 // CreatePrimary: makes an object that holds the four bytes after its handle
	ccUse     = 0x173 // ReadPublic: gives what the object holds
	ccStart   = 0x176 // StartAuthSession
	ccRestart = 0x180 // PolicyRestart: uses a session
	ccLast    = 0x13c // ends a session, as a command without continueSession does
	ccVendors = 0x2000_0001
	rcRefH0   = rcReferenceH0
	rcMemory  = 0x902
	rcNoCmd   = tpmdd.RCCommandCode
)

// fake is a TPM of objects that hold four bytes and sessions that hold nothing.
type fake struct {
	turn sync.Mutex

	room     int               // for objects
	page     int               // how many commands one answer lists
	objects  map[uint32]uint32 // what is loaded, and what it holds
	sessions map[uint32]*session
	seq      uint32
	size     int // of a context's blob
	keys     uint32
	log      []uint32 // codes of what came
	turns    int      // how often the chip was taken

	// fault, where set, has the say over each command: it may have it done by calling do, or not.
	fault func(n int, cmd []byte, do func() []byte) ([]byte, error)
	count int
}

type session struct {
	loaded bool
	seq    uint32 // of the last time it was saved
}

func newFake() *fake {
	return &fake{room: 3, page: 4, size: 100, objects: map[uint32]uint32{}, sessions: map[uint32]*session{}}
}

func (f *fake) Family() tpmdd.Family { return tpmdd.TPM20 }

func (f *fake) Do(ctx context.Context, g func(tpmdd.Exchanger) error) error {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.turns++
	return g((*fakeTurn)(f))
}

func (f *fake) Transmit(ctx context.Context, cmd []byte) (rsp []byte, err error) {
	err = f.Do(ctx, func(x tpmdd.Exchanger) error {
		rsp, err = x.Transmit(ctx, cmd)
		return err
	})
	return rsp, err
}

type fakeTurn fake

func (f *fakeTurn) Transmit(_ context.Context, cmd []byte) ([]byte, error) {
	n := f.count
	f.count++
	if f.fault != nil {
		return f.fault(n, cmd, func() []byte { return (*fake)(f).execute(cmd) })
	}
	return (*fake)(f).execute(cmd), nil
}

var fakeCommands = []tpmaCC{
	ccMake | 1<<25 | ccRHandle, ccLast | 1<<25, tpmdd.CCContextLoad | ccRHandle, tpmdd.CCContextSave, tpmdd.CCFlushContext, ccUse | 1<<25,
	ccStart | 2<<25 | ccRHandle, tpmdd.CCGetCapability, 0x17b, ccRestart | 1<<25, tpmaCC(ccVendors),
}

func ok(params ...byte) []byte { return tpmdd.Command(tpmdd.TagNoSessions, 0, params...) }

func refuse(rc uint32) []byte { return tpmdd.Answer(tpmdd.TagNoSessions, rc) }

func (f *fake) execute(cmd []byte) []byte {
	h, _ := tpmdd.ParseHeader(cmd)
	f.log = append(f.log, h.Code)
	var args [4]uint32
	for i := range args {
		if off := tpmdd.HeaderSize + 4*i; off+4 <= len(cmd) {
			args[i] = binary.BigEndian.Uint32(cmd[off:])
		}
	}
	switch h.Code {
	case tpmdd.CCGetCapability:
		return f.capability(args[0], args[1])
	case ccMake:
		return f.add(args[1])
	case ccUse:
		if v, ok := f.objects[args[0]]; ok {
			return tpmdd.Command(tpmdd.TagNoSessions, 0, be.AppendUint32(nil, v)...)
		}
		return refuse(rcRefH0)
	case ccStart:
		for h := uint32(kindPolicy); ; h++ {
			if f.sessions[h] == nil {
				f.sessions[h] = &session{loaded: true}
				return ok(be.AppendUint32(nil, h)...)
			}
		}
	case ccRestart, ccLast:
		s := f.sessions[args[0]]
		if s == nil || !s.loaded {
			return refuse(rcRefH0)
		}
		if h.Code == ccLast {
			delete(f.sessions, args[0])
		}
		return ok()
	case tpmdd.CCContextSave:
		return f.save(args[0])
	case tpmdd.CCContextLoad:
		return f.load(cmd[tpmdd.HeaderSize:])
	case tpmdd.CCFlushContext:
		_, object := f.objects[args[0]]
		if !object && f.sessions[args[0]] == nil {
			return refuse(0x1cb)
		}
		delete(f.objects, args[0])
		delete(f.sessions, args[0])
		return ok()
	}
	return refuse(rcNoCmd)
}

// add loads an object.
func (f *fake) add(v uint32) []byte {
	if len(f.objects) >= f.room {
		return refuse(rcMemory)
	}
	for h := uint32(kindTransient); ; h++ {
		if _, taken := f.objects[h]; !taken {
			f.objects[h] = v
			return ok(be.AppendUint32(nil, h)...)
		}
	}
}

func (f *fake) save(h uint32) []byte {
	f.seq++
	var content uint32
	if v, ok := f.objects[h]; ok {
		content = v
	} else if s := f.sessions[h]; s != nil && s.loaded {
		s.loaded, s.seq = false, f.seq
	} else {
		return refuse(rcRefH0)
	}
	p := be.AppendUint64(nil, uint64(f.seq))
	p = be.AppendUint32(p, h)
	p = be.AppendUint32(p, f.keys)
	p = be.AppendUint16(p, uint16(f.size))
	p = be.AppendUint32(p, content)
	return ok(append(p, make([]byte, f.size-4)...)...)
}

func (f *fake) load(p []byte) []byte {
	if len(p) != contextHead+f.size {
		return refuse(0x1d5) // TPM_RC_SIZE
	}
	seq, h, keys, content := uint32(be.Uint64(p)), be.Uint32(p[8:]), be.Uint32(p[12:]), be.Uint32(p[contextHead:])
	if keys != f.keys {
		return refuse(0x1df) // TPM_RC_INTEGRITY
	}
	if h&kindMask == kindTransient {
		return f.add(content)
	}
	s := f.sessions[h]
	if s == nil || s.loaded || s.seq != seq {
		return refuse(0x1cb) // TPM_RC_HANDLE
	}
	s.loaded = true
	return ok(be.AppendUint32(nil, h)...)
}

func (f *fake) capability(which, from uint32) []byte {
	var list []uint32
	more := byte(0)
	switch which {
	case tpmdd.CapCommands:
		for _, a := range fakeCommands {
			if a.code() < from {
				continue
			}
			if len(list) == f.page {
				more = 1
				break
			}
			list = append(list, uint32(a))
		}
	case tpmdd.CapHandles:
		for h := range f.objects {
			list = append(list, h)
		}
		list = append(list, 0x81000001)
	}
	p := be.AppendUint32([]byte{more}, which)
	p = be.AppendUint32(p, uint32(len(list)))
	for _, v := range list {
		p = be.AppendUint32(p, v)
	}
	return ok(p...)
}

// Commands of a program.

func words(code uint32, w ...uint32) []byte {
	var p []byte
	for _, v := range w {
		p = be.AppendUint32(p, v)
	}
	return tpmdd.Command(tpmdd.TagNoSessions, code, p...)
}

func cmdMake(v uint32) []byte { return words(ccMake, 0x40000007, v) }
