// Package slotcount is a service driver for PCI Express ports: it counts what happens in a hot-plug slot, and does nothing
// about it. It is an example of a service that lives outside ring3's source tree; docs/port-services.md builds it up
// step by step. Source: PCI Express Base 5.0, 6.7 and 7.5.3.9 to 11.
//
// A slot has five events: its attention button was pressed, its power failed, its latch moved, a card came or went,
// its link came up or went down. The [Driver] enables the interrupts of those that the slot can have, acknowledges and counts them. Each time
// it prints what came, and sends a uevent, "change", for the port, with SLOT_EVENTS="button presence". In the service's directory there is a file:
//
//	slot_events  0644  a line an event, "button 1". Writing 0 sets all to 0; any other number gives ERANGE, what is no number EINVAL
//
// It serves the service that pciehp serves, and a service has one driver. Where both are registered the first gets it, and root of
// the tree chooses by unbind and bind.
//
// Limits: several events of a kind before the handler looks are one, since the register holds one bit for each. Slot Control is written
// a second or more apart, so nobody waits for a command to complete; who writes it more often must. A port without an
// interrupt is refused.
//
// Locks: none; counters are atomic. The handler runs in the goroutine of its interrupt vector, the rest in the service's own.
package slotcount
