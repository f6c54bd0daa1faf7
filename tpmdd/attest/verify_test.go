package attest

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/ring3dev/ring3/tpmdd/measure"
)

func TestChangedBinaryIsSeen(t *testing.T) {
	for _, c := range []struct {
		policy measure.Policy
		want   []string
	}{
		{measure.PolicyLog, []string{"database: entry 2: \"/usr/bin/driver1\" has the digest"}},
		{measure.PolicyDeny, []string{"database: entry 2"}},
		{measure.PolicyLock, []string{"database: entry 2", "log: entry 3 is a violation: \"locked:/usr/bin/driver1\"", "log: replayed, it gives PCR sha256:10"}},
	} {
		t.Run(c.policy.String(), func(t *testing.T) {
			mc := start(t, measure.Options{DB: database(t, known), Policy: c.policy}, known, "a changed driver")
			q, w := mc.attest(t)
			problems(t, Verify(q, w), c.want...)
		})
	}
}

// TestLogIsAltered is what an attester could try to hide the changed driver.
func TestLogIsAltered(t *testing.T) {
	mc := start(t, measure.Options{}, known, "a changed driver", "b")
	q, w := mc.attest(t)
	w.DB = database(t, known, "b")
	for _, c := range []struct {
		name string
		edit func(e []measure.Entry) []measure.Entry
		want []string
	}{
		{"removed", func(e []measure.Entry) []measure.Entry { return slices.Delete(e, 2, 3) }, []string{"log: replayed"}},
		{"reordered", func(e []measure.Entry) []measure.Entry { e[1], e[3] = e[3], e[1]; return e }, []string{"log: replayed", "database: entry 2"}},
		{"cut", func(e []measure.Entry) []measure.Entry { return e[:2] }, []string{"log: replayed"}},
		{"empty", func([]measure.Entry) []measure.Entry { return nil }, []string{"log: boot_aggregate: the list is empty", "log: replayed, it gives PCR sha256:10 = 0000"}},
		{"replaced", func(e []measure.Entry) []measure.Entry { e[2] = e[1]; return e }, []string{"log: replayed"}},
		{"altered", func(e []measure.Entry) []measure.Entry {
			e[2].Data = slices.Clone(e[1].Data) // its template digest stays
			return e
		}, []string{"log: entry 2: \"/usr/bin/driver0\": template digest", "log: replayed"}},
		{"another boot", func(e []measure.Entry) []measure.Entry { return e[1:] }, []string{"log: boot_aggregate: the first entry is", "log: replayed", "database: entry 1"}},
		{"of another PCR", func(e []measure.Entry) []measure.Entry { e[2].PCR = 11; return e }, []string{"log: replayed", "log: entry 2 is of PCR 11: want 10", "database: entry 2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			entries, err := measure.Parse(q.Log)
			if err != nil {
				t.Fatal(err)
			}
			bad := *q
			bad.Log = measure.Binary(c.edit(entries))
			problems(t, Verify(&bad, w), c.want...)
		})
	}
	// The true boot_aggregate and a known digest, in a PCR that any program may extend, beside the true one.
	t.Run("forged for another PCR", func(t *testing.T) {
		forged, err := measure.Parse(q.Log)
		if err != nil {
			t.Fatal(err)
		}
		forged = forged[:2]
		for i := range forged {
			forged[i].PCR = 16
			d, _ := forged[i].Digest(measure.SHA256)
			_, err := tpm2.PCRExtend{
				PCRHandle: tpm2.AuthHandle{Handle: 16, Auth: tpm2.PasswordAuth(nil)},
				Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: d}}},
			}.Execute(mc)
			if err != nil {
				t.Fatal(err)
			}
		}
		nonce := bytes.Repeat([]byte{7}, MinNonce)
		q, err := mc.Quote(QuoteOptions{Nonce: nonce, Bank: measure.SHA256, PCRs: append(slices.Clone(allPCRs), 16),
			Log: func() ([]byte, error) { return measure.Binary(forged), nil }})
		if err != nil {
			t.Fatal(err)
		}
		ak, err := ParsePublic(q.AK)
		if err != nil {
			t.Fatal(err)
		}
		problems(t, Verify(q, Want{Nonce: nonce, AK: ak.Name, DB: w.DB}),
			"log: entry 0 is of PCR 16: want 10", "log: entry 1 is of PCR 16: want 10", "log: replayed, it gives PCR sha256:10")
	})
}

