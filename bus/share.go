package bus

import (
	"io"
	"os"
)

// What follows is what a backend offers beyond the contract, so that its devices can be served to
// a driver in another process (package vfiouser). All of it is optional.

// Window is memory that a device is to reach at an address that somebody else chose: of a driver
// in another process, of a virtual machine.
type Window struct {
	IOVA IOVA
	Size uint64 // whole pages
	Dir  Direction
	// File holds the memory, from Off on; nil: there is no file of it. It stays the caller's.
	File *os.File
	Off  int64
	// Bytes is the memory itself, if it can be mapped and cannot vanish under an access; nil: only
	// Mem reaches it.
	Bytes []byte
	Mem   WindowMemory
}

// WindowMemory copies from and to a window's memory, by the offset in the window. It may fail,
// and take as long as a peer takes to answer.
type WindowMemory interface {
	io.ReaderAt
	io.WriterAt
}

// Placer is implemented by a DMA that takes memory at addresses that are given.
type Placer interface {
	// Place lets the device reach w. It fails with ErrBusy where the addresses are taken, and with
	// ErrNotSupported where the device cannot reach such memory or such addresses. When release
	// returns, the device does not reach it any more.
	Place(w Window) (release func(), err error)
}

// Shared is implemented by a Region of which parts are memory that another process may map: an
// access there is a load or a store, and has no effect but that.
type Shared interface {
	// Shared is the file, where in it the region begins, and the parts, in order and apart. A nil
	// file says that there is none. The file stays the region's.
	Shared() (file *os.File, base int64, parts []Part)
}

// Part is a part of a region.
type Part struct {
	Off  Off
	Size uint64
}
