// Package testdev drives QEMU's pci-testdev (1b36:0005), a device that counts writes. It is an
// example of a driver that lives outside ring3's source tree: README.md says how to begin
// one's own from it. Source: QEMU's docs/specs/pci-testdev.
//
// The device has the same registers twice: in memory (region 0) and in I/O space (region 1).
// Each region offers a few tests, numbered from 0. A test says where to write what, and
// counts the writes that arrive there as they should. Those of tests whose names end in
// "-eventfd" are taken by QEMU before they reach the device, which counts none of them.
//
// [Driver] runs all tests once when it takes the device into service, and adds two files to
// its directory in /sys: tests, with what was counted, and writes, how many writes a test is
// made of; writing to that runs them again.
//
// Limits: the device has no interrupt and no DMA. Region 2, which the model has with the
// property membar, is not used.
package testdev
