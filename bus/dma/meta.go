package dma

// Meta is what goes with a frame besides its bytes, in the terms of virtio's network
// header (virtio 1.2, 5.1.6): what a sender asks of the device, what the device says of a received
// frame.
type Meta struct {
	Flags MetaFlags
	// NeedsCsum: the sum is over the frame from CsumStart to its end, and is added into the
	// 16 bits at CsumStart+CsumOffset, which hold the sum of the pseudo header.
	CsumStart, CsumOffset uint16
	// GSO4, GSO6: the first HdrLen bytes (Ethernet, IP, TCP) begin each segment, which carries
	// GSOSize bytes of the rest.
	HdrLen, GSOSize uint16
	VLAN            uint16 // the tag control information: priority, DEI, VLAN ID
	Hash            uint32 // RSS hash, 0 if there is none
}

// MetaFlags says which fields of Meta hold something.
type MetaFlags uint8

// Flags of Meta.
const (
	NeedsCsum MetaFlags = 1 << iota // sending: put the TCP or UDP checksum in
	GSO4                            // sending: segment TCP over IPv4; with NeedsCsum
	GSO6                            // sending: segment TCP over IPv6; with NeedsCsum
	VLAN                            // sending: insert the tag; receiving: it was stripped
	CsumGood                        // receiving: the device has verified the checksums
)
