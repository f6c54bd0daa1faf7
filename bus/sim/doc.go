// Package sim is a bus of device models written in Go, in this process: nothing needs to be
// installed, and nothing runs beside the program.
package sim
