package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ring3dev/ring3/internal/instance"
	"github.com/ring3dev/ring3/tpmdd/attest"
)

// tpmPlace is where a TPM is.
type tpmPlace struct {
	path string
	in   *instance.Info // the instance that the TPM was found in; nil: it was not
}

// open does something with the TPM.
func (at tpmPlace) open(ctx context.Context, do func(*attest.TPM) error) (err error) {
	conn, err := attest.Dial(at.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return do(attest.Open(ctx, at.path, conn))
}

// withTPM does something with the TPM that the user means.
func (a *app) withTPM(ctx context.Context, f *tpmFlags, do func(*attest.TPM) error) error {
	at, err := a.placeTPM(f.device)
	if err != nil {
		return err
	}
	return at.open(ctx, do)
}

// placeTPM finds the TPM: at --device, in the instance, or in this machine.
func (a *app) placeTPM(device string) (tpmPlace, error) {
	if device != "" {
		return tpmPlace{path: device}, nil
	}
	i, err := instance.Pick(a.name)
	if errors.Is(err, instance.ErrNone) && a.name == "" {
		path, err := spacesOf("/dev", "tpm0", "")
		return tpmPlace{path: path}, err
	}
	if err != nil {
		return tpmPlace{}, err
	}
	name := i.Measure
	if name == "" {
		if name, err = onlyTPM(i); err != nil {
			return tpmPlace{}, err
		}
	}
	path, err := spacesOf(i.Dir, name, ".sock")
	return tpmPlace{path, &i}, err
}

// onlyTPM is the name of the TPM of an instance that has one.
func onlyTPM(i instance.Info) (string, error) {
	socks, _ := filepath.Glob(filepath.Join(i.Dir, "tpm[0-9]*.sock"))
	for n, s := range socks {
		socks[n] = strings.TrimSuffix(filepath.Base(s), ".sock")
	}
	switch len(socks) {
	case 0:
		return "", fmt.Errorf("%s has no TPM: want --device PATH for another", i.Name)
	case 1:
		return socks[0], nil
	}
	return "", usagef("%s has the TPMs %s, and measures into none: want --device %s", i.Name, strings.Join(socks, " and "), filepath.Join(i.Dir, "tpmrmN.sock"))
}

// spacesOf is where the resource manager is of a TPM whose files are in dir. A TPM 1.2 has none.
func spacesOf(dir, name, suffix string) (string, error) {
	path := filepath.Join(dir, rmName(name)+suffix)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, name+suffix)); err == nil {
			return "", fmt.Errorf("%s is a TPM 1.2: quotes and seals need a TPM 2.0", name)
		}
	}
	return path, nil
}

// measuresInto is the instance that measures into the TPM at a path; nil where none does. Another TPM's list would
// say nothing of it.
func (a *app) measuresInto(path string) (*instance.Info, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("opening the TPM: %w", err)
	}
	all, err := instance.List()
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.Measure == "" || a.name != "" && a.name != i.Name {
			continue
		}
		for _, name := range []string{i.Measure, rmName(i.Measure)} {
			own := []string{filepath.Join(i.Dir, name+".sock")}
			if i.Mount != "" {
				own = append(own, filepath.Join(i.Mount, "dev", name))
			}
			for _, p := range own {
				if o, err := os.Stat(p); err == nil && os.SameFile(fi, o) {
					return &i, nil
				}
			}
		}
	}
	return nil, nil
}
