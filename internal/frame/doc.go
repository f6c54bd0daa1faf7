// Package frame builds and decodes whole Ethernet frames, away from any data path:
// templates for generators, captured frames for people and tests.
//
// It is the one package that knows which packet library does that. Only gopacket.go
// imports it, so moving to its maintained fork is a change of the path in that file's
// imports, and nothing else.
package frame
