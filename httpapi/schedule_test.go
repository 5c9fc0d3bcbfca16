package httpapi

import (
	"testing"
	"time"

	"accountledger/domain"
)

func TestSchedules(t *testing.T) {
	t.Parallel()
	l := newFiles(t).open(t)
	t.Cleanup(func() { l.close() })
	created := l.want(t, 201, "POST", "/v1/accounts", `{"identities":[{"provider":"self","email":"plan@example.com"}]}`)
	path := "/v1/accounts/" + created.text(t, "sub") + "/schedules"
	due := time.Now().UTC().Add(24 * time.Hour).Truncate(time.Microsecond)
	body := `{"kind":"status_change","targetStatus":"DECLINED","dueTime":"` + due.Format(time.RFC3339Nano) + `"}`

	if r := l.want(t, 200, "POST", path+"?dry_run=true", body); r.text(t, "events.0.type") != "account.schedule-planned.v1" {
		t.Errorf("dry run: %s", r.body)
	}
	first := l.want(t, 201, "POST", path, body, "Idempotency-Key: k1")
	again := l.want(t, 201, "POST", path, body, "Idempotency-Key: k1")
	if string(first.body) != string(again.body) || first.text(t, "status") != "planned" || first.text(t, "origin") != "manual" {
		t.Errorf("planned %s, repeated %s", first.body, again.body)
	}
	id := first.text(t, "scheduleId")
	if location := first.header.Get("Location"); location != path+"/"+id {
		t.Errorf("Location %s", location)
	}
	later := `{"dueTime":"` + due.Add(time.Hour).Format(time.RFC3339Nano) + `"}`
	if r := l.want(t, 200, "PATCH", path+"/"+id, later); r.text(t, "dueTime") != due.Add(time.Hour).Format(time.RFC3339Nano) {
		t.Errorf("postponed: %s", r.body)
	}
	if r := l.want(t, 200, "DELETE", path+"/"+id, ""); r.text(t, "status") != "cancelled" {
		t.Errorf("cancelled: %s", r.body)
	}
	if r := l.want(t, 200, "GET", path+"/"+id, ""); r.text(t, "status") != "cancelled" {
		t.Errorf("get: %s", r.body)
	}
	if r := l.want(t, 200, "GET", path, ""); r.text(t, "schedules.0.scheduleId") != id {
		t.Errorf("list: %s", r.body)
	}
	l.refused(t, domain.CodeScheduleEnded, "PATCH", path+"/"+id, later)
	l.refused(t, domain.CodeScheduleNotFound, "GET", path+"/none", "")
	l.refused(t, domain.CodeScheduleNotFound, "DELETE", path+"/none", "")
	l.refused(t, domain.CodeInvalidRequest, "POST", path, `{"kind":"reminder","dueTime":"2001-01-01T00:00:00Z"}`)
	l.refused(t, domain.CodeStatusSystemManaged, "POST", path, `{"kind":"status_change","targetStatus":"DELETED","dueTime":"2090-01-01T00:00:00Z"}`)
	l.refused(t, domain.CodeAccountNotFound, "GET", "/v1/accounts/0190b0c2-5f3e-7c1a-9d5e-3f6a1b2c4d5e/schedules", "")
}

func TestScheduleSetups(t *testing.T) {
	t.Parallel()
	l := newFiles(t).open(t)
	t.Cleanup(func() { l.close() })
	l.want(t, 200, "PUT", "/v1/schedule-setups/first", `{"kind":"reminder","reminderNo":1,"offset":"P7D"}`)
	second := l.want(t, 200, "PUT", "/v1/schedule-setups/second", `{"kind":"reminder","reminderNo":2,"offsetSeconds":1209600,"periodSeconds":86400}`)
	if second.header.Get("ETag") != `"1"` {
		t.Errorf("ETag %s", second.header.Get("ETag"))
	}
	l.want(t, 200, "PUT", "/v1/schedule-setups/end", `{"kind":"deletion","offset":"P30D"}`)
	l.refused(t, domain.CodeInvalidRequest, "PUT", "/v1/schedule-setups/third", `{"kind":"reminder","reminderNo":3,"offset":"P31D"}`)
	l.refused(t, domain.CodeScheduleSetupOrder, "DELETE", "/v1/schedule-setups/first", "")
	l.refused(t, domain.CodeScheduleSetupNotFound, "GET", "/v1/schedule-setups/none", "")
	if r := l.want(t, 200, "GET", "/v1/schedule-setups", ""); r.text(t, "scheduleSetups.2.setupId") != "end" {
		t.Errorf("list: %s", r.body)
	}
	created := l.want(t, 201, "POST", "/v1/accounts", `{"origin":"registered","identities":[{"provider":"self","email":"auto@example.com"}]}`)
	path := "/v1/accounts/" + created.text(t, "sub")
	if created.text(t, "schedules.0.setupId") != "first" || created.text(t, "schedules.2.kind") != "deletion" {
		t.Errorf("created with %s", created.body)
	}
	verified := l.want(t, 200, "PUT", path+"/status", `{"userStatus":"VERIFIED"}`)
	for _, i := range []string{"0", "1", "2"} {
		if verified.text(t, "schedules."+i+".status") != "cancelled" || verified.text(t, "schedules."+i+".reason") != "verified" {
			t.Errorf("verified: %s", verified.body)
		}
	}
	l.want(t, 204, "DELETE", "/v1/schedule-setups/second", "")
	feed := l.want(t, 200, "GET", "/v1/events", "")
	if feed.text(t, "events.0.type") != "SCHEDULE_SETUP_CREATED" || feed.text(t, "events.6.type") != "SCHEDULE_PLANNED" || feed.text(t, "events.6.data.kind") != "reminder" {
		t.Errorf("feed: %s", feed.body)
	}
}
