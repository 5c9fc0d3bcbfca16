package domain

func (GroupJoined) sample() sample {
	return sample{event: GroupJoined{GroupID: "BERLIN", GroupType: "OFFICE", Path: "/EUROPE/BERLIN", Roles: []string{"ADMIN", "USER"}},
		clear: "GroupID GroupType Path Roles"}
}

func (GroupRolesChanged) sample() sample {
	return sample{event: GroupRolesChanged{GroupID: "BERLIN", GroupType: "OFFICE", Path: "/EUROPE/BERLIN", Roles: []string{"USER"}},
		clear: "GroupID GroupType Path Roles"}
}

func (GroupLeft) sample() sample {
	return sample{event: GroupLeft{GroupID: "BERLIN"},
		clear: "GroupID"}
}
