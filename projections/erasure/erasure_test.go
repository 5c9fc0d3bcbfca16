package erasure

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/eventstore/sqlite"
	"accountledger/eventstore/tlog"
	"accountledger/projections"
	"accountledger/projections/webhooks"
)

// world is a ledger with real files that can be closed and reopened.
type world struct {
	dir      string
	master   seal.Master
	signer   note.Signer
	verifier note.Verifier
	logger   *slog.Logger                         // Config.Logger of the eraser
	after    func(time.Duration) <-chan time.Time // Config.After of the eraser
	tampered bool                                 // the eraser's log cannot prove its events, and Run returns that
}

// tamperedLog is a log that cannot prove its events.
type tamperedLog struct{ eventstore.Store }

func (tamperedLog) ReadProven(context.Context, string, eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		yield(eventstore.Recorded{}, eventstore.ErrTampered)
	}
}

func newWorld(t *testing.T) *world {
	key, vkey, err := tlog.GenerateKey("accountledger/test")
	check(t, err)
	signer, err := note.NewSigner(key)
	check(t, err)
	verifier, err := note.NewVerifier(vkey)
	check(t, err)
	return &world{dir: t.TempDir(), master: seal.NewMaster(), signer: signer, verifier: verifier}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type running struct {
	*domain.Ledger
	log    *sqlite.Store
	views  *projections.Views
	eraser *Eraser
	ended  chan struct{} // closed when the eraser's Run has returned
	close  func()
}

// open opens the ledger and runs an eraser, which stops at the first error of
// done. done may be nil.
func (w *world) open(t *testing.T, done func(step string) error) running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	keys, err := seal.Open(ctx, seal.Config{Path: filepath.Join(w.dir, "keys.db"), Master: w.master})
	check(t, err)
	log, err := sqlite.Open(ctx, sqlite.Config{Dir: w.dir, Signer: w.signer, Vouch: keys.Vouch})
	check(t, err)
	codec := domain.Codec{Keys: keys}
	views, err := projections.Open(ctx, projections.Config{Path: filepath.Join(w.dir, "views.db"), Log: log, Codec: codec})
	check(t, err)
	ledger := domain.NewLedger(domain.LedgerConfig{Log: log, Codec: codec})
	hooks, err := webhooks.Open(ctx, webhooks.Config{Path: filepath.Join(w.dir, "delivery.db"), Log: log, Codec: codec, Ledger: ledger, Keys: keys,
		Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	check(t, err)
	erased := eventstore.Store(log)
	if w.tampered {
		erased = tamperedLog{log}
	}
	e := New(Config{Ledger: ledger, Log: erased, Keys: keys, Views: views, Webhooks: hooks, Logger: w.logger, After: w.after})
	erasing, kill := context.WithCancel(ctx)
	if done != nil {
		e.done = func(step string) error {
			err := done(step)
			if err != nil {
				kill()
			}
			return err
		}
	}
	ended := make(chan struct{})
	var loops sync.WaitGroup
	loops.Go(func() { views.Run(ctx) })
	loops.Go(func() { hooks.Run(ctx) })
	loops.Go(func() {
		defer close(ended)
		if err := e.Run(erasing); errors.Is(err, eventstore.ErrTampered) != w.tampered || err != nil && !w.tampered {
			t.Errorf("Run = %v", err)
		}
	})
	r := running{ledger, log, views, e, ended, sync.OnceFunc(func() {
		cancel()
		loops.Wait()
		kill()
		hooks.Close()
		views.Close()
		log.Close()
		keys.Close()
	})}
	t.Cleanup(r.close)
	return r
}

func (r running) do(t *testing.T, sub string, cmd domain.Command) domain.Result[domain.Account] {
	t.Helper()
	result, err := r.Execute(t.Context(), domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "system", ID: "test"}}}, sub, cmd)
	if err != nil {
		t.Fatalf("%T of %s: %v", cmd, sub, err)
	}
	return result
}

// mail returns the account's address. No other account's address contains it.
func mail(sub string) string { return sub + ".zebra@example.com" }

func (r running) create(t *testing.T, sub string) {
	t.Helper()
	r.do(t, sub, domain.CreateAccount{Origin: domain.OriginCreated, Identities: []domain.NewIdentity{
		{IdentityID: "i-" + sub, Provider: domain.ProviderSelf, Profile: domain.Profile{Email: mail(sub), GivenName: "Ünïque" + sub}}}})
}

