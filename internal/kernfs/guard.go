package kernfs

import (
	"errors"
	"os"
)

type guardProc struct{}

func (g *guardProc) finish() {}

func startGuard(fd int) (*guardProc, *os.File, error) {
	return nil, nil, errors.New("not yet")
}
