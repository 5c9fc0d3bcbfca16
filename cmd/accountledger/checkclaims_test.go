package main

import (
	"context"
	"database/sql"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
)

// TestCheckClaims checks that check names the account and the kind of a claim
// that is missing or that no account needs, and never a value.
func TestCheckClaims(t *testing.T) {
	t.Parallel()
	c := cli.Config{Data: t.TempDir()}
	l, err := openLedger(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var subs []string
	for _, email := range []string{"one@example.com", "two@example.com"} {
		sub := domain.NewID().String()
		subs = append(subs, sub)
		if _, err := l.ledger.Execute(t.Context(), domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "system", ID: "test"}}}, sub,
			domain.CreateAccount{Origin: domain.OriginCreated, Identities: []domain.NewIdentity{{IdentityID: "i", Provider: domain.ProviderSelf, Profile: domain.Profile{Email: email}}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	findings := func() string {
		t.Helper()
		r, err := openReadOnly(t.Context(), c, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer r.close()
		keys, err := r.keys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer keys.Close()
		var ch checked
		if err := ch.claims(context.Background(), r, domain.Codec{Keys: keys}, cli.Console{Out: io.Discard, Err: io.Discard}); err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, f := range append(ch.Findings, ch.Notes...) {
			all = append(all, f.Detail)
		}
		return strings.Join(all, "\n")
	}
	if got := findings(); got != "" {
		t.Fatalf("findings in a sound ledger: %s", got)
	}
	db, err := sql.Open("sqlite3", filepath.Join(c.Data, "log.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	run := func(query string, args ...any) {
		t.Helper()
		if _, err := db.Exec(query, args...); err != nil {
			t.Fatal(err)
		}
	}
	stream := `(SELECT num FROM streams WHERE name = ?)`
	run(`INSERT INTO claims (kind, key, stream) VALUES ('username', x'0102', `+stream+`)`, domain.AccountStream(subs[0]))
	run(`DELETE FROM claims WHERE kind = 'email' AND stream = `+stream, domain.AccountStream(subs[1]))
	want := "the claim of account " + subs[1] + " on its email is missing: another account could take it\n" +
		"account " + subs[0] + " has a claim on an identifier of kind username that it does not have"
	if got := findings(); got != want {
		t.Errorf("findings:\n%s\nwant:\n%s", got, want)
	}
	run(`INSERT INTO waiting (kind, key, place, stream) SELECT kind, key, 1, `+stream+` FROM claims WHERE kind = 'email'`, domain.AccountStream(subs[1]))
	if got := findings(); !strings.Contains(got, "accounts "+subs[0]+", "+subs[1]+" have the same email: it leads to none of them") {
		t.Errorf("a claim that another account waits for: %s", got)
	}
}
