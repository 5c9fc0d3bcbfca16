package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
)

// contention is how long the clients of TestContention run.
// ACCOUNTLEDGER_TEST_CONTENTION sets another duration, like 30s.
func contention(t *testing.T) time.Duration {
	if d, err := time.ParseDuration(os.Getenv("ACCOUNTLEDGER_TEST_CONTENTION")); err == nil {
		return d
	}
	if testing.Short() {
		return 2 * time.Second
	}
	return 8 * time.Second
}

// TestContention makes 32 clients change 8 accounts concurrently, competing for
// the same identifiers, and then checks the invariants: each identifier belongs to
// one account, each account has an identifier, each COMBINED account a survivor,
// each schedule was executed once, erased accounts are gone, the views equal a
// rebuild, and the log verifies.
func TestContention(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	p := startServer(t, data)
	c := &contest{p: p, erased: map[string]bool{}, changed: map[string]int{}, refused: map[string]int{}}
	for path, body := range map[string]string{
		"/v1/fields/login": `{"dataType":"USERNAME"}`, "/v1/fields/badge": `{"dataType":"TEXT","unique":true}`,
		"/v1/consents/news":             `{"name":"News","versions":[{"version":1,"text":{"en":"?"}}]}`,
		"/v1/schedule-setups/reminding": `{"kind":"reminder","reminderNo":1,"offsetSeconds":1}`,
	} {
		if response, text, err := p.do(t.Context(), "PUT", path, body); err != nil || response.StatusCode != 200 {
			t.Fatalf("PUT %s: %s, %v", path, text, err)
		}
	}
	for i := range c.subs {
		c.subs[i] = p.create(t, fmt.Sprintf("person.%d@example.com", i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), contention(t))
	defer cancel()
	var clients sync.WaitGroup
	for i := range 32 {
		clients.Go(func() { c.play(ctx, rand.New(rand.NewPCG(uint64(i), 1))) })
	}
	clients.Wait()
	if wrong := c.wrong.Load(); wrong != nil {
		t.Fatal(*wrong)
	}
	t.Logf("%d accounts erased; changes %v, refusals %v", len(c.erased), c.changed, c.refused)
	if len(c.changed) == 0 || len(c.refused) == 0 {
		t.Error("the clients did not conflict")
	}
	c.check(t)
	checkLedger(t, 0, data)
}

// contest is the state that the clients share.
type contest struct {
	p     *process
	wrong atomic.Pointer[string] // the first unexpected answer

	mu               sync.Mutex
	subs             [8]string // erased ones are replaced
	made             int
	erased           map[string]bool
	changed, refused map[string]int // by kind of request
}

func (c *contest) sub(r *rand.Rand) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.subs[r.IntN(len(c.subs))]
}

// replace replaces an erased account with a new one, unless another client has.
func (c *contest) replace(ctx context.Context, sub string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.subs[:], sub)
	if i < 0 {
		return
	}
	c.made++
	body := fmt.Sprintf(`{"origin":"created","userStatus":"PENDING","identities":[{"provider":"self","email":"later.%d@example.com"}]}`, c.made)
	response, text, err := c.p.do(ctx, "POST", "/v1/accounts", body)
	var account domain.Account
	if err != nil || response.StatusCode != 201 || json.Unmarshal(text, &account) != nil {
		if ctx.Err() == nil {
			c.fail("replace: %v: %s", err, text)
		}
		return
	}
	c.subs[i], c.erased[sub] = account.Sub, true
}

