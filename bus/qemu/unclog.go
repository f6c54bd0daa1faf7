package qemu

import "fmt"

// clogs says whether a model can clog its wire: QEMU's e1000 sends a descriptor of no bytes as a frame of none. The hub answers for it that it took 0
// bytes, which is the answer of one that has no room; so the frame stays the first of the queue, before all later ones, for ever, whatever is reset.
func clogs(model string) bool {
	return model == "e1000" || model == "e1000-82545em" || model == "e1000-82544gc"
}

// unclog empties the queues of all wires: QEMU throws away what nobody takes when the machine is stopped.
func (p *Process) unclog() error {
	for _, cmd := range []string{"stop", "cont"} {
		if _, err := p.qmp.execute(cmd, nil); err != nil {
			return fmt.Errorf("emptying its wires: %s: %w", cmd, err)
		}
	}
	return nil
}
