// Package edu drives QEMU's educational device (1234:11e8): the smallest driver that has
// registers, an interrupt and DMA; docs/first-driver.md builds it. Source: QEMU's docs/specs/edu.
//
// Limits: DMA addresses have 28 bits. A transfer takes 0.1 s in the model; one that leaves
// the buffer makes QEMU abort, so it is refused here, and models up to 7.2 count the byte
// after the last one too. An operation whose ctx ends leaves the device busy until it is done.
package edu
