package sim

// timer is a call that is to come.
type timer struct{}
