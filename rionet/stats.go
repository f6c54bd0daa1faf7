package rionet

import (
	"context"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/netdev"
)

// Stats are the counters, with the meaning of the kernel's driver: a message that went to an active peer is a packet, one for each peer of
// a multicast; so is a frame to a peer that is not active; netdev.Device.
func (d *Device) Stats() netdev.Stats {
	tx, rx, _ := d.counters()
	return netdev.Stats{
		RxPackets: rx.packets, RxBytes: rx.bytes, Multicast: rx.multicast,
		RxErrors: rx.lengthErrors, RxLengthErrors: rx.lengthErrors, RxAllocFailed: rx.noBuffer,
		TxPackets: tx.packets, TxBytes: tx.bytes, TxErrors: tx.errors, TxDropped: tx.dropped, TxBusies: tx.busies,
	}
}

// counters are a snapshot of both queues'.
func (d *Device) counters() (tx txCounters, rx rxCounters, cut uint64) {
	d.tx.mu.Lock()
	tx = d.tx.c
	d.tx.mu.Unlock()
	d.rx.mu.Lock()
	rx = d.rx.c
	if !d.rx.closed {
		cut = d.rx.box.Cut()
	}
	d.rx.mu.Unlock()
	return tx, rx, cut
}

// Counters are the device's own statistics; netdev.Ethtooler. The kernel's driver has none, so the names are ours.
func (d *Device) Counters() []netdev.Counter {
	tx, rx, cut := d.counters()
	return []netdev.Counter{
		{Name: "peers_active", Value: uint64(len(d.activePeers()))},
		{Name: "peer_joins", Value: d.joins.Load()},
		{Name: "peer_leaves", Value: d.leaves.Load()},
		{Name: "tx_multicast", Value: tx.multicast},
		{Name: "tx_peer_inactive", Value: tx.inactive},
		{Name: "tx_foreign_address", Value: tx.foreign},
		{Name: "tx_invalid", Value: tx.invalid},
		{Name: "tx_retries", Value: tx.retries},
		{Name: "tx_congested", Value: tx.congested},
		{Name: "tx_busies", Value: tx.busies},
		{Name: "rx_classic", Value: rx.classic},
		{Name: "rx_length_errors", Value: rx.lengthErrors},
		{Name: "rx_cut", Value: cut},
		{Name: "rx_no_buffer", Value: rx.noBuffer},
	}
}

// EEPROM is not there; netdev.Ethtooler.
func (d *Device) EEPROM(context.Context) ([]byte, error) {
	return nil, d.errorf("reading the EEPROM: there is none: %w", bus.ErrNotSupported)
}

// DriverInfo is what `ethtool -i` tells of a device.
type DriverInfo struct{ Driver, Version, Firmware, BusInfo string }

// DriverInfo is as the kernel's driver answers.
func (d *Device) DriverInfo() DriverInfo {
	return DriverInfo{Driver: "rionet", Version: Version, Firmware: "n/a", BusInfo: d.port.Name()}
}
