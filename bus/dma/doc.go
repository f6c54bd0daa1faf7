// Package dma is what drivers build from DMA memory: pools of fixed-size buffers with
// an owner, and ordered access to memory that a device writes too.
//
// # Ownership
//
// A [Buf] has one owner at a time: the pool, the program, or a device's ring. Handing
// a Buf to a queue gives it away; the queue gives it back with [Buf.Free] when the
// device is done. A Buf that is sent more than once (pktgen's clone_skb) is
// retained once for each further use. A [Pool] and its buffers belong to one goroutine
// at a time; nothing here locks. Built with -tags dmadebug, a pool panics on a double
// free and fills freed buffers with 0xdb.
//
// [NewStaggered] makes pools for devices that take buffers at any address; [NewPool]
// aligns each buffer to its size.
//
// # Order
//
// Memory shared with a device is read with [Load32] and [Load64] (once, then check the
// local copy), and published with [Store32] or [Store64], which overtake no
// earlier store. On amd64 and arm64 these are single instructions; a doorbell through
// bus.Region comes after all stores made before it.
package dma
