package httpapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
)

// Command holds the headers and parameters that every command accepts.
type Command struct {
	IfMatch        string `header:"If-Match" doc:"Refuse with 412 unless the object is at the revision of this ETag; * matches any revision." example:"\"3\""`
	IdempotencyKey string `header:"Idempotency-Key" maxLength:"255" doc:"Makes the request safe to repeat: the same request of the same caller with the same key returns the first outcome, even after a restart of the server. The same key with another request is refused."`
	DryRun         bool   `query:"dry_run" doc:"Return the events the command would append, and the object after them, without storing anything."`
}

// request translates the headers into a domain.Request.
func (cmd Command) request(c *call) (domain.Request, error) {
	r := domain.Request{Meta: domain.Metadata{Actor: c.actor, CorrelationID: c.id, Traceparent: c.traceparent}, DryRun: cmd.DryRun, Admin: c.admin}
	if cmd.IdempotencyKey != "" {
		id := repeatable(c.actor, cmd.IdempotencyKey)
		r.Meta = r.Meta.WithRequest(hex.EncodeToString(id[:]), c.digest())
	}
	if cmd.IfMatch != "" && cmd.IfMatch != "*" {
		revision, ok := parseETag(cmd.IfMatch)
		if !ok {
			return r, newProblem(codeInvalidPrecondition, "If-Match must be * or a single strong entity tag such as \"3\".")
		}
		r.Expected = &revision
	}
	return r, nil
}

// newID returns the id of the object that the command creates. With an
// Idempotency-Key it is derived from the caller and the key (a UUID of version
// 8, RFC 9562), so that a repeated request always meets the same stream.
func (cmd Command) newID(c *call) string {
	if cmd.IdempotencyKey == "" {
		return domain.NewID().String()
	}
	id := uuid.UUID(repeatable(c.actor, cmd.IdempotencyKey))
	id[6] = id[6]&0x0f | 0x80 // version
	id[8] = id[8]&0x3f | 0x80 // variant
	return id.String()
}

// repeatable combines a caller and its Idempotency-Key into one opaque id.
func repeatable(a domain.Actor, key string) [16]byte {
	sum := sha256.Sum256([]byte(a.String() + "\x00" + key))
	return [16]byte(sum[:16])
}

func etag(r eventstore.Revision) string { return `"` + strconv.FormatInt(int64(r), 10) + `"` }

func parseETag(tag string) (eventstore.Revision, bool) {
	inner, ok := strings.CutPrefix(tag, `"`)
	inner, closed := strings.CutSuffix(inner, `"`)
	n, err := strconv.ParseInt(inner, 10, 64)
	ok = ok && closed && err == nil && n >= 0 && strconv.FormatInt(n, 10) == inner
	return eventstore.Revision(n), ok
}

// execute executes cmd on the account and answers with the account after it.
func (s *server) execute(ctx context.Context, c *call, in Command, sub string, cmd domain.Command) (*answer, error) {
	return s.executeAnd(ctx, c, in, sub, cmd, func(a *answer, result domain.Result[domain.Account]) (_ *answer, err error) {
		a.Body, err = result.State.JSON()
		return a, err
	})
}

// executeAnd executes cmd on the account; show sets the body of the answer.
func (s *server) executeAnd(ctx context.Context, c *call, in Command, sub string, cmd domain.Command,
	show func(*answer, domain.Result[domain.Account]) (*answer, error)) (*answer, error) {
	result, err := s.ask(ctx, c, in, sub, cmd)
	if err != nil {
		return nil, err
	}
	if in.DryRun {
		return answerDryRun(result)
	}
	p := result.State.Position
	for _, other := range result.Others {
		p = max(p, other.Position)
	}
	a := s.settled(ctx, p)
	a.ETag = etag(result.State.Revision)
	return show(a, result)
}

// ask has the ledger carry out cmd on the account.
func (s *server) ask(ctx context.Context, c *call, in Command, sub string, cmd domain.Command) (domain.Result[domain.Account], error) {
	sub, err := canonical(sub)
	if err != nil {
		return domain.Result[domain.Account]{}, err
	}
	r, err := in.request(c)
	if err != nil {
		return domain.Result[domain.Account]{}, err
	}
	result, err := s.Ledger.Execute(ctx, r, sub, cmd)
	if domain.CodeOf(err) == domain.CodeAccountErased {
		err = s.accountErased(ctx, sub)
	}
	return result, err
}

// settled waits until the account view has applied p, so that reads after this
// write see it, and starts the answer with that position.
func (s *server) settled(ctx context.Context, p eventstore.Position) *answer {
	accounts := s.Views.Accounts()
	var lag int64
	if accounts.Position() < p {
		ctx, cancel := context.WithTimeout(ctx, s.AwaitTimeout)
		defer cancel()
		if err := s.Views.Await(ctx, projections.AccountsView, p); err != nil {
			// The write is durable, so it has succeeded whatever the view does.
			lag = max(0, int64(p-accounts.Position()))
			s.Logger.WarnContext(ctx, "account view lags behind a write", "position", p, "lag", lag, "err", err)
		}
	}
	return &answer{LedgerPosition: strconv.FormatInt(int64(p), 10), LedgerLag: strconv.FormatInt(lag, 10)}
}

// dryRun is the result of a dry run on an account.
type dryRun struct {
	Events  []plannedEvent `json:"events" doc:"The events the command would append."`
	Account domain.Account `json:"account" doc:"The account after the command."`
}

// plannedEvent is an event of a dry run. It has no id and no log position.
type plannedEvent struct {
	Sub      string              `json:"sub,omitzero" doc:"The account the event is about."`
	Revision eventstore.Revision `json:"revision" doc:"The revision the event would get if it were appended now."`
	Type     string              `json:"type" doc:"The event's type in the log, including its version."`
	Time     time.Time           `json:"time" doc:"The current time."`
	Actor    domain.Actor        `json:"actor" doc:"The caller."`
	Data     jsontext.Value      `json:"data" doc:"The event's data."`
}

func answerDryRun(result domain.Result[domain.Account]) (*answer, error) {
	events, err := planned(result.Events)
	if err != nil {
		return nil, err
	}
	return (&answer{Status: http.StatusOK}).rendered(dryRun{events, result.State})
}

// planned converts entries to the events of a dry run.
func planned(entries []domain.Entry) ([]plannedEvent, error) {
	var events []plannedEvent
	for _, x := range entries {
		data, err := x.Data()
		if err != nil {
			return nil, err
		}
		events = append(events, plannedEvent{x.Sub(), x.Revision, x.Type, x.Time, x.Meta.Actor, data})
	}
	return events, nil
}

// canonical returns the canonical form of a sub. It refuses text that is not a UUID.
func canonical(sub string) (string, error) {
	id, err := uuid.Parse(sub)
	if err != nil || len(sub) != 36 {
		return "", &domain.Error{Code: domain.CodeAccountNotFound, Detail: "There is no account with this sub."}
	}
	return id.String(), nil
}
