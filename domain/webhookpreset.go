package domain

import "slices"

// WebhookPreset is a template for a webhook: its events and a mapping of its data.
type WebhookPreset struct {
	Preset  string
	Events  []string
	Mapping WebhookMapping
}

// WebhookPresets lists every preset.
var WebhookPresets = []WebhookPreset{
	{"crm", []string{"USER_CREATED", "USER_UPDATED", "USER_DELETED"}, WebhookMapping{
		"customer_id": "sub", "email": "email", "given_name": "given_name", "family_name": "family_name",
		"email_verified": "email_verified", "createdTime": "createdTime",
	}},
	{"marketing", []string{"USER_CREATED", "USER_UPDATED", "CONSENT_ACCEPTED", "CONSENT_REVOKED"}, WebhookMapping{
		"sub": "sub", "email": "email", "mobile_number": "mobile_number", "newsletter_consent": "customFields.newsletter_consent", "locale": "locale",
	}},
	{"analytics", []string{"USER_LOGIN", "USER_REGISTERED", "USER_UPDATED"}, WebhookMapping{
		"event_type": "type", "timestamp": "timestamp", "sub": "sub", "device": "device", "location": "location", "method": "method",
	}},
}

// PresetOf returns the preset with a name.
func PresetOf(name string) (WebhookPreset, bool) {
	i := slices.IndexFunc(WebhookPresets, func(p WebhookPreset) bool { return p.Preset == name })
	if i < 0 {
		return WebhookPreset{}, false
	}
	return WebhookPresets[i], true
}
