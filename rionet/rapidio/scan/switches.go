package scan

import (
	"context"
	"fmt"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// switchKind is a kind of switch whose tables are not the standard's.
type switchKind struct {
	vid, did uint16
	ops      rapidio.SwitchOps
}

// kinds are those known. A switch that is not among them has standard registers, or no tables at all.
var kinds = []switchKind{
	{vidTundra, didTsi500, tsi500{}},
}

// Vendors and devices.
const (
	vidTundra = 0x000d
	didTsi500 = 0x0500
)

// switchOps chooses by vendor and device; nil: it has no tables that this package knows.
func switchOps(vid, did uint16, pef rapidio.PEF) rapidio.SwitchOps {
	for _, k := range kinds {
		if k.vid == vid && k.did == did {
			return k.ops
		}
	}
	if pef&rapidio.PEFStdRoute != 0 {
		return standard{}
	}
	return nil
}

// standard is the tables of part 3, 3.5: a register selects an ID, another is its port. There is one table for all ports.
type standard struct{}

func (standard) Name() string { return "standard" }

func (standard) AddEntry(ctx context.Context, d rapidio.SwitchAccess, table int, dest rapidio.DestID, port uint8) error {
	if err := global(table); err != nil {
		return err
	}
	if err := d.Write32(ctx, rapidio.RegRouteDestID, uint32(dest)); err != nil {
		return err
	}
	return d.Write32(ctx, rapidio.RegRoutePort, uint32(port))
}

func (standard) GetEntry(ctx context.Context, d rapidio.SwitchAccess, table int, dest rapidio.DestID) (uint8, error) {
	if err := global(table); err != nil {
		return rapidio.InvalidRoute, err
	}
	if err := d.Write32(ctx, rapidio.RegRouteDestID, uint32(dest)); err != nil {
		return rapidio.InvalidRoute, err
	}
	v, err := d.Read32(ctx, rapidio.RegRoutePort)
	if err != nil {
		return rapidio.InvalidRoute, err
	}
	return uint8(v), nil
}

func (s standard) ClearTable(ctx context.Context, d rapidio.SwitchAccess, table int) error {
	limit, err := d.Read32(ctx, rapidio.RegRTLimit)
	if err != nil {
		return err
	}
	limit &= uint32(rapidio.Large.Any())
	if d.IDs() == rapidio.Small {
		limit = uint32(rapidio.Small.Any())
	}
	for id := uint32(0); id <= limit; id++ {
		if err := s.AddEntry(ctx, d, table, rapidio.DestID(id), rapidio.InvalidRoute); err != nil {
			return err
		}
	}
	return nil
}

// global refuses the table of one port, where there is only the one of all.
func global(table int) error {
	if table == rapidio.GlobalTable {
		return nil
	}
	return fmt.Errorf("table %d: a standard switch has only the global one: %w", table, rapidio.ErrRange)
}

// tsi500 is the tables of the Tundra Tsi500: 4 bits an ID, 8 IDs a word, a copy for each of its four ports. There are 256 IDs.
type tsi500 struct{}

const (
	tsi500Table     rapidio.Off = rapidio.RegImplementation + 0xa00
	tsi500Copy      rapidio.Off = 0x20000 // from a port's table to the next port's
	tsi500Ports                 = 4
	tsi500IDs                   = 256
	tsi500Invalid   uint32      = 0xf
	tsi500EntryBits             = 4
)

// tsi500Word is where an ID's entry is: offset of the word in a port's table, and shift.
func tsi500Word(dest rapidio.DestID) (off rapidio.Off, shift uint) {
	return tsi500Table + rapidio.Off(dest/2)&^3, tsi500EntryBits * uint(dest&7)
}

// tsi500Copies are the tables, first to last, that a table's number means.
func tsi500Copies(table int, dest rapidio.DestID) (first, last rapidio.Off, err error) {
	if dest >= tsi500IDs {
		return 0, 0, fmt.Errorf("ID %#x: a Tsi500 routes %d: %w", dest, tsi500IDs, rapidio.ErrRange)
	}
	if table == rapidio.GlobalTable {
		return 0, tsi500Ports - 1, nil
	}
	if table < 0 || table >= tsi500Ports {
		return 0, 0, fmt.Errorf("table %d: a Tsi500 has %d: %w", table, tsi500Ports, rapidio.ErrRange)
	}
	return rapidio.Off(table), rapidio.Off(table), nil
}

func (tsi500) Name() string { return "tsi500" }

// AddEntry changes a nibble, and leaves the seven others in its word. Each table's word is read: they may differ.
func (tsi500) AddEntry(ctx context.Context, d rapidio.SwitchAccess, table int, dest rapidio.DestID, port uint8) error {
	first, last, err := tsi500Copies(table, dest)
	if err != nil {
		return err
	}
	entry := uint32(port)
	if port == rapidio.InvalidRoute {
		entry = tsi500Invalid
	} else if port >= tsi500Ports {
		return fmt.Errorf("port %d: a Tsi500 has %d: %w", port, tsi500Ports, rapidio.ErrRange)
	}
	off, shift := tsi500Word(dest)
	for t := first; t <= last; t++ {
		v, err := d.Read32(ctx, off+t*tsi500Copy)
		if err != nil {
			return err
		}
		if err := d.Write32(ctx, off+t*tsi500Copy, v&^(0xf<<shift)|entry<<shift); err != nil {
			return err
		}
	}
	return nil
}

func (tsi500) GetEntry(ctx context.Context, d rapidio.SwitchAccess, table int, dest rapidio.DestID) (uint8, error) {
	first, _, err := tsi500Copies(table, dest)
	if err != nil {
		return rapidio.InvalidRoute, err
	}
	off, shift := tsi500Word(dest)
	v, err := d.Read32(ctx, off+first*tsi500Copy)
	if err != nil {
		return rapidio.InvalidRoute, err
	}
	if e := v >> shift & 0xf; e < tsi500Ports {
		return uint8(e), nil
	}
	return rapidio.InvalidRoute, nil
}

func (tsi500) ClearTable(ctx context.Context, d rapidio.SwitchAccess, table int) error {
	for id := rapidio.DestID(0); id < tsi500IDs; id += 8 {
		first, last, err := tsi500Copies(table, id)
		if err != nil {
			return err
		}
		off, _ := tsi500Word(id)
		for t := first; t <= last; t++ {
			if err := d.Write32(ctx, off+t*tsi500Copy, ^uint32(0)); err != nil {
				return err
			}
		}
	}
	return nil
}
