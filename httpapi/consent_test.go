package httpapi

import (
	"testing"

	"accountledger/domain"
)

func TestConsents(t *testing.T) {
	t.Parallel()
	l := start(t)
	const one = `{"name":"Newsletter","legalBasis":"consent","versions":[{"version":1,"text":{"en":"Yes."}}]}`
	const two = `{"name":"Newsletter","legalBasis":"consent","versions":[{"version":1,"text":{"en":"Yes."}},{"version":2,"text":{"en":"Yes!"}}]}`
	if r := l.want(t, 200, "PUT", "/v1/consents/newsletter", one); r.text(t, "consentId") != "newsletter" || r.text(t, "versions.0.text.en") != "Yes." {
		t.Errorf("put: %s", r.body)
	}
	l.refused(t, domain.CodeConsentNotFound, "GET", "/v1/consents/terms", "")
	sub := l.create(t, "ada@example.com")
	path := "/v1/accounts/" + sub + "/consents"
	if r := l.want(t, 200, "GET", path, ""); r.member(t, "consents.0.due") != true || r.text(t, "history.0.status") != "" {
		t.Errorf("undecided: %s", r.body)
	}
	r := l.want(t, 200, "POST", path, `{"consentId":"newsletter","version":1,"status":"accepted","channel":"web","client":"shop","evidence":{"form":"f1"}}`)
	if r.text(t, "consents.0.status") != "accepted" || r.text(t, "consents.0.evidence.form") != "f1" {
		t.Errorf("accepted: %s", r.body)
	}
	l.refused(t, domain.CodeConsentNotFound, "POST", path, `{"consentId":"terms","version":1,"status":"accepted"}`)
	l.refused(t, domain.CodeInvalidRequest, "POST", path, `{"consentId":"newsletter","version":2,"status":"accepted"}`)
	if r := l.want(t, 200, "GET", path, ""); r.member(t, "consents.0.due") != false {
		t.Errorf("decided: %s", r.body)
	}

	// A new version requires a new decision; a published one never changes.
	l.refused(t, domain.CodeInvalidRequest, "PUT", "/v1/consents/newsletter", `{"name":"Newsletter","versions":[{"version":1,"text":{"en":"No."}}]}`)
	l.want(t, 200, "PUT", "/v1/consents/newsletter", two)
	l.refused(t, domain.CodeConsentNotAccepted, "POST", path, `{"consentId":"newsletter","version":2,"status":"revoked"}`)
	l.want(t, 200, "POST", path, `{"consentId":"newsletter","version":1,"status":"revoked"}`)
	r = l.want(t, 200, "GET", path, "")
	if r.member(t, "consents.0.due") != true || r.text(t, "consents.0.status") != "revoked" || r.member(t, "consents.0.newestVersion") != 2.0 ||
		r.text(t, "history.0.status") != "accepted" || r.text(t, "history.0.channel") != "web" || r.text(t, "history.1.status") != "revoked" || r.text(t, "history.1.actor.kind") != "api-key" {
		t.Errorf("with history: %s", r.body)
	}
	l.refused(t, domain.CodeInUse, "DELETE", "/v1/consents/newsletter", "")

	// Setting a linked field records the decision in the same commit.
	l.want(t, 200, "PUT", "/v1/fields/newsletter_consent", `{"dataType":"CHECKBOX","linkedConsent":"newsletter"}`)
	r = l.want(t, 200, "PATCH", "/v1/accounts/"+sub+"/custom-fields", `{"newsletter_consent":true}`)
	if r.text(t, "consents.0.status") != "accepted" || r.member(t, "consents.0.version") != 2.0 {
		t.Errorf("linked: %s", r.body)
	}
	l.want(t, 200, "PATCH", "/v1/accounts/"+sub+"/custom-fields", `{"newsletter_consent":null}`)
	feed := l.want(t, 200, "GET", "/v1/events?types=CONSENT_*,FIELD_*", "")
	for i, want := range []string{"CONSENT_DEFINITION_CREATED", "CONSENT_ACCEPTED", "CONSENT_DEFINITION_UPDATED", "CONSENT_REVOKED", "FIELD_CREATED", "CONSENT_ACCEPTED", "CONSENT_REVOKED"} {
		if got := feed.text(t, "events."+string(rune('0'+i))+".type"); got != want {
			t.Errorf("event %d is %s, want %s", i, got, want)
		}
	}
	l.refused(t, domain.CodeInUse, "DELETE", "/v1/consents/newsletter", "")
	l.want(t, 200, "PUT", "/v1/consents/terms", one)
	l.want(t, 204, "DELETE", "/v1/consents/terms", "")
	if r := l.want(t, 200, "GET", "/v1/consents", ""); r.text(t, "consents.0.consentId") != "newsletter" || r.text(t, "consents.1.consentId") != "" {
		t.Errorf("list: %s", r.body)
	}
}
