package bwctrl

import (
	"context"
	"fmt"
	"math/bits"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/sysfs"
)

// Times of training: a link is trained within a second (Linux: PCIE_LINK_RETRAIN_TIMEOUT_MS; the specification has no limit).
const (
	trainTime = time.Second
	trainStep = time.Millisecond
)

// speeds are as the registers number them: 1 is 2.5 GT/s.
const maxSpeed = 6

// target is Target Link Speed.
func (s *service) target() (uint16, error) {
	if s.port.Express().Version < 2 {
		return 0, fmt.Errorf("%s: its PCI Express capability has no Target Link Speed: %w", s.d.Name(), unix.EOPNOTSUPP)
	}
	v := s.cfg.Read16(s.exp + pci.ExpLnkCtl2)
	if v == 0xffff {
		return 0, fmt.Errorf("%s: Link Control 2 reads all-ones: %w", s.d.Name(), bus.ErrGone)
	}
	return v & pci.LnkStaSpeed, nil
}

// supported is a bit for each speed that the port supports, at the speed's number (7.5.3.18).
func (s *service) supported() uint32 {
	if v := s.cfg.Read32(s.exp + pci.ExpLnkCap2); v != 0xffffffff && v&0xfe != 0 {
		return v & 0xfe
	}
	most := s.cfg.Read32(s.exp+pci.ExpLnkCap) & uint32(pci.LnkStaSpeed)
	return 1<<(most+1) - 2
}

// parseSpeed reads "8.0 GT/s PCIe", "8.0 GT/s", "8.0", or the speed's number.
func parseSpeed(text string) (uint16, error) {
	t := strings.TrimSuffix(text, "\n")
	for n := range uint32(maxSpeed) {
		name := pci.LinkSpeed(n + 1)
		gts, _, _ := strings.Cut(name, " ")
		if t == name || t == gts || t == gts+" GT/s" {
			return uint16(n + 1), nil
		}
	}
	v, err := sysfs.ParseUint(t, 15)
	if err != nil {
		return 0, err
	}
	if v == 0 {
		return 0, fmt.Errorf("%q is no speed: %w", t, unix.EINVAL)
	}
	return uint16(v), nil
}

func (s *service) storeTarget(ctx context.Context, p []byte) (int, error) {
	speed, err := parseSpeed(string(p))
	if err != nil {
		return 0, fmt.Errorf("%s: setting the target speed: %w", s.d.Name(), err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	s.speed.Lock()
	defer s.speed.Unlock()
	if err := s.setSpeed(ctx, speed); err != nil {
		return 0, fmt.Errorf("%s: setting the target speed: %w", s.d.Name(), err)
	}
	return len(p), nil
}

// setSpeed sets the target and retrains the link (7.5.3.7, 7.5.3.19).
func (s *service) setSpeed(ctx context.Context, speed uint16) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := s.target(); err != nil {
		return err
	}
	if can := s.supported(); can&(1<<speed) == 0 {
		return fmt.Errorf("%s is not supported, want at most %s: %w", pci.LinkSpeed(uint32(speed)), pci.LinkSpeed(uint32(bits.Len32(can)-1)), unix.ERANGE)
	}
	// Retraining while it trains would be lost (7.5.3.7, implementation note).
	if _, err := s.trained(ctx); err != nil {
		return err
	}
	if _, err := s.d.Modify(pci.ExpLnkCtl2, pci.LnkStaSpeed, speed, false); err != nil {
		return err
	}
	if _, err := s.d.Modify(pci.ExpLnkCtl, 0, pci.LnkCtlRetrain, true); err != nil {
		return err
	}
	v, err := s.trained(ctx)
	if err != nil {
		return err
	}
	// An empty slot does not train beyond the lowest speed.
	down := s.cfg.Read32(s.exp+pci.ExpLnkCap)&pci.LnkCapActive != 0 && v&pci.LnkStaActive == 0
	if v&pci.LnkStaSpeed != speed && !down && len(s.port.Below()) > 0 {
		return fmt.Errorf("the link runs at %s, want %s: %w", pci.LinkSpeed(uint32(v)), pci.LinkSpeed(uint32(speed)), unix.EAGAIN)
	}
	return nil
}

// trained waits until the link does not train, and gives its status.
func (s *service) trained(ctx context.Context) (uint16, error) {
	for waited := time.Duration(0); ; waited += trainStep {
		v, ok := s.status()
		switch {
		case !ok:
			return v, fmt.Errorf("its Link Status reads all-ones: %w", bus.ErrGone)
		case v&pci.LnkStaTrain == 0:
			return v, nil
		case waited >= trainTime:
			return v, fmt.Errorf("the link still trains after %v (Link Status %#x): %w (%w)", trainTime, v, bus.ErrTimeout, unix.ETIMEDOUT)
		}
		if err := s.port.Sleep(ctx, trainStep); err != nil {
			return v, err
		}
	}
}
