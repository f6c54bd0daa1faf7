// Package pciehp serves the hot-plug slots of PCI Express ports: it switches cards on when they come and off before they go, has them found and
// driven, or released, and shows each slot as /sys/bus/pci/slots/N. It says and shows what the kernel's pciehp does.
//
// It is a service of package portbus, for root ports and downstream ports with a slot that has hot-plug:
//
//	b, err := portbus.New(pciehp.Driver(pciehp.Options{}))
//
// # States
//
// A [Slot] is in one of six states, and one goroutine, its worker, acts on what comes:
//
//	             button           presence, link              power 1        power 0           grace over
//	off          blinking on      powering on if occupied     as presence    ENODEV            -
//	blinking on  off (cancel)     powering on, or off         as presence    ENODEV            as presence
//	powering on  afterwards       afterwards                  ENODEV         ENODEV            -
//	on           blinking off     powering off, then looks    ENODEV         powering off      -
//	blinking off on (cancel)      powering off, then looks    ENODEV         powering off      powering off
//	powering off afterwards       afterwards                  ENODEV         ENODEV            -
//
// Occupied is a slot with a card that is seen or a link that is up. A slot that is on and has news of presence or link goes off,
// whatever is there by now, since it may be another card; then it looks, and goes on again if it is occupied. What happens
// while it is powering is acted on when that is over. A power fault changes no state: it is told, and shown by the indicators; the
// link that goes with the power does the rest. A latch that is open keeps a slot from going on.
//
// testdata/states.txt has, for each event in each state, what is said and what is written to Slot Control.
//
// At first a slot is on if something is known to stand behind the port (where nobody knows: if what is in it has power), and off
// otherwise. That is found out after Probe, and an event that came before anybody listened is then made up for.
//
// # Power on and off
//
// On: power; power indicator blinks; the link must come up; its training must be over and power must not have failed; the bus behind is
// rescanned (pci.Hierarchy) until something answers; power indicator on, attention indicator off. Where one of these fails:
// power off, power indicator off, attention indicator on. What presence and link do before the card is asked for is no news.
//
// Off: what is behind is taken out of service, power off, power indicator off. If the card or its link went first, the devices die before their drivers
// hear of it (bus.ErrGone), so that they touch nothing.
//
// Where somebody else has the bus behind (Rescan gives bus.ErrNotSupported: a real port whose kernel has it) the slot goes on, and a message says what is left
// to be done by root: a rescan. What the kernel has in the slot (portbus.Port.Others) counts for the state at first. It cannot be taken out of service from
// here: root removes it before the slot goes off, which with a button there are 5 s for. A slot that goes off with the kernel's device still in it says
// so in one line, and goes off: whoever pressed the button will pull the card. The kernel's driver then finds its device dead, and root's remove comes late.
//
// # Times
//
// All are by the port's clock (portbus.Port.Clock), so on a machine in virtual time nobody waits for them.
//
//	5 s      grace of a button press, in which a second one cancels                 6.7.1.5
//	1 s      a command to complete (2.5 s without interrupts)                       6.7.3.2
//	1 s      after power off                                                        6.7.1.8
//	20 ms    before the link is looked at, then 1 s for it to come up, then 100 ms  6.6.1
//	1.1 s    instead of that, where the port does not report its link
//	1 s      for the card to answer, every 20 ms
//	1.25 s   for presence, where in-band presence detection is disabled
//	2 s      between looks at a slot without interrupts (Options), the first after 10 s
//
// # Commands
//
// Each write to Slot Control is a command, and the next one waits until it completed. One that does not complete in time is told of, and the
// slot goes on. Slot Status is read right after each command, not only at its interrupt: QEMU, and a port with INTx,
// give no further interrupt before Command Completed is cleared.
//
// # Interrupts
//
// Link changes, and the button or, without one, presence, interrupt; power faults and the latch do not, as in the kernel, but are seen with the
// next event. The handler reads Slot Status until nothing new is in it, clears what it read, and nothing else (QEMU gives all events back if a bit is
// written that was not set), and wakes the worker. An event that cannot be cleared counts once, and is looked at each second
// until it can. A port without interrupts is polled. One with INTx is looked at now and then besides, since a line can be lowered
// by others before anybody saw it.
//
// # Other services
//
// Before a link that went is believed, containment (portbus.Container) is asked: a link that is back because it recovered is no news, and
// said so. A reset of the bus behind ([Slot.ResetSlot]) is none either. While the port is suspended the slot neither hears nor acts, and afterwards looks what
// changed.
//
// # Files
//
// A slot's directory is named by its physical slot number, with -1, -2 where boards number slots alike. It goes with the service.
//
//	address        0444  where cards stand: 1000:01:00
//	power          0644  1 or 0. Written: 0 off, 1 on, which returns when that is done
//	attention      0644  attention indicator: 0 off, 1 on, 2 blinking. Written: so too, anything else is off. Only with that indicator
//	adapter        0444  1 if the slot is occupied
//	latch          0444  1 if it is open. Only with a sensor for it
//	max_bus_speed  0444  of the port's link: "16.0 GT/s PCIe"
//	cur_bus_speed  0444  when it last came up
//	module               link to /sys/module/pciehp
//
// A number is read as the kernel reads it here: digits up to something else, of whose value the last 8 bits count, so "x" is 0 and
// "257" is 1. Errors of power: EINVAL for 2 to 255; ENODEV where the slot is, or is going, there already, where it is empty, where the latch
// is open, where the card cannot be added, and where the slot goes out of service; EPERM where the link does not come up or
// nothing answers, since the kernel's is -1; EIO at a power fault. A writer that is interrupted stops waiting; the slot goes on.
//
// # When the port dies
//
// It reads all-ones. Waits end, at most one message tells of it, and nothing happens any more: whoever removed the port removes the service. A
// service that is taken away while it switches a card on switches it off; a card that is on stays on.
//
// # Locks
//
// hold is held by the worker while it acts, and by a reset or a suspension that it must not see; then Slot.cmd (a command at a time); then Slot.mu (the state);
// then Slot.sta (Slot Status and what is pending). The hierarchy is called with hold alone.
//
// # Limits
//
// Left out: the electromechanical interlock; known errata of controllers (of commands that do not complete there is the message); retraining of links that stay
// down; user indicators. The kernel clears all events when it begins, and so does this: on QEMU they survive that, there as here, so
// that a card that was plugged in before is found with its button pressed.
//
// Sources: PCI Express Base 5.0, 6.7 and 7.5.3.9 to 11; the kernel's messages and files (6.12, and 6.1 by profile), recorded from
// a kernel in QEMU.
package pciehp
