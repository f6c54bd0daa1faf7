package tpmdd

import (
	"encoding/binary"
	"fmt"
)

// HeaderSize is the length of a command's and of an answer's header, in bytes.
const HeaderSize = 10

// MaxCommand is the longest command, and the longest answer, that goes through a character device. A
// transport may take less.
const MaxCommand = 4096

// Tags (TPM 1.2 part 2, 6; TPM 2.0 part 2, 6.9).
const (
	TagRequest12  = 0x00c1 // TPM_TAG_RQU_COMMAND
	TagResponse12 = 0x00c4 // TPM_TAG_RSP_COMMAND; also what a TPM 2.0 answers to a wrong tag
	TagNoSessions = 0x8001 // TPM_ST_NO_SESSIONS
	TagSessions   = 0x8002 // TPM_ST_SESSIONS
)

// Header is the beginning of a command or of an answer.
type Header struct {
	Tag    uint16
	Length uint32 // of the whole, header included
	Code   uint32 // command code (ordinal), or result
}

// ParseHeader reads a header. It says false where p is too short for one; whether Length is true the caller
// must check.
func ParseHeader(p []byte) (Header, bool) {
	if len(p) < HeaderSize {
		return Header{}, false
	}
	return Header{
		Tag:    binary.BigEndian.Uint16(p),
		Length: binary.BigEndian.Uint32(p[2:]),
		Code:   binary.BigEndian.Uint32(p[6:]),
	}, true
}

// Append adds the header to p.
func (h Header) Append(p []byte) []byte {
	p = binary.BigEndian.AppendUint16(p, h.Tag)
	p = binary.BigEndian.AppendUint32(p, h.Length)
	return binary.BigEndian.AppendUint32(p, h.Code)
}

// Command makes a command of its parameters, with the length put in.
func Command(tag uint16, code uint32, params ...byte) []byte {
	h := Header{Tag: tag, Length: uint32(HeaderSize + len(params)), Code: code}
	return append(h.Append(make([]byte, 0, h.Length)), params...)
}

// Answer makes an answer that holds a result code and nothing else.
func Answer(tag uint16, code uint32) []byte { return Command(tag, code) }

// Family is the language that a TPM speaks.
type Family uint8

// Families.
const (
	TPM12 Family = 1
	TPM20 Family = 2
)

func (f Family) String() string {
	switch f {
	case TPM12:
		return "1.2"
	case TPM20:
		return "2.0"
	}
	return fmt.Sprintf("Family(%d)", uint8(f))
}
