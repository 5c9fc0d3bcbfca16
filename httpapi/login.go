package httpapi

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strconv"

	"accountledger/domain"
	"accountledger/projections"
)

func (s *server) loginRoutes() {
	handle(s, route{
		method: "POST", path: "/v1/logins", name: "recordLogin", scope: scopeLoginsWrite, status: 200, answer: loginAnswer{},
		summary: "Check and record a login",
		text: "Checks whether the account with this identifier or sub may log in, and records the attempt. Only VERIFIED accounts may log in; for a merged account, the surviving one logs in. " +
			"Callers without the scope accounts:read do not learn the reason of a refusal: an account that does not exist looks the same, and takes the same time, as one that may not log in. " +
			"An identifier that leads to several accounts logs in none of them. " +
			"A dry run requires that scope. A repeated request with the same Idempotency-Key returns the account's first outcome.",
		example: `{"identifier":"ada@example.com","provider":"self","client":"web","method":"password"}`,
		codes:   []domain.Code{domain.CodeInvalidRequest, domain.CodeConcurrentChange, domain.CodeIdempotencyKeyReused},
	}, s.recordLogin)
}

type recordLoginInput struct {
	IdempotencyKey string `header:"Idempotency-Key" maxLength:"255" doc:"Makes the request safe to repeat: the same key with the same request returns the first outcome."`
	DryRun         bool   `query:"dry_run" doc:"Return the outcome and the events it would append, without recording anything. Requires the scope accounts:read."`
	JSON[newLogin]
}

// newLogin is the body of POST /v1/logins. The route has no If-Match: whether
// it matches would reveal that an account exists.
type newLogin struct {
	Identifier string `json:"identifier,omitzero" maxLength:"512" doc:"An e-mail address, mobile number, username or user id at the provider, in any spelling."`
	Sub        string `json:"sub,omitzero" maxLength:"36" doc:"The account, instead of an identifier."`
	Provider   string `json:"provider,omitzero" maxLength:"64" default:"self" doc:"The identity provider that signed the person in. Default self."`
	Client     string `json:"client,omitzero" maxLength:"255" doc:"The application."`
	Device     string `json:"device,omitzero" maxLength:"255" doc:"The device."`
	Location   string `json:"location,omitzero" maxLength:"255" doc:"The location."`
	Method     string `json:"method,omitzero" maxLength:"64" doc:"How the person signed in, as a code, such as password."`
}

// loginAnswer says whether the login is allowed.
type loginAnswer struct {
	Allowed bool                `json:"allowed" doc:"Whether the account may log in."`
	Sub     string              `json:"sub,omitzero" doc:"The account that logs in; for a merged account, the surviving one."`
	Reason  domain.LoginRefusal `json:"reason,omitzero" doc:"Why the login is refused: pending, declined, combined, deleted, unknown, or ambiguous if several accounts have the identifier. Callers without the scope accounts:read always see refused."`
	Events  []plannedEvent      `json:"events,omitzero" doc:"For a dry run: the events the command would append."`
}

// loginRefused is the only reason shown to callers without accounts:read.
const loginRefused domain.LoginRefusal = "refused"

