package httpapi

import (
	"strings"
	"testing"

	"accountledger/domain"
)

func TestDeletion(t *testing.T) {
	t.Parallel()
	l := start(t)
	created := l.want(t, 201, "POST", "/v1/accounts", ada)
	path, sub := created.header.Get("Location"), created.text(t, "sub")
	l.want(t, 200, "PUT", path+"/status", `{"userStatus":"DECLINED"}`)

	l.refused(t, domain.CodeDeletionNotFound, "GET", path+"/deletion", "")
	l.refused(t, domain.CodeDeletionNotFound, "DELETE", path+"/deletion", "")
	l.refused(t, domain.CodeInvalidRequest, "DELETE", path+"?grace=soon", "")
	l.refused(t, domain.CodeInvalidRequest, "DELETE", path+"?grace=1h&immediate=true", "")
	if r := l.want(t, 200, "DELETE", path+"?dry_run=true", ""); r.text(t, "events.1.type") != "account.deletion-scheduled.v1" {
		t.Errorf("dry run: %s", r.body)
	}
	first := l.want(t, 202, "DELETE", path+"?grace=48h", "", "Idempotency-Key: d1")
	due := first.text(t, "deletion.dueTime")
	if again := l.want(t, 202, "DELETE", path+"?grace=48h", "", "Idempotency-Key: d1"); again.text(t, "deletion.dueTime") != due {
		t.Errorf("repeated: %s, want %s", again.body, first.body)
	}
	if r := l.want(t, 200, "GET", path+"/deletion", ""); r.text(t, "deletion.dueTime") != due || r.text(t, "deletion.status") != "scheduled" {
		t.Errorf("deletion: %s", r.body)
	}
	l.refused(t, domain.CodeAccountDeleted, "PATCH", path, `{"identity":{"nickname":"x"}}`)
	l.refused(t, domain.CodeIdentifierTaken, "POST", "/v1/accounts", ada) // a deleted account keeps its identifiers
	if r := l.want(t, 200, "GET", path, ""); r.text(t, "userStatus") != "DELETED" {
		t.Errorf("scheduled: %s", r.body)
	}
	if r := l.want(t, 200, "DELETE", path+"/deletion", ""); r.text(t, "userStatus") != "DECLINED" {
		t.Errorf("cancelled: %s", r.body)
	}
	l.want(t, 202, "DELETE", path, "")
	if r := l.want(t, 200, "PUT", path+"/status", `{"userStatus":"VERIFIED"}`); r.text(t, "userStatus") != "VERIFIED" {
		t.Errorf("restored: %s", r.body)
	}

	r := l.want(t, 200, "DELETE", path+"?immediate=true", "")
	if r.text(t, "certificate.sub") != sub || r.text(t, "certificate.events.0.type") != "account.created.v1" || r.text(t, "certificate.completedTime") == "" {
		t.Errorf("certificate: %s", r.body)
	}
	if r := l.refused(t, domain.CodeAccountErased, "GET", path, ""); r.text(t, "erasedTime") == "" {
		t.Errorf("gone: %s", r.body)
	}
	l.refused(t, domain.CodeAccountErased, "DELETE", path+"?immediate=true", "")
	l.refused(t, domain.CodeAccountErased, "PUT", path+"/status", `{"userStatus":"VERIFIED"}`)
	l.refused(t, domain.CodeAccountNotFound, "POST", "/v1/lookup", `{"identifier":"ada@example.com"}`)
	if r := l.want(t, 200, "GET", path+"/deletion", ""); r.text(t, "certificate.keyId") == "" {
		t.Errorf("certificate: %s", r.body)
	}
	if r := l.want(t, 200, "GET", path+"/events", ""); r.member(t, "events.0.erased") != true || strings.Contains(string(r.body), "ada@") {
		t.Errorf("history: %s", r.body)
	}
	l.want(t, 201, "POST", "/v1/accounts", ada) // an erased account's identifiers are free
	l.refused(t, domain.CodeAccountNotFound, "DELETE", "/v1/accounts/"+domain.NewID().String(), "")
}
