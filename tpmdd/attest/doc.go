// Package attest lets somebody else judge what a machine measured (package tpmdd/measure), by its TPM 2.0, and seals
// secrets to what was measured.
//
// # Who is who
//
// The attester has the TPM. The verifier has none and trusts nothing but a TPM that it knows by its endorsement key.
//
//	attester                                verifier
//	(t *TPM) Identity  --- Identity --->    NewChallenge, which keeps the Expectation
//	(t *TPM) Quote     <-- Challenge ---
//	                   ---- Quote ----->    Verify: a Report
//
// Each arrow is a JSON file, so it does not matter how it travels. All are public but the Expectation, which has the
// secret that the attester must find out, and a sealed secret's password, which is in no file.
//
// # Keys
//
// The endorsement key (EK) is made by the TPM from a seed that its maker put in, by the TCG's template, so it is always the
// same: RSA-2048, or ECC P-256 on a TPM without RSA. It cannot sign; a certificate for it may be in the TPM's
// non-volatile memory (0x01c00002; ECC 0x01c0000a). The verifier knows it by that certificate's chain, or by its fingerprint:
// the SHA-256 over the DER form of the public key, what this prints:
//
//	openssl pkey -pubin -in ek.pem -outform der | sha256sum
//
// The attestation key (AK) is a restricted signing key, ECDSA over P-256 (RSASSA-2048 without ECC), SHA-256. Restricted
// means that it signs only what the TPM itself made. It is a primary key of the endorsement hierarchy with a
// template of ours, so it too is always the same, and is stored nowhere.
//
// # Binding
//
// Nothing in an AK says which TPM it is in. [NewChallenge] encrypts a random secret to the EK together with the name of
// the AK (the hash of its public part, attributes included). The TPM decrypts it only when it holds both keys
// (TPM2_ActivateCredential). A quote that has the secret comes from whom the EK belongs to; that AK's name can be kept, and
// is enough for later quotes with a nonce alone.
//
// # What Verify checks
//
//	ek            the EK is one that the verifier knows, by fingerprint or certificate
//	ak            it is bound to that EK, or known; restricted, signing, fixedTPM, fixedParent, sensitiveDataOrigin, no decryption
//	attest        the TPM made it, it is a quote, the signature is the AK's
//	nonce         it is this one: the quote is fresh
//	pcrs          the values stated have the digest that was signed; they are of the bank that the verifier wants (SHA-256), its PCR (10) among them
//	log           entry by entry true in itself and for that PCR; replayed it gives the quoted one; boot_aggregate fits PCRs 0 to 9
//	database      each digest is known
//
// All of it is checked and all that is wrong is reported, one line each. Whether the firmware's PCRs (0 to 9) are good is
// not known here; the report has their values.
//
// # Sealing
//
// [TPM.Seal] encrypts at most 128 bytes to a storage key of the owner hierarchy, with a policy: PCRs with these values, and
// a password if there is one. The secret crosses the bus encrypted both ways, in sessions salted with that
// storage key. This keeps it from who listens, not from who answers in the TPM's place when it is sealed. Guesses of a
// password count for the TPM's lockout.
//
// # Errors
//
// Errors name the device, the step, what was seen and wanted. They wrap tpm2.TPMRC where the TPM refused, bus.ErrNotSupported where it is a TPM 1.2, and EPERM
// where a secret is refused: a PCR changed, a wrong password. Whatever was loaded is flushed, on errors and after an
// interrupt too: /dev/tpm0 has three places for keys, and nobody cleans up behind a program there. The endorsement and
// owner hierarchies must have no password.
//
// A TPM is for one goroutine. Everything else is a value.
//
// Sources: TPM 2.0 Library Specification 1.59 parts 1 to 3; TCG EK Credential Profile 2.5 (templates L-1 and L-2, NV indices);
// TCG PC Client Platform TPM Profile 1.05.
package attest
