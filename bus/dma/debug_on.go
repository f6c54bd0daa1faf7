//go:build dmadebug

package dma

import "fmt"

func debugFree(b *Buf) {
	if b.refs < 0 {
		panic(fmt.Sprintf("dma: buffer at IOVA %#x freed twice", b.Addr))
	}
	for i := range b.Mem {
		b.Mem[i] = 0xdb
	}
	b.Tag = 0
}