func TestWrongQuotes(t *testing.T) {
	mc := start(t, measure.Options{}, known)
	other := start(t, measure.Options{}, known)
	oldQuote, oldWant := mc.attest(t)
	q, w := mc.attest(t)
	otherQuote, otherWant := other.attest(t)
	edit := func(f func(*Quote)) *Quote {
		c := *q
		c.PCRs = make(map[int]Hex)
		for n, v := range q.PCRs {
			c.PCRs[n] = v
		}
		c.Attest, c.Signature = slices.Clone(q.Attest), slices.Clone(q.Signature)
		f(&c)
		return &c
	}
	noEK, wrongEK := w, w
	noEK.EKs, wrongEK.EKs = nil, otherWant.EKs
	const notSigned = "signature: not the attestation key's"
	for _, c := range []struct {
		name string
		q    *Quote
		w    Want
		want []string
	}{
		{"an old quote", oldQuote, w, []string{"nonce: ", "ak: not bound to the EK: the quote's secret is not"}},
		{"old keys do not matter", oldQuote, oldWant, nil},
		{"another TPM's", otherQuote, w, []string{"ak: its name is", "nonce", "ak: not bound"}},
		{"the EK is not pinned", q, noEK, []string{"ek: fingerprint"}},
		{"the EK is another", q, wrongEK, []string{"ek: fingerprint"}},
		{"no secret", edit(func(q *Quote) { q.Secret = nil }), w, []string{"ak: not bound to the EK: the quote does not have"}},
		{"a guessed secret", edit(func(q *Quote) { q.Secret = make([]byte, 32) }), w, []string{"ak: not bound to the EK: the quote's secret"}},
		{"PCR stated wrongly", edit(func(q *Quote) { q.PCRs[10] = make([]byte, 32) }), w, []string{"pcrs: the values stated", "log: replayed"}},
		{"PCR not stated", edit(func(q *Quote) { delete(q.PCRs, 3) }), w, []string{"pcrs: PCR sha256:3", "pcrs: the values", "log: boot_aggregate"}},
		{"PCR not signed", edit(func(q *Quote) { q.PCRs[16] = make([]byte, 32) }), w, []string{"pcrs: PCR sha256:16 is stated and not signed"}},
		{"another bank", edit(func(q *Quote) { q.Bank = "sha1" }), w, []string{"pcrs: signed are those of the bank sha256", "log: "}},
		{"no bank", edit(func(q *Quote) { q.Bank = "" }), w, []string{"pcrs: signed are those of the bank sha256", "log: boot_aggregate"}},
		{"the PCRs' digest", edit(func(q *Quote) { q.Attest[len(q.Attest)-1] ^= 1 }), w, []string{notSigned, "pcrs: the values stated"}},
		{"magic", edit(func(q *Quote) { q.Attest[0] = 0 }), w, []string{notSigned, "attest: begins with 00544347: want ff544347"}},
		{"type", edit(func(q *Quote) { binary.BigEndian.PutUint16(q.Attest[4:], uint16(tpm2.TPMSTAttestTime)) }), w, []string{notSigned, "attest: "}},
		{"cut", edit(func(q *Quote) { q.Attest = q.Attest[:40] }), w, []string{notSigned, "attest: "}},
		{"no attest", edit(func(q *Quote) { q.Attest = nil }), w, []string{notSigned, "attest: "}},
		{"signature", edit(func(q *Quote) { q.Signature[len(q.Signature)-1] ^= 1 }), w, []string{notSigned}},
		{"no signature", edit(func(q *Quote) { q.Signature = nil }), w, []string{notSigned}},
		{"no key", edit(func(q *Quote) { q.AK = nil }), w, []string{"ak: "}},
		{"the EK as AK", edit(func(q *Quote) { q.AK = w.Expect.Identity.EK }), w, []string{"ak: sign is false: want true", "ak: decrypt is true: want false", "ak: its name is", notSigned}},
	} {
		t.Run(c.name, func(t *testing.T) { problems(t, Verify(c.q, c.w), c.want...) })
	}
}

// TestKeyOutsideTheTPM: an attester that signs with a key of its own makes everything fit, but cannot find the secret.
func TestKeyOutsideTheTPM(t *testing.T) {
	mc := start(t, measure.Options{}, known)
	for _, flip := range []uint32{1 << 1, 1 << 4, 1 << 5, 1 << 16} { // fixedTPM, fixedParent, sensitiveDataOrigin, restricted
		q, w := mc.attest(t)
		// The attributes stand behind the size, the type and the name algorithm.
		binary.BigEndian.PutUint32(q.AK[6:], binary.BigEndian.Uint32(q.AK[6:])^flip)
		w.Expect.Identity.AK = q.AK
		problems(t, Verify(q, w), "is false: want true")
	}
	id, err := mc.Identity()
	if err != nil {
		t.Fatal(err)
	}
	id.AK[len(id.AK)-40] ^= 1 // another point, or none
	if ch, _, err := NewChallenge(*id); err == nil {
		if q, err := mc.Quote(QuoteOptions{Challenge: ch, Bank: measure.SHA256, PCRs: allPCRs}); err == nil {
			t.Errorf("a challenge for another AK was activated: %v", q)
		}
	}
}