// secrets returns byte strings that no file may contain after the account is
// erased: its address, its name as the search index stores it, the parts sealed
// under its key in its own and these streams, and its wrapped key. It checks that
// a file contains each of them now.
func (w *world) secrets(t *testing.T, r running, sub string, streams ...string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{"address": []byte(mail(sub)), "search term": []byte("n=unique" + sub)}
	var key eventstore.KeyID
	for _, s := range append([]string{sub}, streams...) {
		for rec, err := range r.log.ReadStream(t.Context(), domain.AccountStream(s), 0) {
			check(t, err)
			if rec.Sealed != nil && key == (eventstore.KeyID{}) {
				key = rec.KeyID
			}
			if rec.Sealed != nil && rec.KeyID == key {
				all[fmt.Sprint("sealed part of ", s, " ", rec.Revision)] = bytes.Clone(rec.Sealed)
			}
		}
	}
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(w.dir, "keys.db")+"?mode=ro")
	check(t, err)
	defer db.Close()
	var wrapped []byte
	check(t, db.QueryRow(`SELECT wrapped FROM keys WHERE slot = ?`, int64(binary.BigEndian.Uint64(key[:]))).Scan(&wrapped))
	all["wrapped key"] = wrapped
	a, err := r.Account(t.Context(), sub)
	check(t, err)
	for _, view := range []string{projections.AccountsView, projections.SearchView} {
		check(t, r.views.Await(t.Context(), view, a.Position))
	}
	for name := range all {
		if files := w.containing(t, all[name]); len(files) == 0 {
			t.Fatalf("no file contains the %s of %s before the erasure, so the test would prove nothing", name, sub)
		}
	}
	return all
}

// containing returns the files that contain secret.
func (w *world) containing(t *testing.T, secret []byte) (files []string) {
	t.Helper()
	for _, pattern := range []string{"*.db", "*-wal", "*-shm"} {
		names, err := filepath.Glob(filepath.Join(w.dir, pattern))
		check(t, err)
		for _, name := range names {
			content, err := os.ReadFile(name)
			check(t, err)
			if bytes.Contains(content, secret) {
				files = append(files, filepath.Base(name))
			}
		}
	}
	return files
}

// gone checks that no file contains any of the secrets.
func (w *world) gone(t *testing.T, sub string, secrets map[string][]byte) {
	t.Helper()
	for name, secret := range secrets {
		if files := w.containing(t, secret); len(files) > 0 {
			t.Errorf("%s of %s is still in %v", name, sub, files)
		}
	}
}

func (w *world) verify(t *testing.T, r running) {
	t.Helper()
	report, err := r.log.Verify(t.Context(), sqlite.Trust{Verifiers: []note.Verifier{w.verifier}, Erasures: domain.StoredTypes(domain.AccountErased{}), ErasedKey: domain.ErasedKey}, nil)
	check(t, err)
	if !report.OK() {
		t.Errorf("verify: %v", report.Faults)
	}
}

// await waits until the erasure is completed.
func (r running) await(t *testing.T, sub string) {
	t.Helper()
	if err := r.eraser.Await(t.Context(), sub); err != nil {
		t.Fatalf("Await(%s) = %v", sub, err)
	}
}

// TestErase checks that no file contains data of erased accounts, that all other
// accounts remain readable, and that repeating an erasure appends no event.
func TestErase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.open(t, nil)
	const accounts, erased = 40, 8
	subs := make([]string, accounts)
	for i := range subs {
		subs[i] = fmt.Sprintf("a%02d", i)
		r.create(t, subs[i])
	}
	rand.Shuffle(len(subs), func(i, j int) { subs[i], subs[j] = subs[j], subs[i] })
	secrets := map[string]map[string][]byte{}
	for _, sub := range subs[:erased] {
		secrets[sub] = w.secrets(t, r, sub)
	}
	for _, sub := range subs[:erased] {
		r.do(t, sub, domain.EraseAccount{})
	}
	for _, sub := range subs[:erased] {
		r.await(t, sub)
		w.gone(t, sub, secrets[sub])
	}
	w.verify(t, r)
	head, err := r.log.Head(t.Context())
	check(t, err)
	r.close()

	check(t, os.Remove(filepath.Join(w.dir, "views.db"))) // so that the view applies all erasures again
	r = w.open(t, nil)
	for _, sub := range subs[:erased] {
		r.await(t, sub)
		w.gone(t, sub, secrets[sub])
		check(t, r.eraser.complete(t.Context(), open(t, r, sub)))
	}
	if got, err := r.log.Head(t.Context()); err != nil || got != head {
		t.Errorf("head after repeating the erasures = %d, %v, want %d", got, err, head)
	}
	for _, sub := range subs[erased:] {
		if a, err := r.Account(t.Context(), sub); err != nil || a.UserIDs[0].Value != mail(sub) {
			t.Errorf("account %s = %v, %v", sub, a.UserIDs, err)
		}
	}
	r.do(t, "new", domain.CreateAccount{Origin: domain.OriginCreated, Identities: []domain.NewIdentity{
		{IdentityID: "i", Provider: domain.ProviderSelf, Profile: domain.Profile{Email: mail(subs[0])}}}})
}

