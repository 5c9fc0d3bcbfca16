package httpapi

import (
	"context"
	"sync/atomic"
	"testing"

	"accountledger/domain"
	"accountledger/eventstore"
)

func TestLogin(t *testing.T) {
	t.Parallel()
	l := start(t)
	sub := l.create(t, "ada@example.com")
	path := "/v1/accounts/" + sub
	google := l.want(t, 201, "POST", path+"/identities", `{"provider":"google","providerUserId":"1095"}`)
	login := func(body string) response { t.Helper(); return l.want(t, 200, "POST", "/v1/logins", body) }
	const ada = `{"identifier":"ADA@example.com","client":"web","device":"phone","location":"London","method":"password"}`

	first := l.want(t, 200, "POST", "/v1/logins", ada, "Idempotency-Key: k1")
	if string(first.body) != `{"allowed":true,"sub":"`+sub+`"}` {
		t.Errorf("login: %s", first.body)
	}
	self, after := google.text(t, "identities.0.identityId"), l.want(t, 200, "GET", path, "")
	if after.text(t, "lastUsedIdentity") != self || after.text(t, "lastLoggedInTime") != after.text(t, "updatedTime") {
		t.Errorf("after a login: %s", after.body)
	}
	if r := l.want(t, 200, "POST", "/v1/logins", ada, "Idempotency-Key: k1"); r.position() != first.position() || string(r.body) != string(first.body) {
		t.Errorf("repeated: %s at %s, want it at %s", r.body, r.position(), first.position())
	}
	login(`{"identifier":"1095","provider":"google"}`)
	if r := l.want(t, 200, "GET", path, ""); r.text(t, "lastUsedIdentity") != google.text(t, "identities.1.identityId") {
		t.Errorf("after a login by google: %s", r.body)
	}
	login(`{"sub":"` + sub + `"}`)
	if r := l.want(t, 200, "GET", path, ""); r.text(t, "lastUsedIdentity") != self {
		t.Errorf("after a login by sub: %s", r.body)
	}
	for status, reason := range map[string]string{"PENDING": "pending", "DECLINED": "declined"} {
		l.want(t, 200, "PUT", path+"/status", `{"userStatus":"`+status+`"}`)
		if r := login(ada); string(r.body) != `{"allowed":false,"reason":"`+reason+`"}` {
			t.Errorf("login while %s: %s", status, r.body)
		}
	}
	if r := l.want(t, 200, "GET", path, ""); r.text(t, "lastLoggedInTime") <= after.text(t, "lastLoggedInTime") || r.text(t, "lastLoggedInTime") == r.text(t, "updatedTime") {
		t.Errorf("after refused logins: %s", r.body)
	}
	for _, body := range []string{`{"identifier":"eve@example.com"}`, `{"identifier":"?"}`, `{"sub":"odd"}`, `{"sub":"0190b0c2-5f3e-7c1a-9d5e-3f6a1b2c4d5e"}`} {
		if r := login(body); string(r.body) != `{"allowed":false,"reason":"unknown"}` {
			t.Errorf("login %s: %s", body, r.body)
		}
	}
	feed := l.want(t, 200, "GET", "/v1/events?types=USER_LOGIN*", "")
	if feed.text(t, "events.0.type") != "USER_LOGIN" || feed.text(t, "events.0.data.location") != "London" || feed.text(t, "events.0.data.identity") != self ||
		feed.text(t, "events.3.type") != "USER_LOGIN_FAILED" || feed.member(t, "events.5") != nil {
		t.Errorf("feed: %s", feed.body)
	}
	for _, body := range []string{`{}`, `{"identifier":"a","sub":"b"}`, `{"identifier":"a","provider":"Google"}`, `{"identifier":"a","method":"My Method"}`} {
		l.refused(t, domain.CodeInvalidRequest, "POST", "/v1/logins", body)
	}
}

// TestLoginOfCombined checks that the sub and identifiers of a merged account
// log in the surviving account.
func TestLoginOfCombined(t *testing.T) {
	t.Parallel()
	l := start(t)
	survivor, other := l.create(t, "a@example.com"), l.create(t, "b@example.com")
	l.want(t, 200, "POST", "/v1/accounts/"+survivor+"/merge", `{"from":"`+other+`"}`)
	for _, body := range []string{`{"sub":"` + other + `"}`, `{"identifier":"b@example.com"}`} {
		if r := l.want(t, 200, "POST", "/v1/logins", body); r.text(t, "sub") != survivor {
			t.Errorf("login %s: %s", body, r.body)
		}
	}
}

// counting is a store that counts commits and events.
type counting struct {
	eventstore.Store
	commits, events atomic.Int64
}

func (c *counting) Append(ctx context.Context, commit eventstore.Commit) (eventstore.Receipt, error) {
	c.commits.Add(1)
	for _, w := range commit.Writes {
		c.events.Add(int64(len(w.Events)))
	}
	return c.Store.Append(ctx, commit)
}

// TestLoginTellsNothing checks that callers who cannot read accounts cannot tell
// an account that does not exist from one that may not log in: the responses and
// the work done are the same.
func TestLoginTellsNothing(t *testing.T) {
	t.Parallel()
	log := &counting{}
	l := start(t, func(c *Config) {
		log.Store = c.Log
		c.Ledger = domain.NewLedger(domain.LedgerConfig{Log: log, Codec: c.Codec})
	})
	l.want(t, 200, "PUT", "/v1/accounts/"+l.create(t, "ada@example.com")+"/status", `{"userStatus":"DECLINED"}`)
	app := "Authorization: Bearer " + l.key(t, "app", scopeLoginsWrite)
	for _, body := range []string{`{"identifier":"ada@example.com"}`, `{"identifier":"eve@example.com"}`} {
		commits, events := log.commits.Load(), log.events.Load()
		r := l.want(t, 200, "POST", "/v1/logins", body, app, "Idempotency-Key: k"+body[15:18])
		if string(r.body) != `{"allowed":false,"reason":"refused"}` || r.header.Get("ETag") != "" {
			t.Errorf("login %s: %v %s", body, r.header, r.body)
		}
		if c, e := log.commits.Load()-commits, log.events.Load()-events; c != 1 || e != 1 {
			t.Errorf("login %s: %d commits of %d events, want one of one", body, c, e)
		}
		// The same key for another request: 422 would reveal that the account exists.
		again := `{"device":"phone",` + body[1:]
		if r := l.want(t, 200, "POST", "/v1/logins", again, app, "Idempotency-Key: k"+body[15:18]); r.text(t, "reason") != "refused" {
			t.Errorf("again: %s", r.body)
		}
		l.refused(t, codeForbidden, "POST", "/v1/logins?dry_run=true", body, app)
	}
	l.refused(t, codeForbidden, "POST", "/v1/logins", `{"identifier":"ada@example.com"}`, "Authorization: Bearer "+l.key(t, "reader", scopeAccountsRead))
	for rec, err := range l.Log.ReadStream(t.Context(), domain.LoginsStream, 0) {
		check(t, err)
		if got := string(rec.Clear); rec.Sealed != nil || len(got) > 250 {
			t.Errorf("an unknown login is recorded as %s", got)
		}
	}
}