func (s *server) recordLogin(ctx context.Context, c *call, in *recordLoginInput) (*answer, error) {
	body := in.value
	if (body.Identifier == "") == (body.Sub == "") {
		return nil, invalid([]domain.Fault{{Pointer: "/identifier", Detail: "exactly one of identifier and sub is required"}})
	}
	if in.DryRun && !c.sees {
		return nil, newProblem(codeForbidden, "A dry run requires the scope %s.", scopeAccountsRead)
	}
	cmd := domain.Login{Provider: body.Provider, Method: body.Method,
		Situation: domain.Situation{Client: body.Client, Device: body.Device, Location: body.Location}}
	if cmd.Provider == "" {
		cmd.Provider = domain.ProviderSelf
	}
	if err := cmd.Check(); err != nil {
		return nil, err
	}
	if body.Identifier != "" {
		cmd.Identifier = append(domain.Candidates(domain.KindProviderUserID, cmd.Provider, body.Identifier),
			domain.Candidates("", "", body.Identifier)...)
	}
	sub, err := s.whoLogsIn(ctx, body.Sub, cmd)
	reason := domain.LoginUnknown
	if errors.Is(err, projections.ErrAmbiguous) {
		reason, err = domain.LoginAmbiguous, nil
	}
	if err != nil {
		return nil, err
	}
	r := domain.Request{Meta: domain.Metadata{Actor: c.actor, CorrelationID: c.id, Traceparent: c.traceparent}, DryRun: in.DryRun}
	if in.IdempotencyKey != "" {
		id, digest := repeatable(c.actor, in.IdempotencyKey), c.digest()
		if !c.sees {
			digest = "" // refusing a reused key would reveal that an account exists
		}
		r.Meta = r.Meta.WithRequest(hex.EncodeToString(id[:]), digest)
	}
	return s.login(ctx, c, r, sub, reason, cmd)
}

// whoLogsIn returns the sub of the account that logs in: the one with the given
// sub or the command's identifier, or the account it was merged into; "" if there
// is none. A user id at the provider that signed the person in leads to its
// account whatever another account's username looks like; only provider self
// shares one namespace with the other identifiers.
func (s *server) whoLogsIn(ctx context.Context, sub string, cmd domain.Login) (string, error) {
	accounts := s.Views.Accounts()
	var row projections.AccountRow
	var err error
	if sub == "" {
		first, rest := cmd.Identifier, []domain.Candidate(nil)
		if cmd.Provider != domain.ProviderSelf {
			at := slices.IndexFunc(first, func(c domain.Candidate) bool { return c.Kind != domain.KindProviderUserID })
			if at >= 0 {
				first, rest = first[:at], first[at:]
			}
		}
		if row, err = accounts.Lookup(ctx, first); errors.Is(err, projections.ErrNotFound) && rest != nil {
			row, err = accounts.Lookup(ctx, rest)
		}
	} else if sub, err = canonical(sub); err != nil {
		return "", nil
	} else {
		row, err = accounts.Get(ctx, sub)
	}
	if errors.Is(err, projections.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	row, err = s.survivorOf(ctx, row)
	return row.Sub, err
}

// login executes cmd on the account and answers with its outcome. If there is no
// account, or reason says that there are several, it commits an event too, so
// that all cases take the same time.
func (s *server) login(ctx context.Context, c *call, r domain.Request, sub string, reason domain.LoginRefusal, cmd domain.Login) (*answer, error) {
	result, err := domain.Result[domain.Account]{}, error(&domain.Error{Code: domain.CodeAccountNotFound})
	if sub != "" {
		result, err = s.Ledger.Execute(ctx, r, sub, cmd)
	}
	position, outcome := result.State.Position, loginAnswer{Reason: reason}
	switch code := domain.CodeOf(err); {
	case code == domain.CodeAccountNotFound || code == domain.CodeAccountErased:
		x, err := s.Ledger.RecordUnknownLogin(ctx, r, cmd)
		if err != nil {
			return nil, err
		}
		position, result.Events = x.Position, []domain.Entry{x}
	case err != nil:
		return nil, err
	default:
		for _, x := range result.Events {
			switch e := x.Event.(type) {
			case domain.LoginRecorded:
				outcome = loginAnswer{Allowed: true, Sub: sub}
			case domain.LoginFailed:
				outcome.Reason = e.Reason
			}
		}
	}
	if !outcome.Allowed && !c.sees {
		outcome.Reason = loginRefused
	}
	if r.DryRun {
		if outcome.Events, err = planned(result.Events); err != nil {
			return nil, err
		}
		return (&answer{LedgerPosition: strconv.FormatInt(int64(position), 10)}).rendered(outcome)
	}
	return s.settled(ctx, position).rendered(outcome)
}
