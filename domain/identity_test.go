package domain

func (ProfileUpdated) sample() sample {
	return sample{event: ProfileUpdated{"0190a1b2-0000-7000-8000-00000000000a", []string{"family_name"}, value(`{"family_name":"King"}`)},
		clear: "IdentityID Fields"}
}

func (IdentityLinked) sample() sample {
	return sample{event: IdentityLinked{"0190a1b2-0000-7000-8000-00000000000b", "google", "1095", fullProfile},
		clear: "IdentityID Provider"}
}

func (IdentityUnlinked) sample() sample {
	return sample{event: IdentityUnlinked{"0190a1b2-0000-7000-8000-00000000000b", "google"},
		clear: "IdentityID Provider"}
}
