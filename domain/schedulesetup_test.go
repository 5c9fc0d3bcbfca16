package domain

func (ScheduleSetupSet) sample() sample {
	return sample{event: ScheduleSetupSet{SetupID: "first-reminder", Kind: ScheduleReminder, OffsetSeconds: 86400, ReminderNo: 1, TargetStatus: StatusDeclined,
		PeriodSeconds: 86400, Created: true, Fields: []string{"kind", "offsetSeconds"}},
		clear:  "SetupID Kind OffsetSeconds ReminderNo TargetStatus PeriodSeconds Created Fields",
		others: []Event{ScheduleSetupSet{SetupID: "first-reminder", Fields: []string{"offsetSeconds"}}}}
}

func (ScheduleSetupDeleted) sample() sample {
	return sample{event: ScheduleSetupDeleted{SetupID: "first-reminder"},
		clear: "SetupID"}
}
