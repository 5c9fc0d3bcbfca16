package domain

func (APIKeyCreated) sample() sample {
	return sample{event: APIKeyCreated{"0190a1b2-0000-7000-8000-000000000012", APIKeySettings{"CRM import", []string{"accounts:read", "accounts:write"}, goldenTime}},
		clear: "KeyID Settings"}
}

func (APIKeyUpdated) sample() sample {
	return sample{event: APIKeyUpdated{"0190a1b2-0000-7000-8000-000000000012", APIKeySettings{"CRM import", []string{"accounts:read"}, goldenTime}, []string{"scopes"}},
		clear: "KeyID Settings Fields"}
}

func (APIKeyRevoked) sample() sample {
	return sample{event: APIKeyRevoked{"0190a1b2-0000-7000-8000-000000000012"},
		clear: "KeyID"}
}
