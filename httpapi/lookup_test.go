package httpapi

import (
	"context"
	"strings"
	"testing"

	"accountledger/domain"
	"accountledger/eventstore"
)

// TestOneNamespace checks that what an untyped look-up or login accepts leads to
// one account: whatever comes second is refused, with the kind that is taken.
func TestOneNamespace(t *testing.T) {
	t.Parallel()
	self := func(members string) string {
		return `{"origin":"created","identities":[{"provider":"self",` + members + `}]}`
	}
	for name, tt := range map[string]struct{ first, second, kind string }{
		"username, then e-mail":             {`"username":"pat@example.com"`, `"email":"Pat@example.com"`, "email"},
		"e-mail, then username":             {`"email":"Pat@example.com"`, `"username":"pat@EXAMPLE.com"`, "email"},
		"full width, then e-mail":           {`"username":"ｐａｔ@example.com"`, `"email":"pat@example.com"`, "email"},
		"e-mail, then full width":           {`"email":"pat@example.com"`, `"username":"ｐａｔ@example.com"`, "email"},
		"username, then mobile number":      {`"username":"+4915112345678"`, `"mobile_number":"+49 1511 2345678"`, "mobile_number"},
		"mobile number, then username":      {`"mobile_number":"+49 1511 2345678"`, `"username":"+49-1511-2345678"`, "mobile_number"},
		"user id at self, then username":    {`"email":"ada@example.com","providerUserId":"x7"`, `"username":"X7"`, "username"},
		"username, then user id at self":    {`"username":"X7"`, `"email":"ada@example.com","providerUserId":"x7"`, "username"},
		"NFC, then NFD":                     {"\"email\":\"zo\u00eb@example.com\"", "\"email\":\"zoe\u0308@example.com\"", "email"},
		"NFD, then NFC":                     {"\"email\":\"ZOE\u0308@example.com\"", "\"email\":\"zo\u00eb@example.com\"", "email"},
		"internationalized domain, then it": {`"username":"pat@bücher.example"`, `"email":"pat@xn--bcher-kva.example"`, "email"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := start(t)
			sub := l.want(t, 201, "POST", "/v1/accounts", self(tt.first)).text(t, "sub")
			r := l.refused(t, domain.CodeIdentifierTaken, "POST", "/v1/accounts", self(tt.second))
			if got := r.text(t, "detail"); got != "Another account has this "+tt.kind+"." {
				t.Errorf("the detail is %q, want the kind %s", got, tt.kind)
			}
			// Linking names the conflict; the same account may have both.
			other := "/v1/accounts/" + l.create(t, "other@example.com") + "/identities"
			google := `{"provider":"google","providerUserId":"1095",` + strings.ReplaceAll(tt.second, `"providerUserId":"x7"`, `"username":"x7"`) + `}`
			l.refused(t, domain.CodeIdentityConflict, "POST", other, google)
			l.want(t, 201, "POST", "/v1/accounts/"+sub+"/identities", google)
		})
	}
}

// TestStoredAsTyped checks that a value is shown in the normalization form in
// which it was given.
func TestStoredAsTyped(t *testing.T) {
	t.Parallel()
	l := start(t)
	typed := "Zoe\u0308@example.com"
	sub := l.create(t, typed)
	if r := l.want(t, 200, "GET", "/v1/accounts/"+sub, ""); r.text(t, "identities.0.email") != typed || r.text(t, "userIds.0.value") != typed {
		t.Errorf("the account: %s", r.body)
	}
	if r := l.want(t, 200, "POST", "/v1/lookup", "{\"identifier\":\"zo\u00eb@example.com\"}"); r.text(t, "sub") != sub {
		t.Errorf("look-up in NFC: %s", r.body)
	}
}

// unclaimed is a log that grants every claim, so that accounts can have the same
// identifiers, as accounts of earlier versions may.
type unclaimed struct{ eventstore.Store }

func (u unclaimed) Append(ctx context.Context, c eventstore.Commit) (eventstore.Receipt, error) {
	c.Claim, c.Release = nil, nil
	return u.Store.Append(ctx, c)
}

