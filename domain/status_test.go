package domain

func (StatusChanged) sample() sample {
	return sample{event: StatusChanged{StatusPending, StatusDeclined, "chargeback"},
		clear: "From To"}
}
