//go:build amd64 || arm64

package dma

// Prefetch asks the CPU to fetch the cache line of p, and waits for nothing: whoever reads it some hundred
// instructions later finds it there. Another CPU's line takes longer to come than a frame
// takes to be sent.
//
//go:noescape
func Prefetch(p *byte)
