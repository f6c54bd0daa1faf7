package sim

// models are the device models that there are.
func models() []*model {
	return []*model{&eduModel, &testdevModel, &nullModel}
}
