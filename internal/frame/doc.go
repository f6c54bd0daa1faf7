// Package frame builds and decodes whole Ethernet frames, away from any data path:
// templates for generators, captured frames for people and tests.
//
// It is the one package that knows which packet library does that. Only gopacket.go
// imports it, so moving to its maintained fork is a change of that file's import
// path and nothing else.
package frame
