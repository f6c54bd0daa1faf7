package class

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/sysfs"
	"github.com/ring3dev/ring3/tpmdd"
)

// attrs are the files of a chip, and its directories of PCRs.
func attrs(c *tpmdd.Chip) map[string]sysfs.Node {
	id := c.Identity()
	out := map[string]sysfs.Node{"tpm_version_major": sysfs.Showf("%d", id.Family)}
	for _, b := range id.Banks {
		if b.Name == "" {
			continue
		}
		dir := &sysfs.Dir{}
		for n := range uint32(tpmdd.PCRs) {
			dir.Put(fmt.Sprint(n), show(func(w *bytes.Buffer) error { return pcr(c, w, b, n) }))
		}
		out["pcr-"+b.Name] = dir
	}
	if id.Family == tpmdd.TPM12 {
		for name, f := range legacy(c) {
			out[name] = f
		}
	}
	return out
}

// show is a read-only attribute.
func show(f func(w *bytes.Buffer) error) *sysfs.File { return sysfs.Attr(0o444, f, nil) }

// pcr shows a register. The kernel takes a TPM's error code for a number of bytes to show, of a page that holds zeros; so whoever
// reads it gets that many.
func pcr(c *tpmdd.Chip, w *bytes.Buffer, b tpmdd.Bank, n uint32) error {
	digest, err := tpmdd.ReadPCR(context.Background(), c, c.Family(), b, n)
	var refused *tpmdd.TPMError
	switch {
	case errors.As(err, &refused):
		c.Complain(err)
		w.Write(make([]byte, min(refused.Code, page-1)))
		return nil
	case err != nil:
		return err
	}
	fmt.Fprintf(w, "%X\n", digest)
	return nil
}

// page is what sysfs gives a file.
const page = 4096

// legacy are the files that only a TPM 1.2 has. On an error of the TPM's, or on the way to it, they are empty.
func legacy(c *tpmdd.Chip) map[string]*sysfs.File {
	file := func(f func(ctx context.Context, w *bytes.Buffer, x tpmdd.Exchanger) error) *sysfs.File {
		return show(func(w *bytes.Buffer) error {
			ctx := context.Background()
			if err := c.Do(ctx, func(x tpmdd.Exchanger) error { return f(ctx, w, x) }); err != nil {
				c.Complain(err)
				w.Reset()
			}
			return nil
		})
	}
	// flag shows a byte of a capability.
	flag := func(what string, at int, when byte, cmd []byte) *sysfs.File {
		return file(func(ctx context.Context, w *bytes.Buffer, x tpmdd.Exchanger) error {
			p, err := tpmdd.Capability12(ctx, x, what, at+1, cmd)
			if err != nil {
				return err
			}
			v := 0
			if (p[at] != 0) == (when != 0) {
				v = 1
			}
			fmt.Fprintf(w, "%d\n", v)
			return nil
		})
	}
	permanent := tpmdd.GetCapability12(tpmdd.Cap12Flag, tpmdd.FlagPermanent)
	return map[string]*sysfs.File{
		// TPM_PERMANENT_FLAGS: tag, disable, ownership, deactivated; TPM_STCLEAR_FLAGS: tag, deactivated (part 2, 7.1, 7.2).
		"enabled":          flag("attempting to determine the permanent enabled state", 2, 0, permanent),
		"active":           flag("attempting to determine the permanent active state", 4, 0, permanent),
		"temp_deactivated": flag("attempting to determine the temporary state", 2, 1, tpmdd.GetCapability12(tpmdd.Cap12Flag, tpmdd.FlagVolatile)),
		"owned":            flag("attempting to determine the owner state", 0, 1, tpmdd.GetCapability12(tpmdd.Cap12Prop, tpmdd.PropOwner)),
		"pcrs":             file(func(ctx context.Context, w *bytes.Buffer, x tpmdd.Exchanger) error { return pcrs(ctx, w, x, c) }),
		"pubek":            file(pubek),
		"caps":             file(caps),
		"durations":        show(func(w *bytes.Buffer) error { durations(w, c.Identity()); return nil }),
		"timeouts":         show(func(w *bytes.Buffer) error { timeouts(w, c.Identity()); return nil }),
		"cancel":           sysfs.Attr(0o200, nil, func(_ context.Context, p []byte) (int, error) { c.Cancel(); return len(p), nil }),
	}
}

