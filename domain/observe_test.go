package domain

import (
	"context"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"accountledger/eventstore/seal"
)

// TestObserve: whoever watches over the ledger is told of each command, by its
// type and what came of it and no more.
func TestObserve(t *testing.T) {
	t.Parallel()
	l := open(t, t.TempDir(), seal.NewMaster())
	var told []Executed
	l.observe = func(_ context.Context, x Executed) { told = append(told, x) }
	sub := NewID().String()
	create := CreateAccount{Origin: OriginCreated, Identities: []NewIdentity{{IdentityID: NewID().String(), Provider: ProviderSelf, Profile: adaProfile}}}
	dry := by("", "")
	dry.DryRun = true
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	set := SetCustomFields{map[string]jsontext.Value{"tier": jsontext.Value(`"gold"`)}}
	hook := NewID().String()
	for _, ask := range []func() error{
		func() error { _, err := l.Execute(t.Context(), dry, sub, create); return err },
		func() error { _, err := l.Execute(t.Context(), by("", ""), sub, create); return err },
		func() error { _, err := l.Execute(t.Context(), by("", ""), sub, create); return err },
		func() error {
			_, err := l.Execute(t.Context(), by("", ""), sub, SetStatus{Status: StatusVerified})
			return err
		},
		func() error { _, err := l.Execute(canceled, by("", ""), sub, set); return err },
		func() error { _, err := l.Configure(t.Context(), by("", ""), PutRole{Role: "no role"}); return err },
		func() error { _, err := l.Configure(t.Context(), by("", ""), PutRole{Role: "READER"}); return err },
		func() error {
			_, err := l.ChangeWebhook(t.Context(), by("", ""), hook, DeleteWebhook{})
			return err
		},
		func() error {
			_, err := l.ChangeAPIKey(t.Context(), by("", ""), RevokeAPIKey{KeyID: "none"})
			return err
		},
	} {
		ask() // what came of it is in told
	}
	for i := range told {
		if told[i].Duration <= 0 {
			t.Errorf("%s took no time", told[i].Command)
		}
		told[i].Duration = 0
	}
	want := []Executed{
		{"CreateAccount", OutcomeUnchanged, 0}, {"CreateAccount", OutcomeChanged, 0}, {"CreateAccount", string(CodeAccountExists), 0},
		{"SetStatus", OutcomeUnchanged, 0}, {"SetCustomFields", OutcomeCanceled, 0},
		{"PutRole", string(CodeInvalidRequest), 0}, {"PutRole", OutcomeChanged, 0},
		{"DeleteWebhook", string(CodeWebhookNotFound), 0}, {"RevokeAPIKey", string(CodeAPIKeyNotFound), 0},
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if c := l.CacheStats(); c.Accounts != 1 || c.Hits == 0 || c.Misses == 0 {
		t.Errorf("cache: %+v, want one account, hits and misses", c)
	}
}
