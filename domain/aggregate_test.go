package domain

import (
	"context"
	"fmt"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/eventstore"
)

// outcome is what the four kinds of commands have in common.
type outcome struct {
	state    string // what the command is about, in one word
	events   int
	repeated bool
}

// kinds are commands on each kind of state, all to the same pattern: create
// makes an object, change changes it, end ends it.
var kinds = []struct {
	name              string
	create            func(l *Ledger, t *testing.T, r Request) (outcome, error)
	change            func(l *Ledger, t *testing.T, r Request) (outcome, error)
	end               func(l *Ledger, t *testing.T, r Request) (outcome, error)
	changed, notFound string
}{
	{
		"accounts", onAccount(create("ada@example.com")), onAccount(SetStatus{Status: StatusDeclined}),
		onAccount(ScheduleAccountDeletion{ScheduleID: "s"}), string(StatusDeclined), string(CodeAccountNotFound),
	},
	{
		"configuration", onConfig(PutScheduleSetup{SetupID: "s", Kind: ScheduleReminder, OffsetSeconds: 86400, ReminderNo: 1}),
		onConfig(PutScheduleSetup{SetupID: "s", Kind: ScheduleReminder, OffsetSeconds: 90000, ReminderNo: 1}),
		onConfig(DeleteScheduleSetup{SetupID: "s"}), "90000", string(CodeScheduleSetupNotFound),
	},
	{
		"API keys", onKey(CreateAPIKey{"k", APIKeySettings{Name: "first", Scopes: []string{"accounts:read"}}}),
		onKey(UpdateAPIKey{"k", APIKeySettings{Name: "second", Scopes: []string{"accounts:read"}}}),
		onKey(RevokeAPIKey{"k"}), "second", string(CodeAPIKeyNotFound),
	},
	{
		"webhooks", onWebhook(CreateWebhook{URL: "https://crm.example/", Events: []string{"USER_*"}, Format: FormatStandard, Payload: PayloadFull}),
		onWebhook(SetWebhookState{State: WebhookPaused}), onWebhook(DeleteWebhook{}), string(WebhookPaused), string(CodeWebhookNotFound),
	},
}

func onAccount(cmd Command) func(*Ledger, *testing.T, Request) (outcome, error) {
	return func(l *Ledger, t *testing.T, r Request) (outcome, error) {
		got, err := l.Execute(t.Context(), r, "a", cmd)
		return outcome{string(got.State.Status), len(got.Events), got.Repeated}, err
	}
}

func onConfig(cmd ConfigCommand) func(*Ledger, *testing.T, Request) (outcome, error) {
	return func(l *Ledger, t *testing.T, r Request) (outcome, error) {
		got, err := l.Configure(t.Context(), r, cmd)
		if err != nil {
			return outcome{}, err
		}
		return outcome{fmt.Sprint(got.State.ScheduleSetups["s"].OffsetSeconds), len(got.Events), got.Repeated}, nil
	}
}

func onKey(cmd APIKeyCommand) func(*Ledger, *testing.T, Request) (outcome, error) {
	return func(l *Ledger, t *testing.T, r Request) (outcome, error) {
		got, err := l.ChangeAPIKey(t.Context(), r, cmd)
		if err != nil {
			return outcome{}, err
		}
		key, _ := got.State.Get("k")
		return outcome{key.Name, len(got.Events), got.Repeated}, nil
	}
}

func onWebhook(cmd WebhookCommand) func(*Ledger, *testing.T, Request) (outcome, error) {
	return func(l *Ledger, t *testing.T, r Request) (outcome, error) {
		got, err := l.ChangeWebhook(t.Context(), r, "w", cmd)
		return outcome{string(got.State.State), len(got.Events), got.Repeated}, err
	}
}

