package host

import "encoding/json"

// savedVersion is the number of what a Saved holds. One of another number is refused.
const savedVersion = 1

// Saved is what a System was told beyond its Plan since it started, and what the next one in its place needs to go on.
type Saved struct {
	Version int `json:"version"`
	// Plan is what there is now: cards were plugged in and taken out.
	Plan workerPlan `json:"plan"`
	// Numbers keep what devices are called.
	Numbers map[string]savedNumbers `json:"numbers,omitempty"`
	// Overrides are driver_override by PCI address, Unbound the devices that had no driver because somebody took it.
	Overrides map[string]string `json:"overrides,omitempty"`
	Unbound   []string          `json:"unbound,omitempty"`
	Added     []savedID         `json:"added,omitempty"` // new_id
	NoProbe   bool              `json:"no_probe,omitempty"`
	Asleep    []string          `json:"asleep,omitempty"` // suspended, ports first
	// Stores are the last values that were written to plain attributes, in the order of their last writes.
	Stores []savedStore    `json:"stores,omitempty"`
	Pktgen json.RawMessage `json:"pktgen,omitempty"`
	Nets   []savedNet      `json:"nets,omitempty"` // network settings
	TPMs   []string        `json:"tpms,omitempty"` // that were used: what their resource manager held is lost
}

// savedNumbers are those of a device.
type savedNumbers struct {
	NIC     int         `json:"nic,omitempty"`
	Slot    int         `json:"slot,omitempty"`
	TPM     int         `json:"tpm,omitempty"`
	IfIndex int         `json:"ifindex,omitempty"`
	IRQs    map[int]int `json:"irqs,omitempty"` // number by vector
}

// savedID is an ID that was added to a driver.
type savedID struct {
	Driver string `json:"driver"`
	ID     string `json:"id"` // as new_id takes it
}

// savedStore is a write to an attribute.
type savedStore struct {
	Path  string `json:"path"`
	Value []byte `json:"value"`
}

// savedNet is what a network device was told.
type savedNet struct {
	Device   string          `json:"device"`
	Settings json.RawMessage `json:"settings"`
}
