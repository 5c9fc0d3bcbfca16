package httpapi

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
)

const ada = `{"origin":"registered","identities":[{"provider":"self","given_name":"Ada","family_name":"Lovelace","email":"ada@example.com"}],"customFields":{"employee_id":"12345"}}`

func TestCreateAccount(t *testing.T) {
	t.Parallel()
	l := start(t)
	r := l.want(t, 201, "POST", "/v1/accounts", ada)
	sub := r.text(t, "sub")
	if id, err := uuid.Parse(sub); err != nil || id.Version() != 7 {
		t.Errorf("sub = %q, want a UUID of version 7", sub)
	}
	got := map[string]string{}
	for _, name := range []string{"Location", "ETag", "Ledger-Position", "Ledger-Lag", "Content-Type", "Cache-Control"} {
		got[name] = r.header.Get(name)
	}
	want := map[string]string{"Location": "/v1/accounts/" + sub, "ETag": `"0"`, "Ledger-Position": "1", "Ledger-Lag": "0",
		"Content-Type": "application/json", "Cache-Control": "no-store"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	a, err := domain.ParseAccount(r.body)
	check(t, err)
	if a.Status != domain.StatusPending || a.Identities[0].FamilyName != "Lovelace" || a.UserIDs[0].Value != "ada@example.com" || string(a.CustomFields["employee_id"]) != `"12345"` {
		t.Errorf("account = %s", r.body)
	}
	read := l.want(t, 200, "GET", r.header.Get("Location"), "")
	if diff := cmp.Diff(string(r.body), string(read.body)); diff != "" {
		t.Errorf("GET and POST return different accounts (-POST +GET):\n%s", diff)
	}
	if got, want := read.header.Get("ETag"), `"0"`; got != want {
		t.Errorf("ETag = %s, want %s", got, want)
	}
}

func TestInitialStatus(t *testing.T) {
	t.Parallel()
	l := start(t, func(c *Config) { c.RegisteredStatus = domain.StatusVerified })
	plain := start(t)
	for i, tt := range []struct {
		ledger               *ledger
		origin, status, want string
	}{
		{plain, "registered", "", "PENDING"},
		{plain, "created", "", "VERIFIED"},
		{plain, "imported", "", "VERIFIED"},
		{plain, "", "", "VERIFIED"},
		{plain, "registered", "VERIFIED", "VERIFIED"},
		{plain, "created", "DECLINED", "DECLINED"},
		{l, "registered", "", "VERIFIED"},
	} {
		body := fmt.Sprintf(`{"origin":%q,"userStatus":%q,"identities":[{"provider":"self","email":"a%d@example.com"}]}`, tt.origin, tt.status, i)
		body = strings.NewReplacer(`"origin":"",`, "", `"userStatus":"",`, "").Replace(body)
		if got := tt.ledger.want(t, 201, "POST", "/v1/accounts", body).text(t, "userStatus"); got != tt.want {
			t.Errorf("origin %q, userStatus %q = %s, want %s", tt.origin, tt.status, got, tt.want)
		}
	}
	plain.refused(t, domain.CodeStatusSystemManaged, "POST", "/v1/accounts", `{"userStatus":"DELETED","identities":[{"provider":"self","email":"x@example.com"}]}`)
}

func TestCreateAccountFaults(t *testing.T) {
	t.Parallel()
	l := start(t)
	r := l.refused(t, domain.CodeInvalidRequest, "POST", "/v1/accounts",
		`{"origin":"born","identities":[{"provider":"Self","email":"not-an-address","birthdate":"1.1.2000"}],"customFields":{"9":1}}`)
	var p problem
	check(t, json.Unmarshal(r.body, &p))
	var pointers []string
	for _, f := range p.Errors {
		pointers = append(pointers, *f.Pointer)
	}
	want := []string{"/customFields", "/identities/0/birthdate", "/identities/0/email", "/identities/0/provider", "/identities/0/providerUserId", "/origin"}
	if diff := cmp.Diff(want, pointers); diff != "" {
		t.Errorf("pointers (-want +got):\n%s", diff)
	}
	for _, value := range []string{"not-an-address", "1.1.2000", "born"} {
		if strings.Contains(string(r.body), value) {
			t.Errorf("the problem contains the value %s: %s", value, r.body)
		}
	}
}

func TestGetAccount(t *testing.T) {
	t.Parallel()
	l := start(t)
	sub := l.create(t, "ada@example.com")
	l.want(t, 200, "PUT", "/v1/accounts/"+sub+"/status", `{"userStatus":"DECLINED","reason":"chargeback"}`)
	path := "/v1/accounts/" + sub

	if r := l.want(t, 200, "GET", "/v1/accounts/"+strings.ToUpper(sub), ""); r.text(t, "sub") != sub {
		t.Errorf("a sub in upper case returns %s", r.body)
	}
	for tag, status := range map[string]int{`"1"`: 304, `W/"1"`: 304, `"7", "1"`: 304, `*`: 304, `"0"`: 200, `1`: 200} {
		r := l.want(t, status, "GET", path, "", "If-None-Match: "+tag)
		if status == 304 && (len(r.body) > 0 || r.header.Get("ETag") != `"1"`) {
			t.Errorf("304 has body %q and ETag %s", r.body, r.header.Get("ETag"))
		}
	}
	head := l.want(t, 200, "HEAD", path, "")
	if len(head.body) > 0 || head.header.Get("ETag") != `"1"` || head.header.Get("Content-Length") == "0" {
		t.Errorf("HEAD: body %q, headers %v", head.body, head.header)
	}

	then := l.want(t, 200, "GET", path+"?revision=0", "")
	if then.text(t, "userStatus") != "VERIFIED" || then.header.Get("ETag") != `"0"` {
		t.Errorf("at revision 0: %s, ETag %s", then.body, then.header.Get("ETag"))
	}
	l.refused(t, codeRevisionNotFound, "GET", path+"?revision=2", "")
	l.refused(t, domain.CodeInvalidRequest, "GET", path+"?revision=x", "")
	r := l.refused(t, codeInvalidParameter, "GET", path+"?revison=0&at=now&wait=1&wait=2", "")
	if got := r.text(t, "errors.0.parameter") + r.text(t, "errors.1.parameter") + r.text(t, "errors.2.parameter"); got != "at"+"revison"+"wait" {
		t.Errorf("parameters in the problem: %q", got)
	}

	for _, sub := range []string{uuid.NewString(), "nobody", "..%2f..%2fetc%2fpasswd", "%2e%2e", "..", "{" + sub + "}", "urn:uuid:" + sub, strings.ReplaceAll(sub, "-", ""), "%00", "%ff", "'; DROP TABLE accounts; --"} {
		res := l.send(t, "GET", "/v1/accounts/"+strings.ReplaceAll(sub, " ", "%20"), "")
		if res.status != 404 {
			t.Errorf("GET of sub %q = %d, want 404", sub, res.status)
		}
	}
}

func TestErasedAccount(t *testing.T) {
	t.Parallel()
	l := start(t)
	sub := l.create(t, "ada@example.com")
	when := l.erase(t, sub, 0)
	path := "/v1/accounts/" + sub
	r := l.refused(t, domain.CodeAccountErased, "GET", path+"?min_position=2", "")
	if got := r.text(t, "erasedTime"); got != when.Format(time.RFC3339Nano) {
		t.Errorf("erasedTime = %s, want %s", got, when.Format(time.RFC3339Nano))
	}
	r = l.refused(t, domain.CodeAccountErased, "PUT", path+"/status", `{"userStatus":"DECLINED"}`)
	if got := r.text(t, "erasedTime"); got != when.Format(time.RFC3339Nano) {
		t.Errorf("erasedTime = %s, want %s", got, when.Format(time.RFC3339Nano))
	}
	l.refused(t, domain.CodeAccountNotFound, "POST", "/v1/lookup", `{"identifier":"ada@example.com"}`)
	if got := len(l.want(t, 200, "GET", path+"/events", "").member(t, "events").([]any)); got != 2 {
		t.Errorf("the history has %d events, want 2", got)
	}
}

// erase erases the account by appending the event that an erasure appends.
func (l *ledger) erase(t testing.TB, sub string, at eventstore.Revision) time.Time {
	t.Helper()
	receipt, err := l.Log.Append(t.Context(), eventstore.Commit{Writes: []eventstore.Write{{
		Stream: domain.AccountStream(sub), Expected: at,
		Events: []eventstore.Event{{ID: uuid.New(), Type: domain.TypeOf(domain.AccountErased{}), Actor: "system:test",
			Clear: []byte(`{"meta":{"actor":{"kind":"system","id":"test"}},"data":{"kid":"00"}}`)}},
	}}})
	check(t, err)
	return receipt.Time
}

func TestSameEmailAtOnce(t *testing.T) {
	t.Parallel()
	l := start(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	outcomes := map[string]int{}
	for range 64 {
		wg.Go(func() {
			r, err := l.try("POST", "/v1/accounts", account("one@example.com"))
			outcome := fmt.Sprint(r.status)
			if err != nil {
				outcome = err.Error()
			} else if r.status != 201 {
				outcome += " " + r.text(t, "code")
			}
			mu.Lock()
			defer mu.Unlock()
			outcomes[outcome]++
		})
	}
	wg.Wait()
	if diff := cmp.Diff(map[string]int{"201": 1, "409 identifier-taken": 63}, outcomes); diff != "" {
		t.Errorf("outcomes (-want +got):\n%s", diff)
	}
}

// TestReadYourWrites creates, reads and changes accounts from many clients
// concurrently: each client sees its own writes at once.
func TestReadYourWrites(t *testing.T) {
	t.Parallel()
	l := start(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 10 {
				email := fmt.Sprintf("c%d.%d@example.com", i, j)
				created, err := l.try("POST", "/v1/accounts", account(email))
				if err != nil || created.status != 201 {
					t.Errorf("create: %d %v", created.status, err)
					return
				}
				path := created.header.Get("Location")
				if r, err := l.try("GET", path, ""); err != nil || r.status != 200 {
					t.Errorf("get right after create: %d %v", r.status, err)
				}
				if r, err := l.try("POST", "/v1/lookup", `{"identifier":"`+email+`"}`); err != nil || r.status != 200 {
					t.Errorf("look-up right after create: %d %v", r.status, err)
				}
				if r, err := l.try("PUT", path+"/status", `{"userStatus":"DECLINED"}`); err != nil || r.status != 200 {
					t.Errorf("change: %d %v", r.status, err)
				}
				if r, err := l.try("GET", path, ""); err != nil || r.text(t, "userStatus") != "DECLINED" {
					t.Errorf("get right after change: %s %v", r.body, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestIfMatch(t *testing.T) {
	t.Parallel()
	l := start(t)
	path := "/v1/accounts/" + l.create(t, "ada@example.com")
	set := func(code domain.Code, value, tag string) {
		t.Helper()
		body := `{"n":` + value + `}`
		if code == "" {
			l.want(t, 200, "PATCH", path+"/custom-fields", body, "If-Match: "+tag)
			return
		}
		l.refused(t, code, "PATCH", path+"/custom-fields", body, "If-Match: "+tag)
	}
	set("", "1", `"0"`)
	set("", "2", `*`)
	set(domain.CodeStaleRevision, "3", `"0"`)
	set(domain.CodeStaleRevision, "3", `"9"`)
	for _, tag := range []string{`W/"2"`, `2`, `"2`, `"2", "3"`, `"02"`, `"-1"`, `"x"`, `""`} {
		set(codeInvalidPrecondition, "3", tag)
	}
	if r := l.want(t, 200, "GET", path, ""); r.header.Get("ETag") != `"2"` {
		t.Errorf("ETag = %s after two changes", r.header.Get("ETag"))
	}
	l.refused(t, domain.CodeStaleRevision, "POST", "/v1/accounts", account("new@example.com"), `If-Match: "0"`)

	// Without an account, no revision can match.
	none := "/v1/accounts/" + domain.NewID().String() + "/custom-fields"
	l.refused(t, domain.CodeAccountNotFound, "PATCH", none, `{"n":1}`, `If-Match: "0"`)
	erased := "/v1/accounts/" + l.create(t, "erased@example.com")
	l.want(t, 200, "DELETE", erased+"?immediate=true", "")
	l.refused(t, domain.CodeAccountErased, "PATCH", erased+"/custom-fields", `{"n":1}`, `If-Match: "0"`)
}

// TestIfMatchRace lets many clients increment a counter in one field with
// If-Match: no increment is lost.
func TestIfMatchRace(t *testing.T) {
	t.Parallel()
	l := start(t)
	path := "/v1/accounts/" + l.create(t, "ada@example.com")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for done := 0; done < 5; {
				r, err := l.try("GET", path, "")
				if err != nil {
					t.Error(err)
					return
				}
				n, _ := r.member(t, "customFields.n").(float64)
				w, err := l.try("PATCH", path+"/custom-fields", fmt.Sprintf(`{"n":%d}`, int(n)+1), "If-Match: "+r.header.Get("ETag"))
				switch {
				case err != nil:
					t.Error(err)
					return
				case w.status == 200:
					done++
				case w.status != http.StatusPreconditionFailed:
					t.Errorf("%d %s", w.status, w.body)
					return
				}
			}
		})
	}
	wg.Wait()
	r := l.want(t, 200, "GET", path, "")
	if got := r.member(t, "customFields.n"); got != 40.0 || r.header.Get("ETag") != `"40"` {
		t.Errorf("n = %v at %s, want 40", got, r.header.Get("ETag"))
	}
}

func TestIdempotency(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	l := f.open(t)
	defer func() { l.close() }()
	const key = "Idempotency-Key: order-17"
	first := l.want(t, 201, "POST", "/v1/accounts", ada, key)
	sub := first.text(t, "sub")
	if id, err := uuid.Parse(sub); err != nil || id.Version() != 8 || id.Variant() != uuid.RFC4122 {
		t.Errorf("sub = %q, want a UUID of version 8", sub)
	}
	path := "/v1/accounts/" + sub
	change := l.want(t, 200, "PUT", path+"/status", `{"userStatus":"VERIFIED"}`, "Idempotency-Key: s", `If-Match: "0"`)
	l.want(t, 200, "PUT", path+"/status", `{"userStatus":"DECLINED"}`)

	same := func(what string, want, got response) {
		t.Helper()
		if diff := cmp.Diff(string(want.body), string(got.body)); diff != "" {
			t.Errorf("%s: the repeated request has another response (-first +repeated):\n%s", what, diff)
		}
		for _, name := range []string{"ETag", "Location", "Ledger-Position"} {
			if want.header.Get(name) != got.header.Get(name) {
				t.Errorf("%s: %s = %q, then %q", what, name, want.header.Get(name), got.header.Get(name))
			}
		}
	}
	repeat := func() {
		t.Helper()
		same("create", first, l.want(t, 201, "POST", "/v1/accounts", ada, key))
		same("status", change, l.want(t, 200, "PUT", path+"/status", `{"userStatus":"VERIFIED"}`, "Idempotency-Key: s", `If-Match: "0"`))
		l.refused(t, domain.CodeIdempotencyKeyReused, "POST", "/v1/accounts", account("other@example.com"), key)
		l.refused(t, domain.CodeIdempotencyKeyReused, "PUT", path+"/status", `{"userStatus":"PENDING"}`, "Idempotency-Key: s")
	}
	repeat()
	l.close()
	l = f.open(t)
	repeat()
	if r := l.want(t, 200, "GET", path, ""); r.header.Get("ETag") != `"2"` || r.text(t, "userStatus") != "DECLINED" {
		t.Errorf("after repetitions: %s", r.body)
	}
	// Another caller may use the same key.
	other := l.key(t, "other", scopeAccountsWrite)
	if r := l.want(t, 201, "POST", "/v1/accounts", account("theirs@example.com"), key, "Authorization: Bearer "+other); r.text(t, "sub") == sub {
		t.Error("the same key of two callers created one account")
	}
	l.refused(t, domain.CodeInvalidRequest, "POST", "/v1/accounts", ada, "Idempotency-Key: "+strings.Repeat("k", 256))
}

// TestIdempotencyAtOnce repeats one creation from many clients concurrently: all
// of them get the same account.
func TestIdempotencyAtOnce(t *testing.T) {
	t.Parallel()
	l := start(t)
	var wg sync.WaitGroup
	var bodies [16]string
	for i := range bodies {
		wg.Go(func() {
			r, err := l.try("POST", "/v1/accounts", ada, "Idempotency-Key: k")
			if err != nil || r.status != 201 {
				t.Errorf("%d %s %v", r.status, r.body, err)
			}
			bodies[i] = string(r.body)
		})
	}
	wg.Wait()
	for _, body := range bodies {
		if body != bodies[0] {
			t.Errorf("one creation has two outcomes:\n%s\n%s", bodies[0], body)
		}
	}
	if r := l.want(t, 200, "GET", "/v1/events", ""); len(r.member(t, "events").([]any)) != 3 {
		t.Errorf("want USER_CREATED, USER_REGISTERED and GROUP_MEMBER_ADDED once each: %s", r.body)
	}
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	l := start(t)
	r := l.want(t, 200, "POST", "/v1/accounts?dry_run=true", ada)
	if r.text(t, "events.0.type") != "account.created.v1" || r.text(t, "account.userStatus") != "PENDING" || r.text(t, "events.0.data.profile.email") != "ada@example.com" {
		t.Errorf("dry run of a creation: %s", r.body)
	}
	if r.header.Get("Location") != "" || r.header.Get("ETag") != "" {
		t.Errorf("headers of a dry run: %v", r.header)
	}
	path := "/v1/accounts/" + l.create(t, "ada@example.com")
	r = l.want(t, 200, "PUT", path+"/status?dry_run=true", `{"userStatus":"DECLINED"}`)
	if r.text(t, "account.userStatus") != "DECLINED" || len(r.member(t, "events").([]any)) != 1 {
		t.Errorf("dry run of a status: %s", r.body)
	}
	if r := l.want(t, 200, "PUT", path+"/status?dry_run=true", `{"userStatus":"VERIFIED"}`); len(r.member(t, "events").([]any)) != 0 {
		t.Errorf("dry run of no change: %s", r.body)
	}
	l.refused(t, domain.CodeStatusSystemManaged, "PUT", path+"/status?dry_run=true", `{"userStatus":"DELETED"}`)
	l.refused(t, domain.CodeInvalidRequest, "PUT", path+"/status?dry_run=perhaps", `{"userStatus":"DECLINED"}`)
	if head, err := l.Log.Head(t.Context()); err != nil || head != 1 {
		t.Errorf("the log ends at %d after dry runs, want 1", head)
	}
}

// TestLaggingView stops the account view: writes succeed and report the lag,
// reads with a min_position beyond the view are refused.
func TestLaggingView(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.create(t, "before@example.com")
	idle := l.idleViews(t)
	url := l.serve(t, Config{Ledger: l.Ledger, Views: idle, Webhooks: l.Webhooks, Log: l.Log, Codec: l.Codec, Keys: l.Keys, AwaitTimeout: time.Millisecond})
	slow := &ledger{Config: l.Config, url: url, admin: l.admin, client: l.client}

	r := slow.want(t, 201, "POST", "/v1/accounts", account("ada@example.com"))
	if got := r.header.Get("Ledger-Lag"); got != "2" {
		t.Errorf("Ledger-Lag = %s, want 2", got)
	}
	r = slow.refused(t, codeNotFresh, "GET", r.header.Get("Location")+"?wait=0&min_position="+r.position(), "")
	if r.header.Get("Retry-After") == "" || r.position() != "0" || r.member(t, "position") != 0.0 {
		t.Errorf("not fresh: %v %s", r.header, r.body)
	}
	r = slow.want(t, 503, "GET", "/readyz", "")
	if r.text(t, "code") != string(codeNotReady) {
		t.Errorf("readyz: %s", r.body)
	}
	l.runViews(t, idle)
	slow.want(t, 200, "GET", "/v1/accounts/"+l.create(t, "later@example.com")+"?min_position=3", "")
	slow.want(t, 200, "GET", "/readyz", "")
	for position, code := range map[string]domain.Code{"-1": domain.CodeInvalidRequest, "x": domain.CodeInvalidRequest, strconv.Itoa(1 << 40): codeNotFresh} {
		l.refused(t, code, "GET", "/v1/webhooks?wait=0&min_position="+position, "")
	}
	l.refused(t, domain.CodeInvalidRequest, "GET", "/v1/webhooks?wait=31", "")
}
