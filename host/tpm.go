package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/internal/instance"
	"github.com/ring3dev/ring3/tpmdd/attest"
	"github.com/ring3dev/ring3/tpmdd/measure"
)

// Where a TPM and its measurement list are.
const (
	logPath    = "/sys/kernel/security/ima/binary_runtime_measurements"
	maxTPMFile = 1 << 20 // of a password, of roots
)

// tpmFlags are what the commands that need a TPM have in common.
type tpmFlags struct {
	device, pcrs, bank string
}

func (a *app) tpmCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "tpm",
		Short: "Prove to somebody else what was started, and seal secrets to it",
		Long: `Prove to somebody else what was started, and seal secrets to it, with a TPM 2.0.

The attester has the TPM, in a running instance (ring3 up --measure tpm0) or of this machine. The
verifier needs none: it knows the TPM by the fingerprint of its endorsement key (EK), or by
certificates. What they tell each other are files of JSON; FILE may be - for standard input.

  attester$ ring3 tpm identity > id.json
  verifier$ ring3 tpm challenge id.json --keep expect.json > challenge.json
  attester$ ring3 tpm quote --challenge challenge.json > quote.json
  verifier$ ring3 tpm verify quote.json --expect expect.json --ek SHA256 --db known.txt

known.txt has the digests that are good, as sha256sum or ring3 tpm digest print them. Once an attestation
key (AK) was bound to its EK so, a nonce is enough:

  attester$ ring3 tpm quote --nonce HEX > quote.json
  verifier$ ring3 tpm verify quote.json --nonce HEX --ak NAME --db known.txt`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			_ = c.Help()
			return exitError(2)
		},
	}
	c.AddCommand(a.tpmIdentityCmd(), a.tpmChallengeCmd(), a.tpmQuoteCmd(), a.tpmVerifyCmd(), a.tpmSealCmd(), a.tpmUnsealCmd(), a.tpmDigestCmd())
	return c
}

// deviceFlag adds the flags that say which TPM.
func (a *app) deviceFlag(c *cobra.Command, f *tpmFlags) {
	c.Flags().StringVar(&f.device, "device", "", "the TPM's device or Unix socket at `PATH` (default: the one that the running instance measures into, or its only one; where none runs, /dev/tpmrm0)")
	a.instanceFlag(c, "the instance, where several run")
}

// pcrFlags adds the flags that say which PCRs.
func (f *tpmFlags) pcrFlags(c *cobra.Command, pcrs string) {
	c.Flags().StringVar(&f.pcrs, "pcrs", pcrs, "these PCRs: a `LIST` such as 0-9,16")
	c.Flags().StringVar(&f.bank, "bank", "sha256", "of this `BANK`: sha1, sha256, sha384, sha512")
}

func (f *tpmFlags) selection() (measure.Bank, []int, error) {
	bank, err := measure.ParseBank(f.bank)
	if err != nil {
		return 0, nil, usagef("--%v", err)
	}
	pcrs, err := attest.ParsePCRs(f.pcrs)
	if err != nil {
		return 0, nil, usagef("--pcrs: %v", err)
	}
	return bank, pcrs, nil
}

// readInput reads a file that the user named, most bytes at most.
func (a *app) readInput(path string, most int64) ([]byte, error) {
	r := a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	p, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(p)) > most {
		err = fmt.Errorf("%s: longer than %d bytes", path, most)
	}
	return p, err
}

// readFile reads one of package attest's files.
func (a *app) readFile(path string, f attest.File) error {
	p, err := a.readInput(path, 2*measure.MaxParse)
	if err != nil {
		return err
	}
	if err := attest.Read(bytes.NewReader(p), f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (a *app) tpmIdentityCmd() *cobra.Command {
	var f tpmFlags
	c := &cobra.Command{
		Use:   "identity",
		Short: "Print the TPM's endorsement and attestation keys, for a challenge",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withTPM(c.Context(), &f, func(t *attest.TPM) error {
				id, err := t.Identity()
				if err != nil {
					return err
				}
				return attest.Write(a.stdout, id)
			})
		},
	}
	a.deviceFlag(c, &f)
	return c
}

func (a *app) tpmChallengeCmd() *cobra.Command {
	var keep string
	c := &cobra.Command{
		Use:     "challenge IDENTITY --keep FILE",
		Short:   "Print a challenge for who has that identity; needs no TPM",
		Example: "  ring3 tpm challenge id.json --keep expect.json > challenge.json",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			if keep == "" {
				return usagef("challenge: want --keep FILE, for 'ring3 tpm verify --expect FILE'")
			}
			var id attest.Identity
			if err := a.readFile(args[0], &id); err != nil {
				return err
			}
			ch, ex, err := attest.NewChallenge(id)
			if err != nil {
				return err
			}
			// It has the secret: for the user alone, and no other quote's is overwritten.
			w, err := os.OpenFile(keep, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return fmt.Errorf("--keep: %w", err)
			}
			if err := errors.Join(attest.Write(w, ex), w.Close()); err != nil {
				return fmt.Errorf("--keep %s: %w", keep, err)
			}
			return attest.Write(a.stdout, ch)
		},
	}
	c.Flags().StringVar(&keep, "keep", "", "write to the new `FILE` what verify must know, and nobody else")
	return c
}