// pcrs shows all registers.
func pcrs(ctx context.Context, w *bytes.Buffer, x tpmdd.Exchanger, c *tpmdd.Chip) error {
	id := c.Identity()
	for n := range id.PCRs {
		digest, err := tpmdd.ReadPCR(ctx, x, id.Family, id.Banks[0], uint32(n))
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "PCR-%02d: ", n)
		for _, b := range digest {
			fmt.Fprintf(w, "%02X ", b)
		}
		w.WriteByte('\n')
	}
	return nil
}

// pubek shows the endorsement key (TPM_PUBKEY, part 2, 10.5), for as long as anybody may read it.
func pubek(ctx context.Context, w *bytes.Buffer, x tpmdd.Exchanger) error {
	var nonce [20]byte
	p, err := tpmdd.Ask(ctx, x, "attempting to read the PUBEK", tpmdd.Command(tpmdd.TagRequest12, tpmdd.OrdReadPubek, nonce[:]...))
	if err != nil {
		return err
	}
	// algorithm, schemes, 12 bytes of parameters, the key of 256 bytes, each with its length before it
	const parameters, key = 12, 12 + 12 + 4
	if len(p) < key+256 {
		return fmt.Errorf("an endorsement key of %d bytes: %w", len(p), unix.EFAULT)
	}
	fmt.Fprintf(w, "Algorithm: % x\nEncscheme: % x\nSigscheme: % x\nParameters: % x\nModulus length: %d\nModulus:\n",
		p[0:4], p[4:6], p[6:8], p[parameters:parameters+12], binary.BigEndian.Uint32(p[parameters+12:]))
	for m := p[key : key+256]; len(m) > 0; m = m[16:] {
		fmt.Fprintf(w, "% x\n", m[:16])
	}
	return nil
}

// caps shows who made it, and which version it is.
func caps(ctx context.Context, w *bytes.Buffer, x tpmdd.Exchanger) error {
	p, err := tpmdd.Capability12(ctx, x, "attempting to determine the manufacturer", 4, tpmdd.GetCapability12(tpmdd.Cap12Prop, tpmdd.PropManufacturer))
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "Manufacturer: %#x\n", binary.BigEndian.Uint32(p))
	// TPM_CAP_VERSION_INFO: tag, version; before TPM 1.2 the version alone.
	v, err := tpmdd.Capability12(ctx, x, "attempting to determine the 1.2 version", 6, tpmdd.GetCapability12(tpmdd.Cap12VersionInfo))
	if err == nil {
		v = v[2:]
	} else if v, err = tpmdd.Capability12(ctx, x, "attempting to determine the 1.1 version", 4, tpmdd.GetCapability12(tpmdd.Cap12Version)); err != nil {
		return err
	}
	fmt.Fprintf(w, "TCG version: %d.%d\nFirmware version: %d.%d\n", v[0], v[1], v[2], v[3])
	return nil
}

// adjusted is how the last word is written.
var adjusted = map[bool]string{false: "original", true: "adjusted"}

// durations shows short, medium and long, in microseconds; nothing where the chip gave none.
func durations(w *bytes.Buffer, id tpmdd.Identity) {
	if d := id.Durations; d.Long != 0 {
		fmt.Fprintf(w, "%d %d %d [%s]\n", d.Short.Microseconds(), d.Medium.Microseconds(), d.Long.Microseconds(), adjusted[id.DurationsAdjusted])
	}
}

// timeouts shows A to D, in microseconds.
func timeouts(w *bytes.Buffer, id tpmdd.Identity) {
	t := id.Timeouts
	fmt.Fprintf(w, "%d %d %d %d [%s]\n", t.A.Microseconds(), t.B.Microseconds(), t.C.Microseconds(), t.D.Microseconds(), adjusted[id.TimeoutsAdjusted])
}
