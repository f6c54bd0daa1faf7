// Package bad has tests that end in every way but a good one, in a VM. Its parent's users
// check that each is reported as what it is.
package bad
