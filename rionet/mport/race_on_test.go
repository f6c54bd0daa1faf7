//go:build race

package mport

const raceEnabled = true
