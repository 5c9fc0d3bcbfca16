package httpapi

import (
	"testing"

	"accountledger/domain"
)

// TestRoles tests the behaviour that all configuration objects share, with the
// simplest of them.
func TestRoles(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	l := f.open(t)
	t.Cleanup(func() { l.close() })

	if r := l.want(t, 200, "GET", "/v1/roles", ""); r.text(t, "roles.0.role") != "ADMIN" || r.text(t, "roles.2.role") != "USER" {
		t.Errorf("built-in roles: %s", r.body)
	}
	const auditor = `{"name":"Auditor","description":"Reads everything."}`
	r := l.want(t, 200, "PUT", "/v1/roles/AUDITOR?dry_run=true", auditor)
	if r.text(t, "events.0.type") != "role.set.v1" || r.text(t, "events.0.data.role") != "AUDITOR" {
		t.Errorf("dry run: %s", r.body)
	}
	l.refused(t, domain.CodeRoleNotFound, "GET", "/v1/roles/AUDITOR", "")

	first := l.want(t, 200, "PUT", "/v1/roles/AUDITOR", auditor, "Idempotency-Key: k1")
	if first.header.Get("ETag") != `"0"` || first.text(t, "name") != "Auditor" {
		t.Errorf("put: %s %s", first.header.Get("ETag"), first.body)
	}
	l.want(t, 200, "PUT", "/v1/roles/AUDITOR", `{"name":"Revisor"}`, `If-Match: "0"`)
	l.refused(t, domain.CodeStaleRevision, "PUT", "/v1/roles/AUDITOR", auditor, `If-Match: "0"`)
	l.refused(t, domain.CodeInvalidRequest, "PUT", "/v1/roles/-odd", auditor)

	// A repeated request returns the first outcome, also after a restart.
	for range 2 {
		again := l.want(t, 200, "PUT", "/v1/roles/AUDITOR", auditor, "Idempotency-Key: k1")
		if string(again.body) != string(first.body) {
			t.Errorf("repeated: %s, want %s", again.body, first.body)
		}
		l.refused(t, domain.CodeIdempotencyKeyReused, "PUT", "/v1/roles/AUDITOR", `{"name":"x"}`, "Idempotency-Key: k1")
		if r := l.want(t, 200, "GET", "/v1/roles/AUDITOR", ""); r.text(t, "name") != "Revisor" || r.header.Get("ETag") != `"1"` {
			t.Errorf("now: %s", r.body)
		}
		l.close()
		l = f.open(t)
	}

	feed := l.want(t, 200, "GET", "/v1/events", "")
	if feed.text(t, "events.0.type") != "ROLE_CREATED" || feed.text(t, "events.1.type") != "ROLE_UPDATED" || feed.text(t, "events.1.data.id") != "AUDITOR" {
		t.Errorf("feed: %s", feed.body)
	}
}
