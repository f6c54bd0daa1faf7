package host

// late looks whether a TPM's command is longer on its way than it may be. The files of a TPM wait for as long as the TPM takes, and that may be minutes; how long it is for this
// command, its chip knows. A wait makes accesses, and ends by itself; so it is an access, or what is between two, that does not return.
func (w *watchdog) late(b *boundDevice, now map[suspectKey]string) {
	if b.tpm == nil {
		return
	}
	k := suspectKey{suspectCall, b.spec.Name, "the TPM"}
	moves := uint64(0)
	if b.trace != nil {
		moves = b.trace.Recorded()
	}
	stands := w.stands(k, moves)
	if what, by := b.tpm.chip.Overdue(); by > tpmLongest || by > w.slack && stands {
		now[k] = what + ": it does not end"
	}
}
