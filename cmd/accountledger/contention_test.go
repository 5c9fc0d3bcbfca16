package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
)

// contention is how long TestContention lets clients get in each other's way.
// ACCOUNTLEDGER_TEST_CONTENTION sets another time, like 30s.
func contention(t *testing.T) time.Duration {
	if d, err := time.ParseDuration(os.Getenv("ACCOUNTLEDGER_TEST_CONTENTION")); err == nil {
		return d
	}
	if testing.Short() {
		return 2 * time.Second
	}
	return 8 * time.Second
}

// TestContention lets 32 clients change 8 accounts at once, with identifiers
// that they all want, and then looks at what must be true whatever happened:
// each identifier leads to one account, each account has an identifier, each
// COMBINED account a survivor; the views equal a rebuild, and the log verifies.
func TestContention(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	p := startServer(t, data)
	c := &contest{p: p}
	for i := range 8 {
		c.subs = append(c.subs, p.create(t, fmt.Sprintf("person.%d@example.com", i)))
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
	t.Logf("%d changes, %d refusals", c.changed.Load(), c.refused.Load())
	if c.changed.Load() == 0 || c.refused.Load() == 0 {
		t.Error("the clients were not in each other's way")
	}
	c.check(t)
	checkLedger(t, 0, data)
}

// contest is what the clients share.
type contest struct {
	p                *process
	changed, refused atomic.Int64
	wrong            atomic.Pointer[string] // the first answer that should not be

	mu   sync.Mutex
	subs []string
}

func (c *contest) sub(r *rand.Rand) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	// The last eight: those that were deleted for good are replaced.
	return c.subs[len(c.subs)-8+r.IntN(8)]
}

// play asks one random change after the other until ctx is done.
func (c *contest) play(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil && c.wrong.Load() == nil {
		sub := c.sub(r)
		path := "/v1/accounts/" + sub
		email := fmt.Sprintf("shared.%d@example.com", r.IntN(12))
		identity := func() string {
			account, _ := c.account(ctx, sub)
			if len(account.Identities) == 0 {
				return "none"
			}
			return account.Identities[r.IntN(len(account.Identities))].IdentityID
		}
		switch r.IntN(8) {
		case 0:
			c.ask(ctx, "POST", path+"/identities", fmt.Sprintf(`{"provider":"google","providerUserId":"%d","email":%q}`, r.IntN(12), email))
		case 1:
			c.ask(ctx, "DELETE", path+"/identities/"+identity(), "")
		case 2:
			c.ask(ctx, "PATCH", path+"/identities/"+identity(), fmt.Sprintf(`{"email":%q}`, email))
		case 3:
			c.ask(ctx, "PUT", path+"/status", fmt.Sprintf(`{"userStatus":%q}`, domain.Statuses[r.IntN(3)]))
		case 4, 5:
			c.ask(ctx, "POST", path+"/merge", fmt.Sprintf(`{"from":%q}`, c.sub(r)))
		case 6, 7:
			account, _ := c.account(ctx, sub)
			from := c.sub(r)
			if n := len(account.CombinedFrom); n > 0 {
				from = account.CombinedFrom[r.IntN(n)].Sub
			}
			c.ask(ctx, "POST", path+"/unmerge", fmt.Sprintf(`{"sub":%q}`, from))
		}
	}
}

// ask sends a change, which may be refused by rule and not otherwise.
func (c *contest) ask(ctx context.Context, method, path, body string) {
	response, text, err := c.p.do(ctx, method, path, body)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		c.fail("%s %s: %v", method, path, err)
	case response.StatusCode < 300:
		c.changed.Add(1)
	case response.StatusCode < 500:
		c.refused.Add(1)
	default:
		c.fail("%s %s %s: %s %s", method, path, body, response.Status, text)
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

// check looks at all accounts.
func (c *contest) check(t *testing.T) {
	t.Helper()
	leads := map[string]string{}
	accounts := map[string]domain.Account{}
	for _, sub := range c.subs {
		if account, found := c.account(t.Context(), sub); found {
			accounts[sub] = account
		}
	}
	for sub, account := range accounts {
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
				t.Errorf("%s is COMBINED into an account that does not know of it", sub)
			}
			continue
		}
		if len(account.UserIDs) == 0 {
			t.Errorf("%s has no identifier", sub)
		}
		for _, u := range account.UserIDs {
			key := string(u.Type) + " " + u.Key()
			if other, ok := leads[key]; ok && other != sub {
				t.Errorf("a %s leads to %s and to %s", u.Type, sub, other)
			}
			leads[key] = sub
			body := map[string]string{"identifier": u.Value, "type": string(u.Type)}
			if u.Type == domain.KindProviderUserID {
				body["provider"] = u.Provider
			}
			text, err := json.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			response, answer, err := c.p.do(t.Context(), "POST", "/v1/lookup", string(text))
			if err != nil || response.StatusCode != 200 || !strings.Contains(string(answer), `"sub":"`+sub+`"`) {
				t.Errorf("a %s of %s leads elsewhere: %s %v", u.Type, sub, answer, err)
			}
		}
	}
}
