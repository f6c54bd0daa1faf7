package bus

// ReadRunner is implemented by a Region that reads several times in a row faster than by one call each: over a link on
// which an answer takes long, the requests are sent before the first answer is there. What the device sees is the
// same: one access of exactly that width for each element, in order, after all earlier accesses and before all later ones.
type ReadRunner interface {
	// ReadRun32 reads len(p) times, at off, off+stride, off+2*stride and so on; stride 0 reads one
	// register, such as a FIFO's. An offset that Region would refuse reads all-ones.
	ReadRun32(off, stride Off, p []uint32)
	// ReadRun64 is the same with accesses of 64 bits.
	ReadRun64(off, stride Off, p []uint64)
}

// ReadRun32 reads a run as r does it best.
func ReadRun32(r Region, off, stride Off, p []uint32) {
	if x, ok := r.(ReadRunner); ok {
		x.ReadRun32(off, stride, p)
		return
	}
	for i := range p {
		p[i] = r.Read32(off + Off(i)*stride)
	}
}

// ReadRun64 reads a run as r does it best.
func ReadRun64(r Region, off, stride Off, p []uint64) {
	if x, ok := r.(ReadRunner); ok {
		x.ReadRun64(off, stride, p)
		return
	}
	for i := range p {
		p[i] = r.Read64(off + Off(i)*stride)
	}
}
