package qemu

import (
	"errors"
	"fmt"

	"github.com/ring3dev/ring3/bus"
)

// clogs says whether a model can clog its wire: QEMU's e1000 sends a descriptor of no bytes as a frame of none. The hub answers for it that it took 0
// bytes, which is the answer of one that has no room; so the frame stays the first of the queue, before all later ones, for ever, whatever is reset.
func clogs(model string) bool {
	return model == "e1000" || model == "e1000-82545em" || model == "e1000-82544gc"
}

// unclog empties the queues of all wires: QEMU throws away what nobody takes when the machine is stopped. So frames on the wires of others of that QEMU, which wait for
// room, are lost, too. However that goes, it is not left stopped: what did not answer stop may be stopped all the same, and cont is tried once more.
func (p *Process) unclog() error {
	_, stopped := p.qmp.execute("stop", nil)
	_, running := p.qmp.execute("cont", nil)
	if running != nil && !errors.Is(running, bus.ErrGone) {
		_, running = p.qmp.execute("cont", nil)
	}
	if err := errors.Join(stopped, running); err != nil {
		return fmt.Errorf("emptying its wires: %w", err)
	}
	return nil
}
