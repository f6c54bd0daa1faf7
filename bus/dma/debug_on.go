//go:build dmadebug

package dma

import "fmt"

// debug says whether frees are watched.
const debug = true

func debugTwice(b *Buf) {
	panic(fmt.Sprintf("dma: buffer at IOVA %#x freed twice", uint64(b.Addr)))
}

func debugFree(b *Buf) {
	for i := range b.Mem {
		b.Mem[i] = 0xdb
	}
	b.Tag = 0
}
