package domain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"

	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/eventstore/sqlite"
	"accountledger/eventstore/tlog"
)

// open opens a ledger over real files, closed at the test's end.
func open(t testing.TB, dir string, master seal.Master) *Ledger {
	t.Helper()
	skey := filepath.Join(dir, "log.key")
	if _, err := os.Stat(skey); err != nil {
		key, _, err := tlog.GenerateKey("accountledger/test")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(skey, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key, err := os.ReadFile(skey)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(string(key))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := seal.Open(t.Context(), seal.Config{Path: filepath.Join(dir, "keys.db"), Master: master})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	log, err := sqlite.Open(t.Context(), sqlite.Config{Dir: dir, Signer: signer, Vouch: keys.Vouch, ClaimsVersion: ClaimsVersion})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return NewLedger(LedgerConfig{Log: log, Codec: Codec{keys}})
}

func newLedger(t *testing.T) *Ledger { return open(t, t.TempDir(), seal.NewMaster()) }

// by is a request of a caller that may be repeated under id.
func by(id, hash string) Request {
	return Request{Meta: Metadata{Actor: Actor{Kind: "api-key", ID: "test"}}.WithRequest(id, hash)}
}

func create(email string) CreateAccount {
	return CreateAccount{Origin: OriginCreated, Identities: []NewIdentity{
		{IdentityID: NewID().String(), Provider: ProviderSelf, Profile: Profile{Email: email}}}}
}

func mustExecute(t *testing.T, l *Ledger, r Request, sub string, cmd Command) Result[Account] {
	t.Helper()
	result, err := l.Execute(t.Context(), r, sub, cmd)
	if err != nil {
		t.Fatalf("Execute(%T): %v", cmd, err)
	}
	return result
}

// TestExecute holds that what Execute answers is what the stream says.
func TestExecute(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	mustExecute(t, l, by("", ""), "a", create("ada@example.com"))
	mustExecute(t, l, by("", ""), "a", SetCustomFields{map[string]jsontext.Value{"tier": value(`"gold"`)}})
	got := mustExecute(t, l, by("", ""), "a", SetStatus{Status: StatusDeclined, Reason: "chargeback"})
	if got.State.Revision != 2 || got.State.Position != 3 || len(got.Events) != 1 {
		t.Errorf("revision %d, position %d, %d events; want 2, 3, 1", got.State.Revision, got.State.Position, len(got.Events))
	}
	l.cache.InvalidateAll()
	folded, err := l.Account(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	want, _ := got.State.JSON()
	data, _ := folded.JSON()
	if diff := cmp.Diff(string(want), string(data)); diff != "" {
		t.Errorf("folded anew (-answered +folded):\n%s", diff)
	}
	if unchanged := mustExecute(t, l, by("", ""), "a", SetStatus{Status: StatusDeclined}); len(unchanged.Events) != 0 || unchanged.State.Revision != 2 {
		t.Errorf("the same status again: %d events, revision %d; want none, 2", len(unchanged.Events), unchanged.State.Revision)
	}
}

func TestIdempotency(t *testing.T) {
	t.Parallel()
	dir, master := t.TempDir(), seal.NewMaster()
	t.Run("first", func(t *testing.T) {
		l := open(t, dir, master)
		mustExecute(t, l, by("c1", "h1"), "a", create("ada@example.com"))
		mustExecute(t, l, by("c2", "h2"), "a", SetStatus{Status: StatusDeclined})
		mustExecute(t, l, by("c3", "h3"), "a", SetStatus{Status: StatusVerified})
	})
	t.Run("after a restart", func(t *testing.T) {
		l := open(t, dir, master)
		for _, tt := range []struct {
			id       string
			cmd      Command
			revision eventstore.Revision
			status   Status
		}{
			{"c1", create("ada@example.com"), 0, StatusVerified},
			{"c2", SetStatus{Status: StatusDeclined}, 1, StatusDeclined},
		} {
			again := mustExecute(t, l, by(tt.id, "h"+tt.id[1:]), "a", tt.cmd)
			if !again.Repeated || again.State.Revision != tt.revision || again.State.Status != tt.status {
				t.Errorf("%s again: repeated %v, revision %d, %s; want the first outcome, revision %d, %s",
					tt.id, again.Repeated, again.State.Revision, again.State.Status, tt.revision, tt.status)
			}
		}
		if _, err := l.Execute(t.Context(), by("c2", "other"), "a", SetStatus{Status: StatusPending}); CodeOf(err) != CodeIdempotencyKeyReused {
			t.Errorf("another request under the same id: %v, want %s", err, CodeIdempotencyKeyReused)
		}
		if a, _ := l.Account(t.Context(), "a"); a.Revision != 2 {
			t.Errorf("revision %d after repetitions, want 2", a.Revision)
		}
	})
}

func TestExpectedRevision(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	mustExecute(t, l, by("", ""), "a", create("ada@example.com"))
	old := eventstore.Revision(0)
	r := by("", "")
	r.Expected = &old
	mustExecute(t, l, r, "a", SetStatus{Status: StatusDeclined})
	if _, err := l.Execute(t.Context(), r, "a", SetStatus{Status: StatusPending}); CodeOf(err) != CodeStaleRevision {
		t.Errorf("at an old revision: %v, want %s", err, CodeStaleRevision)
	}
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := by("", "")
	r.DryRun = true
	got := mustExecute(t, l, r, "a", create("ada@example.com"))
	if len(got.Events) != 1 || got.State.Status != StatusVerified {
		t.Errorf("dry run: %d events, %s; want 1, VERIFIED", len(got.Events), got.State.Status)
	}
	if head, err := l.log.Head(t.Context()); head != 0 || err != nil {
		t.Errorf("head %d, %v after a dry run, want 0", head, err)
	}
	mustExecute(t, l, by("", ""), "a", create("ada@example.com"))
}

// TestOneIdentifierOneAccount lets 64 callers create an account with one
// e-mail address at once.
func TestOneIdentifierOneAccount(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	errs := make([]error, 64)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			_, errs[i] = l.Execute(t.Context(), by("", ""), fmt.Sprint("s", i), create("Ada@Example.com"))
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case CodeOf(err) != CodeIdentifierTaken:
			t.Errorf("a loser got %v, want %s", err, CodeIdentifierTaken)
		case strings.Contains(strings.ToLower(err.Error()), "ada"):
			t.Errorf("the refusal echoes the address: %v", err)
		}
	}
	if won != 1 {
		t.Errorf("%d callers won, want 1", won)
	}
}

// TestIdentifiersMove holds that what an account gives up is free at once,
// and what it links is taken.
func TestIdentifiersMove(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	mustExecute(t, l, by("", ""), "a", create("ada@example.com"))
	mustExecute(t, l, by("", ""), "b", create("bob@example.com"))
	if _, err := l.Execute(t.Context(), by("", ""), "b", LinkIdentity{NewIdentity{IdentityID: "i", Provider: "google", ProviderUserID: "1", Profile: Profile{Email: "ADA@example.com"}}}); CodeOf(err) != CodeIdentityConflict {
		t.Errorf("linking another's address: %v, want %s", err, CodeIdentityConflict)
	}
	if _, err := l.Execute(t.Context(), by("", ""), "b", UpdateProfile{Patch: value(`{"email":"ada@example.com"}`)}); CodeOf(err) != CodeIdentifierTaken {
		t.Errorf("changing to another's address: %v, want %s", err, CodeIdentifierTaken)
	}
	mustExecute(t, l, by("", ""), "a", UpdateProfile{Patch: value(`{"email":"king@example.com"}`)})
	mustExecute(t, l, by("", ""), "b", UpdateProfile{Patch: value(`{"email":"ada@example.com"}`)})
	if _, err := l.Execute(t.Context(), by("", ""), "a", UpdateProfile{Patch: value(`{"email":"ada@example.com"}`)}); CodeOf(err) != CodeIdentifierTaken {
		t.Errorf("taking back what another has now: %v, want %s", err, CodeIdentifierTaken)
	}
}

// TestTurns lets many callers change one account at once: none is refused.
func TestTurns(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	mustExecute(t, l, by("", ""), "a", create("ada@example.com"))
	errs := make([]error, 32)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			_, errs[i] = l.Execute(t.Context(), by("", ""), "a", SetCustomFields{map[string]jsontext.Value{fmt.Sprint("f", i): value("1")}})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if a, err := l.Account(t.Context(), "a"); err != nil || a.Revision != 32 || len(a.CustomFields) != 32 {
		t.Errorf("revision %d with %d fields, %v; want 32 with 32", a.Revision, len(a.CustomFields), err)
	}
}

// TestAnotherProcess lets two ledgers with caches of their own write to one
// log: the second one's cache is old, and it notices.
func TestAnotherProcess(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	other := NewLedger(LedgerConfig{Log: l.log, Codec: l.codec})
	mustExecute(t, l, by("", ""), "a", create("ada@example.com"))
	mustExecute(t, other, by("", ""), "a", SetStatus{Status: StatusDeclined})
	got := mustExecute(t, l, by("", ""), "a", SetCustomFields{map[string]jsontext.Value{"x": value("1")}})
	if got.State.Revision != 2 || got.State.Status != StatusDeclined {
		t.Errorf("revision %d, %s; want 2, DECLINED", got.State.Revision, got.State.Status)
	}
}

func TestWebhook(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	cmd := CreateWebhook{URL: "https://crm.example/hook", Events: []string{"USER_*"}, Format: FormatStandard, Payload: PayloadFull}
	got, err := l.ChangeWebhook(t.Context(), by("", ""), "w", cmd)
	if err != nil || got.Position() != 1 || got.State.State != WebhookEnabled {
		t.Fatalf("create: %+v, %v", got, err)
	}
	if got, err = l.ChangeWebhook(t.Context(), by("", ""), "w", SetWebhookState{WebhookPaused, "maintenance"}); err != nil || got.State.State != WebhookPaused {
		t.Fatalf("pause: %+v, %v", got, err)
	}
	if _, err = l.ChangeWebhook(t.Context(), by("", ""), "w", DeleteWebhook{}); err != nil {
		t.Fatal(err)
	}
	if got, err = l.ChangeWebhook(t.Context(), by("", ""), "w", DeleteWebhook{}); err != nil || len(got.Events) != 0 || got.Position() != 3 {
		t.Errorf("delete again: %+v, %v; want no event", got, err)
	}
	if _, err = l.ChangeWebhook(t.Context(), by("", ""), "w", SetWebhookState{State: WebhookEnabled}); CodeOf(err) != CodeWebhookNotFound {
		t.Errorf("resume a deleted one: %v, want %s", err, CodeWebhookNotFound)
	}
	bad := CreateWebhook{URL: "ftp://user@crm.example", Events: []string{"NOBODY"}, Format: "fax", Payload: "all"}
	_, err = l.ChangeWebhook(t.Context(), by("", ""), "w2", bad)
	refused, ok := errors.AsType[*Error](err)
	if !ok || len(refused.Faults) != 4 {
		t.Errorf("create with four faults: %v", err)
	}
}

// TestSealed holds that nothing of a person is in what a store sees clear.
func TestSealed(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	cmd := create("canary@example.com")
	cmd.Identities[0].Profile.GivenName = "Canary"
	cmd.CustomFields = map[string]jsontext.Value{"secret": value(`"canary"`)}
	mustExecute(t, l, by("c", "canary-digest"), "a", cmd)
	mustExecute(t, l, by("", ""), "a", SetStatus{Status: StatusDeclined, Reason: "canary reason"})
	mustExecute(t, l, by("", ""), "a", UpdateProfile{Patch: value(`{"family_name":"canary"}`)})
	n := 0
	for rec, err := range l.log.ReadStream(t.Context(), AccountStream("a"), 0) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		if clear := strings.ToLower(rec.Type + rec.Actor + string(rec.Clear) + string(rec.Sealed)); strings.Contains(clear, "canary") {
			t.Errorf("%s shows personal data: %s", rec.Type, rec.Clear)
		}
	}
	if n != 3 {
		t.Errorf("%d events, want 3", n)
	}
}

// TestErased holds that an account whose key is destroyed still folds.
func TestErased(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	got := mustExecute(t, l, by("", ""), "a", create("ada@example.com"))
	if err := l.codec.Keys.Destroy(t.Context(), got.State.key); err != nil {
		t.Fatal(err)
	}
	l.cache.InvalidateAll()
	a, err := l.Account(t.Context(), "a")
	if err != nil || a.Status != StatusVerified || len(a.Identities) != 1 || len(a.UserIDs) != 0 {
		t.Errorf("account without its key: %+v, %v; want its clear fields only", a, err)
	}
	if _, err := l.Execute(t.Context(), by("", ""), "a", UpdateProfile{Patch: value(`{"email":"x@example.com"}`)}); !errors.Is(err, seal.ErrErased) {
		t.Errorf("new personal data: %v, want %v", err, seal.ErrErased)
	}
}
