package domain

import (
	"fmt"
	"testing"

	"accountledger/eventstore"
	"accountledger/eventstore/seal"
)

// TestRepeatUnchanged holds that a command that changed nothing is not
// executed when it is repeated, whatever happened since.
func TestRepeatUnchanged(t *testing.T) {
	t.Parallel()
	dir, master := t.TempDir(), seal.NewMaster()
	verified := SetStatus{Status: StatusVerified}
	t.Run("first", func(t *testing.T) {
		l := open(t, dir, master)
		mustExecute(t, l, by("", ""), "a", create("ada@example.com"))
		if first := mustExecute(t, l, by("c1", "h1"), "a", verified); len(first.Events) != 0 || first.State.Revision != 0 {
			t.Fatalf("the present status: %d events, revision %d", len(first.Events), first.State.Revision)
		}
		mustExecute(t, l, by("", ""), "a", SetStatus{Status: StatusDeclined})
		role := PutRole{Role: "USER", Name: "User"}
		if _, err := l.Configure(t.Context(), by("r1", "h"), role); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Configure(t.Context(), by("", ""), PutRole{Role: "USER", Name: "Member"}); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("after a restart", func(t *testing.T) {
		l := open(t, dir, master)
		head, err := l.log.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		again := mustExecute(t, l, by("c1", "h1"), "a", verified)
		if !again.Repeated || again.State.Status != StatusVerified || again.State.Revision != 0 {
			t.Errorf("again: repeated %v, %s at %d; want VERIFIED at 0, as it was answered", again.Repeated, again.State.Status, again.State.Revision)
		}
		if _, err := l.Execute(t.Context(), by("c1", "other"), "a", verified); CodeOf(err) != CodeIdempotencyKeyReused {
			t.Errorf("another request under the id: %v", err)
		}
		config, err := l.Configure(t.Context(), by("r1", "h"), PutRole{Role: "USER", Name: "User"})
		if err != nil || !config.Repeated || config.State.Roles["USER"].Name != "User" {
			t.Errorf("the role again: repeated %v, %+v, %v", config.Repeated, config.State.Roles["USER"], err)
		}
		if now, _ := l.log.Head(t.Context()); now != head {
			t.Errorf("repetitions wrote %d events", now-head)
		}
		if a, _ := l.Account(t.Context(), "a"); a.Status != StatusDeclined {
			t.Errorf("the account is %s after repetitions", a.Status)
		}
	})
}

// TestRepeatForgotten holds that a command is recognised when the account has
// seen more since than its fold remembers.
func TestRepeatForgotten(t *testing.T) {
	t.Parallel()
	dir, master := t.TempDir(), seal.NewMaster()
	creation := create("ada@example.com")
	const later = 3
	t.Run("first", func(t *testing.T) {
		l := open(t, dir, master)
		mustExecute(t, l, by("create", "h"), "a", creation)
		for i := range maxCommands + later {
			status := []Status{StatusDeclined, StatusPending}[i%2]
			mustExecute(t, l, by(fmt.Sprint("c", i), fmt.Sprint("h", i)), "a", SetStatus{Status: status})
		}
	})
	t.Run("after a restart", func(t *testing.T) {
		l := open(t, dir, master)
		before, err := l.Account(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if len(before.commands) != maxCommands {
			t.Fatalf("the fold remembers %d commands, so this tests nothing", len(before.commands))
		}
		if again := mustExecute(t, l, by("create", "h"), "a", creation); !again.Repeated || again.State.Revision != 0 || len(again.Events) != 1 {
			t.Errorf("the creation again: repeated %v, revision %d, %d events", again.Repeated, again.State.Revision, len(again.Events))
		}
		for i := range later + 1 {
			again := mustExecute(t, l, by(fmt.Sprint("c", i), fmt.Sprint("h", i)), "a", SetStatus{Status: StatusVerified})
			if !again.Repeated || again.State.Revision != eventstore.Revision(i+1) {
				t.Errorf("command %d again: repeated %v, revision %d", i, again.Repeated, again.State.Revision)
			}
			if _, err := l.Execute(t.Context(), by(fmt.Sprint("c", i), "other"), "a", SetStatus{Status: StatusVerified}); CodeOf(err) != CodeIdempotencyKeyReused {
				t.Errorf("another request under the id of command %d: %v", i, err)
			}
		}
		if a, _ := l.Account(t.Context(), "a"); a.Revision != before.Revision {
			t.Errorf("repetitions changed the account: revision %d, then %d", before.Revision, a.Revision)
		}
	})
}

func (CommandRemembered) sample() sample {
	return sample{event: CommandRemembered{Stream: "account-0190a1b2-0000-7000-8000-000000000003", Revision: 4, Unchanged: true, KeyID: []byte{0, 255}, Request: []byte("sealed")},
		clear: "Stream Revision Unchanged KeyID Request", hidden: true}
}