func (a *app) tpmQuoteCmd() *cobra.Command {
	var f tpmFlags
	var challenge, nonce, log string
	c := &cobra.Command{
		Use:   "quote --challenge FILE | --nonce HEX",
		Short: "Have the TPM sign PCRs, and print that with the measurement list",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if (challenge == "") == (nonce == "") {
				return usagef("quote: want either --challenge FILE or --nonce HEX")
			}
			var o attest.QuoteOptions
			var err error
			if o.Bank, o.PCRs, err = f.selection(); err != nil {
				return err
			}
			if o.Nonce, err = parseHex("nonce", nonce); err != nil {
				return err
			}
			if challenge != "" {
				o.Challenge = new(attest.Challenge)
				if err := a.readFile(challenge, o.Challenge); err != nil {
					return err
				}
			}
			at, err := a.placeTPM(f.device)
			if err != nil {
				return err
			}
			if o.Log, err = a.measurements(c.Context(), log, at); err != nil {
				return err
			}
			return at.open(c.Context(), func(t *attest.TPM) error {
				q, err := t.Quote(o)
				if err != nil {
					return err
				}
				return attest.Write(a.stdout, q)
			})
		},
	}
	c.Flags().StringVar(&challenge, "challenge", "", "answer the challenge in `FILE`")
	c.Flags().StringVar(&nonce, "nonce", "", fmt.Sprintf("answer a nonce, %d to %d bytes in `HEX`", attest.MinNonce, attest.MaxNonce))
	c.Flags().StringVar(&log, "log", "", "the measurement list in `FILE`, binary or ASCII (default: that of the instance that measures into the TPM; none where none does)")
	f.pcrFlags(c, "0-10")
	a.deviceFlag(c, &f)
	return c
}

func parseHex(flag, s string) (attest.Hex, error) {
	var h attest.Hex
	if err := h.UnmarshalText([]byte(s)); err != nil {
		return nil, usagef("--%s: %v", flag, err)
	}
	return h, nil
}

// measurements is what reads a TPM's list: a file once, an instance's as often as it grows; nil where there is none.
func (a *app) measurements(ctx context.Context, path string, at tpmPlace) (func() ([]byte, error), error) {
	if path != "" {
		p, err := a.readInput(path, measure.MaxParse)
		return func() ([]byte, error) { return p, nil }, err
	}
	i := at.in
	if i == nil {
		var err error
		if i, err = a.measuresInto(at.path); i == nil || err != nil {
			return nil, err
		}
	}
	if i.Measure == "" {
		return nil, fmt.Errorf("%s measures nothing, so there is no list: was it started with --measure?", i.Name)
	}
	return func() ([]byte, error) {
		cl, err := instance.Dial(*i)
		if err != nil {
			return nil, err
		}
		defer cl.Close()
		p, err := cl.Get(ctx, logPath)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %s", i.Name, logPath, instance.Strerror(err))
		}
		return p, nil
	}, nil
}

// verifyFlags are what verify is told.
type verifyFlags struct {
	expect, roots, nonce, ak, db, bank string
	eks                                []string
	pcr                                int
}

