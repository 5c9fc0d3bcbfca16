package domain

func (DeletionScheduled) sample() sample {
	return sample{event: DeletionScheduled{ScheduleID: "0190a1b2-0000-7000-8000-00000000000c", From: StatusVerified, DueTime: goldenTime},
		clear: "ScheduleID From DueTime"}
}

func (DeletionCancelled) sample() sample {
	return sample{event: DeletionCancelled{To: StatusVerified, Reason: "changed her mind"},
		clear: "To"}
}

func (AccountErased) sample() sample {
	return sample{event: AccountErased{"00ff"},
		clear: "KeyID"}
}

func (ErasureCompleted) sample() sample {
	return sample{event: ErasureCompleted{KeyID: "00ff"},
		clear: "KeyID", hidden: true}
}