// play sends random changes, one after the other, until ctx is done.
func (c *contest) play(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil && c.wrong.Load() == nil {
		sub := c.sub(r)
		path := "/v1/accounts/" + sub
		email, name := fmt.Sprintf("shared.%d@example.com", r.IntN(12)), fmt.Sprintf("shared.%d", r.IntN(12))
		identity := func() string {
			account, _ := c.account(ctx, sub)
			if len(account.Identities) == 0 {
				return "none"
			}
			return account.Identities[r.IntN(len(account.Identities))].IdentityID
		}
		schedule := func() string {
			account, _ := c.account(ctx, sub)
			if len(account.Schedules) == 0 {
				return "none"
			}
			return account.Schedules[len(account.Schedules)-1].ScheduleID
		}
		soon := func() string { return time.Now().Add(rand.N(2 * time.Second)).UTC().Format(time.RFC3339Nano) }
		switch r.IntN(24) {
		case 0, 1:
			c.ask(ctx, "link", "POST", path+"/identities", fmt.Sprintf(`{"provider":"google","providerUserId":"%d","email":%q}`, r.IntN(12), email))
		case 2:
			c.ask(ctx, "unlink", "DELETE", path+"/identities/"+identity(), "")
		case 3:
			c.ask(ctx, "update", "PATCH", path+"/identities/"+identity(), fmt.Sprintf(`{"email":%q,"username":%q}`, email, name))
		case 4, 5, 6:
			c.ask(ctx, "status", "PUT", path+"/status", fmt.Sprintf(`{"userStatus":%q}`, domain.Statuses[r.IntN(3)]))
		case 7, 8, 9:
			c.ask(ctx, "merge", "POST", path+"/merge", fmt.Sprintf(`{"from":%q}`, c.sub(r)))
		case 10, 11, 12:
			account, _ := c.account(ctx, sub)
			from := c.sub(r)
			if n := len(account.CombinedFrom); n > 0 {
				from = account.CombinedFrom[r.IntN(n)].Sub
			}
			c.ask(ctx, "unmerge", "POST", path+"/unmerge", fmt.Sprintf(`{"sub":%q}`, from))
		case 13, 14:
			c.ask(ctx, "login", "PATCH", path+"/custom-fields", fmt.Sprintf(`{"login":%q}`, name))
		case 15:
			c.ask(ctx, "badge", "PATCH", path+"/custom-fields", fmt.Sprintf(`{"badge":%q}`, name))
		case 16:
			c.ask(ctx, "unset", "PATCH", path+"/custom-fields", []string{`{"login":null}`, `{"badge":null}`}[r.IntN(2)])
		case 17, 18:
			c.ask(ctx, "consent", "POST", path+"/consents", fmt.Sprintf(`{"consentId":"news","version":1,"status":%q}`, domain.ConsentStatuses[r.IntN(3)]))
		case 19:
			c.ask(ctx, "plan", "POST", path+"/schedules", fmt.Sprintf(`{"kind":"status_change","targetStatus":"DECLINED","dueTime":%q}`, soon()))
		case 20:
			c.ask(ctx, "postpone", "PATCH", path+"/schedules/"+schedule(), fmt.Sprintf(`{"dueTime":%q}`, soon()))
		case 21:
			c.ask(ctx, "cancel", "DELETE", path+"/schedules/"+schedule(), "")
		case 22:
			grace := []string{"?grace=48h", "?grace=48h", "?grace=48h", "?grace=1s", "?immediate=true"}[r.IntN(5)]
			c.ask(ctx, "delete", "DELETE", path+grace, "")
		case 23:
			c.ask(ctx, "restore", "DELETE", path+"/deletion", "")
		}
	}
}

// ask sends a change. The server may refuse it by a rule, but must not fail.
func (c *contest) ask(ctx context.Context, what, method, path, body string) {
	response, text, err := c.p.do(ctx, method, path, body)
	count := func(m map[string]int) {
		c.mu.Lock()
		defer c.mu.Unlock()
		m[what]++
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		c.fail("%s %s: %v", method, path, err)
	case response.StatusCode < 300:
		count(c.changed)
	case response.StatusCode >= 500:
		c.fail("%s %s %s: %s %s", method, path, body, response.Status, text)
	default:
		count(c.refused)
		if response.StatusCode == http.StatusGone {
			c.replace(ctx, strings.Split(path, "/")[3])
		}
	}
}

func (c *contest) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.wrong.CompareAndSwap(nil, &text)
}

func (c *contest) account(ctx context.Context, sub string) (account domain.Account, found bool) {
	response, text, err := c.p.do(ctx, "GET", "/v1/accounts/"+sub, "")
	if err != nil || response.StatusCode != 200 {
		return account, false
	}
	if err := json.Unmarshal(text, &account); err != nil {
		c.fail("GET %s: %v", sub, err)
	}
	return account, true
}

