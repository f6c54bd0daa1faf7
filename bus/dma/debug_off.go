//go:build !dmadebug

package dma

func debugFree(*Buf) {}