// open returns the erasure of sub as the view returned it.
func open(t *testing.T, r running, sub string) projections.Erasure {
	t.Helper()
	for x, err := range r.History(t.Context(), sub, 0) {
		check(t, err)
		if e, ok := x.Event.(domain.AccountErased); ok {
			return projections.Erasure{Sub: sub, KeyID: e.KeyID, Position: x.Position}
		}
	}
	t.Fatalf("%s was not erased", sub)
	return projections.Erasure{}
}

// TestKilled checks that the next start completes an erasure that was interrupted
// after any of its steps, and records the completion once.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, after := range []string{"", stepKey, stepLog, stepViews, stepDelivery, stepDone} {
		t.Run("after "+after, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			killed := errors.New("killed")
			r := w.open(t, func(step string) error {
				if step == after {
					return killed
				}
				return nil
			})
			r.create(t, "a")
			secrets := w.secrets(t, r, "a")
			if after == "" { // before the first step
				r.close()
				r = w.open(t, func(string) error { return killed })
			}
			r.do(t, "a", domain.EraseAccount{})
			<-r.ended
			r.close()
			r = w.open(t, nil)
			r.await(t, "a")
			w.gone(t, "a", secrets)
			w.verify(t, r)
			completed := 0
			for x, err := range r.History(t.Context(), "a", 0) {
				check(t, err)
				if _, ok := x.Event.(domain.ErasureCompleted); ok {
					completed++
				}
			}
			if completed != 1 {
				t.Errorf("completed %d times, want once", completed)
			}
		})
	}
}

// TestCombined checks that erasing an account also removes its data from the
// streams of accounts it was merged into and separated from.
func TestCombined(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.open(t, nil)
	for _, sub := range []string{"a", "b", "c"} {
		r.create(t, sub)
	}
	r.do(t, "b", domain.MergeAccount{From: "c"})
	r.do(t, "a", domain.MergeAccount{From: "b"}) // copies c's data, too
	r.do(t, "a", domain.UnmergeAccount{Sub: "b"})
	r.do(t, "b", domain.UnmergeAccount{Sub: "c"})
	secrets := w.secrets(t, r, "c", "a", "b")
	if len(secrets) < 5 {
		t.Fatalf("only %d secrets: the other streams have no data of c", len(secrets))
	}
	r.do(t, "c", domain.EraseAccount{})
	r.await(t, "c")
	w.gone(t, "c", secrets)
	w.verify(t, r)
	for _, sub := range []string{"a", "b"} {
		if a, err := r.Account(t.Context(), sub); err != nil || len(a.UserIDs) != 1 || a.UserIDs[0].Value != mail(sub) {
			t.Errorf("account %s = %v, %v; want its own address", sub, a.UserIDs, err)
		}
	}
}

// failures is a slog.Handler that sends the logged errors to a channel.
type failures chan error

func (f failures) Enabled(context.Context, slog.Level) bool { return true }
func (f failures) WithAttrs([]slog.Attr) slog.Handler       { return f }
func (f failures) WithGroup(string) slog.Handler            { return f }

func (f failures) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if err, ok := a.Value.Any().(error); ok {
			f <- err
		}
		return true
	})
	return nil
}

// TestBusy checks that an erasure is not completed while a reader keeps old pages
// in a file, and is completed when the reader has finished.
func TestBusy(t *testing.T) {
	t.Parallel()
	for file, busy := range map[string]error{"log.db": sqlite.ErrBusy, "views.db": projections.ErrBusy, "delivery.db": webhooks.ErrBusy} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			failed, retry := make(failures, 100), make(chan time.Time)
			w.logger, w.after = slog.New(failed), func(time.Duration) <-chan time.Time { return retry }
			r := w.open(t, nil)
			r.create(t, "a")
			secrets := w.secrets(t, r, "a")
			db, err := sql.Open("sqlite3", "file:"+filepath.Join(w.dir, file)+"?mode=ro")
			check(t, err)
			defer db.Close()
			reader, err := db.BeginTx(t.Context(), nil)
			check(t, err)
			defer reader.Rollback()
			var tables int
			check(t, reader.QueryRow(`SELECT count(*) FROM sqlite_schema`).Scan(&tables))

			r.do(t, "a", domain.EraseAccount{})
			if err := <-failed; !errors.Is(err, busy) {
				t.Fatalf("with a reader of %s the erasure fails with %v, want %v", file, err, busy)
			}
			if open, err := r.views.Erasures().Open(t.Context(), "a"); err != nil || !open {
				t.Errorf("Open = %v, %v, want true", open, err)
			}
			if c, err := r.eraser.Certificate(t.Context(), "a"); err != nil || !c.CompletedTime.IsZero() {
				t.Errorf("CompletedTime = %s, %v, want none", c.CompletedTime, err)
			}
			check(t, reader.Rollback())
			close(retry)
			r.await(t, "a")
			w.gone(t, "a", secrets)
			w.verify(t, r)
		})
	}
}