// TestPipeline holds that repetition, precondition, dry run and Prepare mean the
// same for every kind of command.
func TestPipeline(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			l := newLedger(t)
			head := func() eventstore.Position {
				position, err := l.log.Head(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return position
			}
			must := func(got outcome, err error) outcome {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
				return got
			}
			refused := func(what string, want Code, err error) {
				t.Helper()
				if CodeOf(err) != want {
					t.Errorf("%s: %v, want %s", what, err, want)
				}
			}
			// expecting puts a precondition into a request.
			expecting := func(r Request, at eventstore.Revision) Request {
				r.Expected = &at
				return r
			}

			prepared := 0
			prepare := func(r Request) Request {
				r.Prepare = func(context.Context) error { prepared++; return nil }
				return r
			}
			dry := prepare(by("dry", "h"))
			dry.DryRun = true
			if got := must(kind.create(l, t, dry)); got.events != 1 || head() != 0 || prepared != 0 {
				t.Errorf("a dry run: %+v, head %d, prepared %d times; want one event and nothing stored", got, head(), prepared)
			}
			_, err := kind.end(l, t, expecting(by("", ""), 7))
			refused("a precondition on what is not there", Code(kind.notFound), err)

			first := must(kind.create(l, t, prepare(by("c1", "h1"))))
			if first.events != 1 || first.repeated || prepared != 1 {
				t.Errorf("the first command: %+v, prepared %d times", first, prepared)
			}
			_, err = kind.change(l, t, prepare(expecting(by("c2", "h2"), 7)))
			refused("another revision", CodeStaleRevision, err)
			changed := must(kind.change(l, t, expecting(by("c2", "h2"), 0)))
			if changed.state != kind.changed || changed.events == 0 {
				t.Errorf("the change: %+v", changed)
			}
			if again := must(kind.change(l, t, by("c3", "h3"))); again.events != 0 || again.repeated {
				t.Errorf("a change to what is: %+v, want no event", again)
			}
			must(kind.end(l, t, by("c4", "h4")))

			// Whatever happened since, and after a restart, a repetition gets the
			// first outcome, whatever it expects, and stores nothing.
			for _, restarted := range []bool{false, true} {
				if restarted {
					l = NewLedger(LedgerConfig{Log: l.log, Codec: l.codec})
				}
				before := head()
				prepared = 0
				if got := must(kind.create(l, t, by("c1", "h1"))); got != (outcome{first.state, 1, true}) {
					t.Errorf("restarted %t: the creation again: %+v, want %s", restarted, got, first.state)
				}
				if got := must(kind.change(l, t, prepare(expecting(by("c2", "h2"), 9)))); got != (outcome{changed.state, changed.events, true}) {
					t.Errorf("restarted %t: the change again: %+v, want %+v", restarted, got, changed)
				}
				if got := must(kind.change(l, t, by("c3", "h3"))); got.state != kind.changed || !got.repeated {
					t.Errorf("restarted %t: what changed nothing, again: %+v", restarted, got)
				}
				_, err = kind.change(l, t, prepare(by("c2", "other")))
				refused("another request under the id", CodeIdempotencyKeyReused, err)
				if head() != before || prepared != 0 {
					t.Errorf("restarted %t: repetitions stored %d events, and prepared %d times", restarted, head()-before, prepared)
				}
			}
		})
	}
}

// TestRepeatForeign holds that a command is recognised when its digest was sealed
// with the data of an account that was erased since.
func TestRepeatForeign(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	mustExecute(t, l, by("", ""), "a", create("ada@example.com"))
	mustExecute(t, l, by("", ""), "b", create("bob@example.com"))
	merged := mustExecute(t, l, by("c1", "h1"), "a", MergeAccount{From: "b"})
	mustExecute(t, l, by("", ""), "a", UnmergeAccount{Sub: "b"})
	b := mustExecute(t, l, by("", ""), "b", SetCustomFields{map[string]jsontext.Value{"tier": value(`"gold"`)}})
	mustExecute(t, l, by("", ""), "b", EraseAccount{})
	if err := l.codec.Keys.Destroy(t.Context(), b.State.key); err != nil {
		t.Fatal(err)
	}
	l = NewLedger(LedgerConfig{Log: l.log, Codec: l.codec})
	again := mustExecute(t, l, by("c1", "h1"), "a", MergeAccount{From: "b"})
	if !again.Repeated || again.State.Revision != merged.State.Revision {
		t.Errorf("the merge again: repeated %t, revision %d; want %d", again.Repeated, again.State.Revision, merged.State.Revision)
	}
	if _, err := l.Execute(t.Context(), by("c1", "other"), "a", MergeAccount{From: "b"}); CodeOf(err) != CodeIdempotencyKeyReused {
		t.Errorf("another request under the id: %v", err)
	}
}
