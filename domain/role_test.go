package domain

func (RoleSet) sample() sample {
	return sample{event: RoleSet{"AUDITOR", "Auditor", "Reads everything.", true, []string{"name", "description"}},
		clear:  "Role Name Description Created Fields",
		others: []Event{RoleSet{Role: "AUDITOR", Fields: []string{"name"}}}}
}

func (RoleDeleted) sample() sample {
	return sample{event: RoleDeleted{"AUDITOR"},
		clear: "Role"}
}
