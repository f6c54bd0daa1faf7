//go:build race

package vfio

const raceEnabled = true
