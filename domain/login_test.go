package domain

func (LoginRecorded) sample() sample {
	return sample{event: LoginRecorded{IdentityID: "0190a1b2-0000-7000-8000-00000000000a", Provider: "self", Method: "password", Situation: Situation{"web", "phone", "London"}},
		clear: "IdentityID Provider Method"}
}

func (LoginFailed) sample() sample {
	return sample{event: LoginFailed{IdentityID: "0190a1b2-0000-7000-8000-00000000000a", Provider: "self", Method: "password", Reason: LoginDeclined, Situation: Situation{"web", "phone", "London"}},
		clear: "IdentityID Provider Method Reason"}
}

func (UnknownLogin) sample() sample {
	return sample{event: UnknownLogin{Provider: "self", Method: "password"},
		clear: "Provider Method", hidden: true}
}
