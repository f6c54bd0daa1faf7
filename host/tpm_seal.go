package host

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/tpmdd/attest"
	"github.com/ring3dev/ring3/tpmdd/measure"
)

const passwordHelp = "the first line of `FILE` is a password that is asked for too"

func (a *app) tpmSealCmd() *cobra.Command {
	var f tpmFlags
	var password string
	c := &cobra.Command{
		Use:   "seal < SECRET",
		Short: "Encrypt a secret for this TPM, to be had only while PCRs are as they are now",
		Long: fmt.Sprintf(`Encrypt a secret, at most %d bytes from standard input, for this TPM. unseal gives it back
while the PCRs are as they are now: while the same drivers run with the same configuration.`, attest.MaxSecret),
		Example: "  ring3 tpm seal --pcrs 10 < key > key.sealed\n  ring3 tpm unseal key.sealed > key",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			bank, pcrs, err := f.selection()
			if err != nil {
				return err
			}
			pw, err := a.password(password)
			if err != nil {
				return err
			}
			secret, err := a.readInput("-", attest.MaxSecret)
			if err != nil {
				return fmt.Errorf("seal: the secret: %w", err)
			}
			return a.withTPM(c.Context(), &f, func(t *attest.TPM) error {
				s, err := t.Seal(secret, pw, bank, pcrs)
				if err != nil {
					return err
				}
				return attest.Write(a.stdout, s)
			})
		},
	}
	c.Flags().StringVar(&password, "password-file", "", passwordHelp)
	f.pcrFlags(c, fmt.Sprint(measure.DefaultPCR))
	a.deviceFlag(c, &f)
	return c
}

func (a *app) tpmUnsealCmd() *cobra.Command {
	var f tpmFlags
	var password string
	c := &cobra.Command{
		Use:   "unseal FILE",
		Short: "Print a secret that was sealed",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			pw, err := a.password(password)
			if err != nil {
				return err
			}
			var s attest.Sealed
			if err := a.readFile(args[0], &s); err != nil {
				return err
			}
			return a.withTPM(c.Context(), &f, func(t *attest.TPM) error {
				secret, err := t.Unseal(&s, pw)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(map[string][]byte{"secret": secret})
				}
				_, err = a.stdout.Write(secret)
				return err
			})
		},
	}
	c.Flags().StringVar(&password, "password-file", "", passwordHelp)
	a.deviceFlag(c, &f)
	return c
}

// password reads the first line of --password-file.
func (a *app) password(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	p, err := a.readInput(path, maxTPMFile)
	if err == nil {
		p, _, _ = bytes.Cut(p, []byte("\n"))
		if p = bytes.TrimSuffix(p, []byte("\r")); len(p) == 0 {
			err = fmt.Errorf("%s: its first line is empty", path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("--password-file: %w", err)
	}
	return p, nil
}

// knownDigest is a line of a database.
type knownDigest struct {
	Digest string `json:"digest"` // "sha256:" and hexadecimal digits
	Name   string `json:"name"`
}

func (a *app) tpmDigestCmd() *cobra.Command {
	var log string
	c := &cobra.Command{
		Use:   "digest [FILE...]",
		Short: "Print digests as a database for --enforce and verify has them; needs no TPM",
		Long: `Print digests as a database for --enforce and verify has them: of files, of all that is in a
measurement list (of configurations too), or without either of this program. It needs no TPM.`,
		Example: "  ring3 tpm digest > known.txt\n  ring3 get /sys/kernel/security/ima/ascii_runtime_measurements | ring3 tpm digest --log - >> known.txt",
		RunE: func(_ *cobra.Command, args []string) error {
			var out []knownDigest
			var lines []string
			add := func(digest []byte, name string) {
				out = append(out, knownDigest{fmt.Sprintf("sha256:%x", digest), name})
				lines = append(lines, measure.Known(digest, name))
			}
			if err := a.digests(args, log, add); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(out)
			}
			for _, l := range lines {
				fmt.Fprintln(a.stdout, l)
			}
			return nil
		},
	}
	c.Flags().StringVar(&log, "log", "", "those of the measurement list in `FILE`, binary or ASCII")
	return c
}

// digests finds what the user asked for.
func (a *app) digests(files []string, log string, add func(digest []byte, name string)) error {
	if log != "" {
		p, err := a.readInput(log, measure.MaxParse)
		if err != nil {
			return fmt.Errorf("--log: %w", err)
		}
		entries, err := measure.Parse(p)
		if err != nil {
			return fmt.Errorf("--log %s: %w", log, err)
		}
		for i, e := range entries {
			ev, err := e.Event()
			if err == nil {
				err = e.Check()
			}
			if err != nil {
				return fmt.Errorf("--log %s: entry %d: %w", log, i, err)
			}
			if !e.Violation() && ev.Name != measure.BootAggregate && ev.Alg == measure.SHA256.String() {
				add(ev.Digest, ev.Name)
			}
		}
	} else if len(files) == 0 {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("digest: this program: %w", err)
		}
		files = []string{exe}
	}
	var errs []error
	for _, path := range files {
		d, err := fileDigest(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("digest: %w", err))
			continue
		}
		add(d, path)
	}
	return errors.Join(errs...)
}

func fileDigest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}