// settled waits until no planned schedule is due, and returns the accounts that
// exist.
func (c *contest) settled(t *testing.T) map[string]domain.Account {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	for {
		accounts := map[string]domain.Account{}
		due := false
		for _, sub := range c.subs {
			account, found := c.account(ctx, sub)
			if !found {
				continue
			}
			accounts[sub] = account
			for _, s := range account.Schedules {
				due = due || s.State == domain.SchedulePending && time.Until(s.DueTime) < time.Hour
			}
		}
		if !due {
			return accounts
		}
		if ctx.Err() != nil {
			t.Fatal("due schedules were not executed")
		}
	}
}

// lookup looks an identifier up.
func (c *contest) lookup(t *testing.T, u domain.UserID) (status int, answer string) {
	t.Helper()
	body := map[string]string{"identifier": u.Value, "type": string(u.Type)}
	if u.Type == domain.KindProviderUserID {
		body["provider"] = u.Provider
	}
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	response, found, err := c.p.do(t.Context(), "POST", "/v1/lookup", string(text))
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(found)
}

// check checks all accounts.
func (c *contest) check(t *testing.T) {
	t.Helper()
	leads := map[string]string{}
	accounts := c.settled(t)
	root := func(sub string) string {
		for accounts[sub].CombinedInto != "" {
			sub = accounts[sub].CombinedInto
		}
		return sub
	}
	for sub, account := range accounts {
		badge := "badge " + strings.ToLower(string(account.CustomFields["badge"]))
		if other, ok := leads[badge]; ok && account.CustomFields["badge"] != nil && root(other) != root(sub) {
			t.Errorf("%s and %s have the same badge", sub, other)
		}
		leads[badge] = sub
		c.once(t, sub)
		if account.Status == domain.StatusCombined {
			survivor, ok := accounts[account.CombinedInto]
			if !ok || len(account.Identities) > 0 {
				t.Errorf("%s is COMBINED into %q and has %d identities", sub, account.CombinedInto, len(account.Identities))
			}
			knows := survivor.Status == domain.StatusCombined
			for _, from := range survivor.CombinedFrom {
				knows = knows || from.Sub == sub
			}
			if !knows {
				t.Errorf("%s is COMBINED into an account that does not list it", sub)
			}
			continue
		}
		if len(account.UserIDs) == 0 {
			t.Errorf("%s has no identifier", sub)
		}
		for _, u := range account.UserIDs {
			key := string(u.Type) + " " + u.Key()
			if other, ok := leads[key]; ok && other != sub {
				t.Errorf("a %s belongs to %s and to %s", u.Type, sub, other)
			}
			leads[key] = sub
			if status, answer := c.lookup(t, u); status != 200 || !strings.Contains(answer, `"sub":"`+sub+`"`) {
				t.Errorf("looking up a %s of %s finds another account: %s", u.Type, sub, answer)
			}
		}
	}
	// Each contested identifier belongs to one account or to none.
	for n := range 12 {
		for _, u := range []domain.UserID{{Type: domain.KindEmail, Value: fmt.Sprintf("shared.%d@example.com", n)},
			{Type: domain.KindUsername, Value: fmt.Sprintf("shared.%d", n)}, {Type: domain.KindProviderUserID, Value: fmt.Sprint(n), Provider: "google"}} {
			want := http.StatusOK
			if leads[string(u.Type)+" "+u.Key()] == "" {
				want = http.StatusNotFound
			}
			if status, answer := c.lookup(t, u); status != want {
				t.Errorf("looking up a %s: %d, want %d: %s", u.Type, status, want, answer)
			}
		}
	}
	for sub := range c.erased {
		if response, _, err := c.p.do(t.Context(), "GET", "/v1/accounts/"+sub, ""); err != nil || response.StatusCode != http.StatusGone {
			t.Errorf("erased %s: %v, %v", sub, response, err)
		}
	}
}

// once checks that each schedule of an account ended at most once.
func (c *contest) once(t *testing.T, sub string) {
	t.Helper()
	ends := map[string]int{}
	for _, x := range c.p.history(t, sub) {
		if x.Type == domain.TypeOf(domain.ScheduleExecuted{}) || x.Type == domain.TypeOf(domain.ScheduleCancelled{}) {
			ends[x.Data.ScheduleID]++
		}
	}
	for id, n := range ends {
		if n > 1 {
			t.Errorf("schedule %s of %s ended %d times", id, sub, n)
		}
	}
}
