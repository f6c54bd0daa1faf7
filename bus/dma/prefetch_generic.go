//go:build !amd64 && !arm64

package dma

// Prefetch does nothing here.
func Prefetch(*byte) {}
