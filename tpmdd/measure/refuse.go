package measure

import (
	"encoding/binary"

	"github.com/ring3dev/ring3/tpmdd"
)

// Result codes of a refused command.
const (
	// rcRefused20 is what the kernel's resource manager answers to a command that the TPM does not have.
	rcRefused20 = tpmdd.RCLayerRM | tpmdd.RCCommandCode
	// rcRefused12 is "the TPM target command has been disabled".
	rcRefused12 = tpmdd.RCDisabledCmd
)

// Refuse gives the function that a character device asks about each command before it goes to the TPM. It answers, in the
// TPM's place, those that change a PCR, and is nil for all others. It takes any bytes.
//
// Of TPM 2.0: PCR_Extend, PCR_Event, EventSequenceComplete, PCR_Reset, PCR_SetAuthValue and PCR_SetAuthPolicy of that
// PCR. Handles are in clear whatever sessions a command has, and so is the PCR's number in SetAuthPolicy, which is not the
// first parameter. PCR_Allocate, whatever it is for: from the TPM's next start on the PCR might have a bank of SHA-1
// alone.
//
// Of TPM 1.2: TPM_Extend, TPM_SHA1CompleteExtend and TPM_PCR_Reset of that PCR, and these three in a transport session
// whichever PCR they are for: their parameters may be encrypted there.
func Refuse(pcr int, family tpmdd.Family) func(cmd []byte) []byte {
	if family == tpmdd.TPM12 {
		return func(cmd []byte) []byte {
			if changes12(cmd, pcr) {
				return tpmdd.Answer(tpmdd.TagResponse12, rcRefused12)
			}
			return nil
		}
	}
	return func(cmd []byte) []byte {
		if changes20(cmd, pcr) {
			return tpmdd.Answer(tpmdd.TagNoSessions, rcRefused20)
		}
		return nil
	}
}

// uint32At reads a number. It says false where p ends before, and so would the TPM's own reading.
func uint32At(p []byte, at int) (uint32, bool) {
	if at < 0 || len(p) < at+4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(p[at:]), true
}

// changes20 judges a command of TPM 2.0 (part 3, 22).
func changes20(cmd []byte, pcr int) bool {
	h, ok := tpmdd.ParseHeader(cmd)
	if !ok {
		return false
	}
	switch h.Code {
	case tpmdd.CCPCRExtend, tpmdd.CCPCREvent, tpmdd.CCEventSequenceComplete, tpmdd.CCPCRReset, tpmdd.CCPCRSetAuthValue:
		handle, ok := uint32At(cmd, tpmdd.HeaderSize)
		return ok && handle == uint32(pcr)
	case tpmdd.CCPCRSetAuthPolicy:
		return setsPolicy(cmd, pcr)
	case tpmdd.CCPCRAllocate:
		return true
	}
	return false
}

// setsPolicy finds the PCR in TPM2_PCR_SetAuthPolicy: hierarchy, sessions behind their size, policy behind its size, algorithm, PCR.
func setsPolicy(cmd []byte, pcr int) bool {
	const handle = tpmdd.HeaderSize
	size, ok := uint32At(cmd, handle+4)
	if !ok || size > tpmdd.MaxCommand {
		return false
	}
	at := handle + 8 + int(size)
	if len(cmd) < at+2 {
		return false
	}
	at += 2 + int(binary.BigEndian.Uint16(cmd[at:])) + 2
	n, ok := uint32At(cmd, at)
	return ok && n == uint32(pcr)
}

// changes12 judges a command of TPM 1.2 (part 3, 16 and 13.3).
func changes12(cmd []byte, pcr int) bool {
	h, ok := tpmdd.ParseHeader(cmd)
	if !ok {
		return false
	}
	switch h.Code {
	case tpmdd.OrdExtend, tpmdd.OrdSHA1CompleteExtend:
		n, ok := uint32At(cmd, tpmdd.HeaderSize)
		return ok && n == uint32(pcr)
	case tpmdd.OrdPCRReset:
		const sel = tpmdd.HeaderSize + 2
		return len(cmd) > sel+pcr/8 && pcr/8 < int(binary.BigEndian.Uint16(cmd[tpmdd.HeaderSize:])) && cmd[sel+pcr/8]&(1<<(pcr%8)) != 0
	case tpmdd.OrdExecuteTransport:
		// The wrapped command begins after its size; its own header is never encrypted.
		inner, ok := uint32At(cmd, tpmdd.HeaderSize+4+6)
		return ok && (inner == tpmdd.OrdExtend || inner == tpmdd.OrdSHA1CompleteExtend || inner == tpmdd.OrdPCRReset)
	}
	return false
}
