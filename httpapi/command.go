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

// Command is what every command may be sent with.
type Command struct {
	IfMatch        string `header:"If-Match" doc:"Refuse with 412 unless the object is at the revision of this ETag; * for any." example:"\"3\""`
	IdempotencyKey string `header:"Idempotency-Key" maxLength:"255" doc:"Makes the request safe to repeat: the same key and request of the same caller return the first outcome, also after a restart; the same key with another request is refused."`
	DryRun         bool   `query:"dry_run" doc:"Answer the events the command would append and the account as it would be, and store nothing."`
}

// request makes of cmd how the domain is to carry the command out.
func (cmd Command) request(c *call) (domain.Request, error) {
	r := domain.Request{Meta: domain.Metadata{Actor: c.actor, CorrelationID: c.id, Traceparent: c.traceparent}, DryRun: cmd.DryRun, Admin: c.admin}
	if cmd.IdempotencyKey != "" {
		id := repeatable(c.actor, cmd.IdempotencyKey)
		r.Meta = r.Meta.WithRequest(hex.EncodeToString(id[:]), c.digest())
	}
	if cmd.IfMatch != "" && cmd.IfMatch != "*" {
		revision, ok := parseETag(cmd.IfMatch)
		if !ok {
			return r, newProblem(codeInvalidPrecondition, "If-Match must be * or one strong entity tag like \"3\".")
		}
		r.Expected = &revision
	}
	return r, nil
}

// newID makes the id of what the command creates. Under an Idempotency-Key it
// follows from caller and key (a UUID of version 8, RFC 9562), so that a
// repetition meets the same stream, whatever happened in between.
func (cmd Command) newID(c *call) string {
	if cmd.IdempotencyKey == "" {
		return domain.NewID().String()
	}
	id := uuid.UUID(repeatable(c.actor, cmd.IdempotencyKey))
	id[6] = id[6]&0x0f | 0x80 // version
	id[8] = id[8]&0x3f | 0x80 // variant
	return id.String()
}

// repeatable is a caller's Idempotency-Key as one opaque id.
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

// execute asks cmd of the account and answers with the account after it.
func (s *server) execute(ctx context.Context, c *call, in Command, sub string, cmd domain.Command) (*answer, error) {
	return s.executeAnd(ctx, c, in, sub, cmd, func(a *answer, result domain.Result) (_ *answer, err error) {
		a.Body, err = result.Account.JSON()
		return a, err
	})
}

// executeAnd asks cmd of the account; show makes the body of the answer.
func (s *server) executeAnd(ctx context.Context, c *call, in Command, sub string, cmd domain.Command,
	show func(*answer, domain.Result) (*answer, error)) (*answer, error) {
	sub, err := canonical(sub)
	if err != nil {
		return nil, err
	}
	r, err := in.request(c)
	if err != nil {
		return nil, err
	}
	result, err := s.Ledger.Execute(ctx, r, sub, cmd)
	if domain.CodeOf(err) == domain.CodeAccountErased {
		return nil, s.accountErased(ctx, sub)
	}
	if err != nil {
		return nil, err
	}
	if in.DryRun {
		return answerDryRun(result)
	}
	a := s.settled(ctx, result.Account.Position)
	a.ETag = etag(result.Account.Revision)
	return show(a, result)
}

// settled waits until the account view has applied p, so that whoever reads
// after this write reads it, and begins the answer that says so.
func (s *server) settled(ctx context.Context, p eventstore.Position) *answer {
	accounts := s.Views.Accounts()
	var lag int64
	if accounts.Position() < p {
		ctx, cancel := context.WithTimeout(ctx, s.AwaitTimeout)
		defer cancel()
		if err := s.Views.Await(ctx, projections.AccountsView, p); err != nil {
			// The write is durable: it succeeded, whatever the view does.
			lag = max(0, int64(p-accounts.Position()))
			s.Logger.WarnContext(ctx, "account view lags behind a write", "position", p, "lag", lag, "err", err)
		}
	}
	return &answer{LedgerPosition: strconv.FormatInt(int64(p), 10), LedgerLag: strconv.FormatInt(lag, 10)}
}

// dryRun is what a command would do.
type dryRun struct {
	Events  []plannedEvent `json:"events" doc:"The events the command would append."`
	Account domain.Account `json:"account" doc:"The account after the command."`
}

// plannedEvent is an event without what only the log gives it.
type plannedEvent struct {
	Sub      string              `json:"sub,omitzero" doc:"The account the event is about."`
	Revision eventstore.Revision `json:"revision" doc:"The revision the event would get if it were appended now."`
	Type     string              `json:"type" doc:"The event's type in the log, including its version."`
	Time     time.Time           `json:"time" doc:"The current time."`
	Actor    domain.Actor        `json:"actor" doc:"The caller."`
	Data     jsontext.Value      `json:"data" doc:"The event's data."`
}

func answerDryRun(result domain.Result) (*answer, error) {
	events, err := planned(result.Events)
	if err != nil {
		return nil, err
	}
	return (&answer{Status: http.StatusOK}).rendered(dryRun{events, result.Account})
}

// planned are entries as a dry run shows them.
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

// canonical is the one form of a sub. What is no UUID is no account's sub.
func canonical(sub string) (string, error) {
	id, err := uuid.Parse(sub)
	if err != nil || len(sub) != 36 {
		return "", &domain.Error{Code: domain.CodeAccountNotFound, Detail: "There is no account with this sub."}
	}
	return id.String(), nil
}
