package domain

import (
	"context"
	"errors"
	"iter"
	"testing"

	"accountledger/eventstore"
)

// tamperedLog is a log in which somebody has changed the events of one stream.
type tamperedLog struct {
	eventstore.Store
	stream string
}

func (l *tamperedLog) ReadProven(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	if stream != l.stream {
		return l.Store.ReadProven(ctx, stream, from)
	}
	return func(yield func(eventstore.Recorded, error) bool) {
		yield(eventstore.Recorded{}, eventstore.ErrTampered)
	}
}

// TestProven checks that commands that destroy or execute something are decided
// over proven events, even if the account is in the cache, and other commands
// over the cache.
func TestProven(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	log := &tamperedLog{Store: l.log}
	l.log = log
	mustExecute(t, l, by("", ""), "ada", create("ada@example.org"))
	mustExecute(t, l, by("", ""), "bob", create("bob@example.org"))
	log.stream = AccountStream("ada")
	for _, cmd := range []Command{
		EraseAccount{}, CompleteErasure{}, ExecuteSchedule{ScheduleID: "s"}, MergeAccount{From: "bob"}, UnmergeAccount{Sub: "bob"},
	} {
		if _, err := l.Execute(t.Context(), by("", ""), "ada", cmd); !errors.Is(err, eventstore.ErrTampered) {
			t.Errorf("%T = %v, want ErrTampered", cmd, err)
		}
	}
	// The other account of a joint command is proven as well.
	if _, err := l.Execute(t.Context(), by("", ""), "bob", MergeAccount{From: "ada"}); !errors.Is(err, eventstore.ErrTampered) {
		t.Errorf("MergeAccount of bob = %v, want ErrTampered", err)
	}
	if _, err := l.Execute(t.Context(), by("", ""), "ada", SetStatus{Status: StatusDeclined}); err != nil {
		t.Errorf("SetStatus = %v, want nil: it is decided over the cache", err)
	}
}

// TestProvenStreams checks that API keys, the configuration and webhooks are
// proven whenever they are read.
func TestProvenStreams(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	log := &tamperedLog{Store: l.log}
	l.log = log
	for stream, read := range map[string]func() error{
		APIKeyStream: func() error {
			_, err := l.LoadAPIKeys(t.Context())
			return err
		},
		ConfigStream: func() error {
			_, err := l.Config(t.Context())
			return err
		},
		WebhookStream("crm"): func() error {
			_, err := l.Webhook(t.Context(), "crm")
			return err
		},
		WebhookStream("erp"): func() error {
			_, err := l.ChangeWebhook(t.Context(), by("", ""), "erp", DeleteWebhook{})
			return err
		},
	} {
		if log.stream = stream; !errors.Is(read(), eventstore.ErrTampered) {
			t.Errorf("%s was read without proof", stream)
		}
	}
}
