package sim

// models are the device models that there are.
func models() []*model {
	return []*model{&eduModel, &testdevModel, &nullModel, &e1000Model, &e1000EMModel, &e1000eModel, &tisModel, &crbModel,
		&rootPortModel, &ioh3420Model, &upstreamModel, &downstreamModel}
}