// alter executes statements on views.db.
func (w *world) alter(t *testing.T, statement string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite3", filepath.Join(w.dir, "views.db"))
	check(t, err)
	_, err = db.Exec(statement, args...)
	check(t, errors.Join(err, db.Close()))
}

// keyOf returns the id of the account's key, in hexadecimal.
func (r running) keyOf(t *testing.T, sub string) string {
	t.Helper()
	for rec, err := range r.log.ReadStream(t.Context(), domain.AccountStream(sub), 0) {
		check(t, err)
		return hex.EncodeToString(rec.KeyID[:])
	}
	t.Fatalf("%s has no events", sub)
	return ""
}

// TestForged checks that a row in views.db destroys nothing unless the log has
// that erasure: of that account, at that position, of that key.
func TestForged(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, alter string }{
		{"an account that was not erased", `INSERT INTO erasures_1 VALUES (1, 'ada', ?1)`},
		{"a position without an event", `INSERT INTO erasures_1 VALUES (900, 'ada', ?1)`},
		{"the position of another account's erasure", `UPDATE erasures_1 SET sub = 'ada', kid = ?1`},
		{"another account's key", `UPDATE erasures_1 SET kid = ?1`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			killed := errors.New("killed")
			r := w.open(t, func(string) error { return killed })
			r.create(t, "ada")
			r.create(t, "bob")
			key := r.keyOf(t, "ada")
			r.do(t, "bob", domain.EraseAccount{})
			<-r.ended
			r.close()
			w.alter(t, tt.alter, key)
			failed := make(failures, 100)
			w.logger = slog.New(failed)
			r = w.open(t, nil)
			select {
			case err := <-failed:
				if !errors.Is(err, errNotInLog) {
					t.Errorf("the eraser reports %v, want %v", err, errNotInLog)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("the eraser reports nothing")
			}
			r.create(t, "cy")
			r.do(t, "cy", domain.EraseAccount{})
			r.await(t, "cy")
			if len(failed) > 0 {
				t.Errorf("the eraser reports again: %v", <-failed)
			}
			r.Forget("ada")
			if a, err := r.Account(t.Context(), "ada"); err != nil || len(a.UserIDs) != 1 || a.UserIDs[0].Value != mail("ada") {
				t.Errorf("account ada = %v, %v, want its address", a.UserIDs, err)
			}
			w.verify(t, r)
		})
	}
}

// TestTampered checks that nothing is destroyed if the log cannot prove the event
// of an erasure, and that Run returns that.
func TestTampered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.open(t, func(string) error { return errors.New("killed") })
	r.create(t, "ada")
	r.close()
	w.tampered = true
	r = w.open(t, nil)
	secrets := w.secrets(t, r, "ada")
	r.do(t, "ada", domain.EraseAccount{})
	<-r.ended
	if files := w.containing(t, secrets["wrapped key"]); len(files) == 0 {
		t.Error("the key was destroyed")
	}
}

// TestSubscribers checks that a certificate has the status acknowledged for a
// receiver that has answered, and settled once the attempts are deleted.
func TestSubscribers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.open(t, nil)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	defer receiver.Close()
	request := domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "system", ID: "test"}}}
	for id, events := range map[string]string{"told": "USER_DELETED", "other": "USER_LOGIN"} {
		_, _, _, err := r.eraser.Webhooks.Create(t.Context(), request, id, webhooks.Creation{CreateWebhook: domain.CreateWebhook{
			URL: receiver.URL, Events: []string{events}, Format: domain.FormatStandard, Payload: domain.PayloadThin}})
		check(t, err)
	}
	r.create(t, "a")
	r.do(t, "a", domain.EraseAccount{})
	r.await(t, "a")
	wantStatus := func(want string) {
		t.Helper()
		for {
			c, err := r.eraser.Certificate(t.Context(), "a")
			check(t, err)
			if len(c.Subscribers) != 1 || c.Subscribers[0].WebhookID != "told" {
				t.Fatalf("subscribers: %v, want the one webhook with erasure events", c.Subscribers)
			}
			if got := c.Subscribers[0].Status; got != webhooks.StatusPending {
				if got != want {
					t.Errorf("status %s, want %s", got, want)
				}
				return
			}
		}
	}
	wantStatus(Acknowledged)
	r.close()
	db, err := sql.Open("sqlite3", filepath.Join(w.dir, "delivery.db"))
	check(t, err)
	_, err = db.Exec(`DELETE FROM attempt`) // as the server does after a month
	check(t, errors.Join(err, db.Close()))
	r = w.open(t, nil)
	wantStatus(webhooks.StatusSettled)
}