// TestAmbiguous checks that no account is chosen if an identifier leads to
// several, and that a caller who cannot read accounts does not learn of it.
func TestAmbiguous(t *testing.T) {
	t.Parallel()
	l := start(t, func(c *Config) {
		c.Ledger = domain.NewLedger(domain.LedgerConfig{Log: unclaimed{c.Log}, Codec: c.Codec})
	})
	address := l.create(t, "pat@example.com")
	named := l.want(t, 201, "POST", "/v1/accounts", `{"origin":"created","identities":[{"provider":"self","username":"pat@example.com"}]}`).text(t, "sub")
	l.create(t, "zo\u00eb@example.com")
	l.create(t, "zoe\u0308@example.com")
	namesake := l.want(t, 201, "POST", "/v1/accounts", `{"origin":"created","identities":[{"provider":"self","username":"`+named+`"}]}`).text(t, "sub")

	for _, body := range []string{`{"identifier":"PAT@example.com"}`, `{"identifier":"zoë@example.com"}`, `{"identifier":"zoë@example.com","type":"email"}`,
		`{"identifier":"` + named + `"}`} {
		l.refused(t, codeAmbiguous, "POST", "/v1/lookup", body)
	}
	for body, want := range map[string]string{
		`{"identifier":"pat@example.com","type":"email"}`:    address,
		`{"identifier":"pat@example.com","type":"username"}`: named,
		`{"identifier":"` + named + `","type":"sub"}`:        named,
		`{"identifier":"` + named + `","type":"username"}`:   namesake,
		`{"identifier":"` + address + `"}`:                   address,
	} {
		if r := l.want(t, 200, "POST", "/v1/lookup", body); r.text(t, "sub") != want {
			t.Errorf("look-up %s: %s, want %s", body, r.text(t, "sub"), want)
		}
	}

	app := "Authorization: Bearer " + l.key(t, "app", scopeLoginsWrite)
	for _, body := range []string{`{"identifier":"pat@example.com"}`, `{"identifier":"zoë@example.com"}`, `{"identifier":"pat@example.com","provider":"google"}`} {
		before, err := l.Log.Head(t.Context())
		check(t, err)
		if r := l.want(t, 200, "POST", "/v1/logins", body); string(r.body) != `{"allowed":false,"reason":"ambiguous"}` {
			t.Errorf("login %s: %s", body, r.body)
		}
		if r := l.want(t, 200, "POST", "/v1/logins", body, app); string(r.body) != `{"allowed":false,"reason":"refused"}` {
			t.Errorf("login %s without accounts:read: %s", body, r.body)
		}
		if r := l.want(t, 200, "POST", "/v1/logins?dry_run=true", body); r.text(t, "reason") != "ambiguous" || r.text(t, "events.0.type") != "login.unknown.v1" {
			t.Errorf("dry run of login %s: %s", body, r.body)
		}
		after, err := l.Log.Head(t.Context())
		check(t, err)
		logins := 0
		for rec, err := range l.Log.ReadStream(t.Context(), domain.LoginsStream, 0) {
			check(t, err)
			if rec.Position > before {
				logins++
			}
		}
		if after != before+2 || logins != 2 {
			t.Errorf("login %s is recorded in %d events, %d of them of no account, want 2 and 2", body, after-before, logins)
		}
	}
	if r := l.want(t, 200, "POST", "/v1/logins", `{"sub":"`+named+`"}`); r.text(t, "sub") != named {
		t.Errorf("login by sub: %s", r.body)
	}
	// Merging the accounts resolves it.
	l.want(t, 200, "POST", "/v1/accounts/"+address+"/merge", `{"from":"`+named+`"}`)
	if r := l.want(t, 200, "POST", "/v1/logins", `{"identifier":"pat@example.com"}`); r.text(t, "sub") != address {
		t.Errorf("login after the merge: %s", r.body)
	}
}

// TestLoginByProvider checks that a user id at a provider leads to its account,
// although another account has taken it as its username.
func TestLoginByProvider(t *testing.T) {
	t.Parallel()
	l := start(t)
	sub := l.create(t, "ada@example.com")
	l.want(t, 201, "POST", "/v1/accounts/"+sub+"/identities", `{"provider":"google","providerUserId":"1095"}`)
	named := l.want(t, 201, "POST", "/v1/accounts", `{"origin":"created","identities":[{"provider":"self","username":"1095"}]}`).text(t, "sub")
	for body, want := range map[string]string{`{"identifier":"1095","provider":"google"}`: sub, `{"identifier":"1095"}`: named} {
		if r := l.want(t, 200, "POST", "/v1/logins", body); r.text(t, "sub") != want {
			t.Errorf("login %s: %s, want %s", body, r.text(t, "sub"), want)
		}
	}
}