func (a *app) tpmVerifyCmd() *cobra.Command {
	var f verifyFlags
	c := &cobra.Command{
		Use:   "verify QUOTE --expect FILE --ek SHA256 | --nonce HEX --ak NAME",
		Short: "Say whether a quote is to be trusted, and everything that speaks against it; needs no TPM",
		Long: `Say whether a quote is to be trusted, and everything that speaks against it. Exit status 1 if
anything does. It needs no TPM.

Checked are: that the endorsement key is a known one; that the attestation key is in the same TPM, and
signs only what that made; nonce, signature, PCRs; that the measurement list is the one that the
PCR was extended with, since this boot; and each digest in it. Which PCR and bank that is, is the
verifier's choice: an attester can make up a list for another PCR.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			w, err := a.verifyWant(&f)
			if err != nil {
				return err
			}
			var q attest.Quote
			if err := a.readFile(args[0], &q); err != nil {
				return err
			}
			return a.showReport(attest.Verify(&q, w))
		},
	}
	c.Flags().StringVar(&f.expect, "expect", "", "what challenge kept in `FILE`")
	c.Flags().StringArrayVar(&f.eks, "ek", nil, "trust the endorsement key with this fingerprint: the `SHA256` of its DER form; may be repeated")
	c.Flags().StringVar(&f.roots, "ek-roots", "", "trust endorsement keys that certificates in `FILE` (PEM) certify")
	c.Flags().StringVar(&f.nonce, "nonce", "", "the nonce that was asked for, in `HEX`")
	c.Flags().StringVar(&f.ak, "ak", "", "the `NAME` of an attestation key that was bound before, as verify prints it")
	c.Flags().IntVar(&f.pcr, "pcr", measure.DefaultPCR, fmt.Sprintf("the PCR that was measured into, `N` from %d to %d", measure.DefaultPCR, measure.LastPCR))
	c.Flags().StringVar(&f.bank, "bank", "sha256", "want PCRs of this `BANK`: sha1, sha256, sha384, sha512")
	c.Flags().StringVar(&f.db, "db", "", "the digests that are known, in `FILE` (default: they are listed and not judged)")
	return c
}

// verifyWant reads what verify compares with.
func (a *app) verifyWant(f *verifyFlags) (w attest.Want, err error) {
	if bound := f.expect != ""; bound == (f.nonce != "" || f.ak != "") || !bound && (f.nonce == "" || f.ak == "") {
		return w, usagef("verify: want either --expect FILE, or both --nonce HEX and --ak NAME")
	}
	if w.PCR = f.pcr; measure.CheckPCR(w.PCR) != nil {
		return w, usagef("--pcr: %v", measure.CheckPCR(w.PCR))
	}
	if w.Bank, err = measure.ParseBank(f.bank); err != nil {
		return w, usagef("--%v", err)
	}
	if f.expect != "" {
		w.Expect = new(attest.Expectation)
		if err := a.readFile(f.expect, w.Expect); err != nil {
			return w, err
		}
	}
	for _, s := range f.eks {
		h, err := parseHex("ek", s)
		if err == nil && len(h) != sha256.Size {
			err = usagef("--ek %s: want %d hex digits", s, 2*sha256.Size)
		}
		if err != nil {
			return w, err
		}
		w.EKs = append(w.EKs, h)
	}
	if f.roots != "" {
		p, err := a.readInput(f.roots, maxTPMFile)
		if err != nil {
			return w, fmt.Errorf("--ek-roots: %w", err)
		}
		if w.Roots = x509.NewCertPool(); !w.Roots.AppendCertsFromPEM(p) {
			return w, fmt.Errorf("--ek-roots %s: no certificate in it: want PEM", f.roots)
		}
	}
	if w.Nonce, err = parseHex("nonce", f.nonce); err != nil {
		return w, err
	}
	if w.AK, err = parseHex("ak", f.ak); err != nil || f.db == "" {
		return w, err
	}
	w.DB, err = measure.OpenDatabase(f.db)
	return w, err
}

// showReport prints a report; problems are errors, a line each.
func (a *app) showReport(r *attest.Report) error {
	if a.json {
		if err := a.printJSON(r); err != nil {
			return err
		}
		if !r.OK {
			return exitError(1)
		}
		return nil
	}
	for _, e := range r.Entries {
		line := fmt.Sprintf("%2d %s %q", e.PCR, e.Digest, e.Name)
		if e.Data != nil {
			line += fmt.Sprintf(" %q", e.Data)
		}
		if e.Known != "" {
			line += fmt.Sprintf(" known as %q", e.Known)
		}
		fmt.Fprintln(a.stdout, line)
	}
	if r.OK {
		fmt.Fprintf(a.stdout, "trusted: %d entries, attestation key %s", len(r.Entries), r.AK)
		if len(r.EK) > 0 {
			fmt.Fprintf(a.stdout, ", endorsement key %s", r.EK)
		}
		fmt.Fprintln(a.stdout)
		return nil
	}
	var errs []error
	for _, p := range r.Problems {
		errs = append(errs, errors.New(p))
	}
	return errors.Join(append(errs, fmt.Errorf("not trusted: reasons above: %d", len(errs)))...)
}
