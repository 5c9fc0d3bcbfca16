package httpapi

import (
	"context"
	"encoding/hex"
	"errors"
	"strconv"

	"accountledger/domain"
	"accountledger/projections"
)

func (s *server) loginRoutes() {
	handle(s, route{
		method: "POST", path: "/v1/logins", name: "recordLogin", scope: scopeLoginsWrite, status: 200, answer: loginAnswer{},
		summary: "Ask whether somebody may log in, and record that they wanted to",
		text: "By identifier or by sub; of a combined account, the surviving one logs in. Only a VERIFIED account may. " +
			"Callers without the scope accounts:read learn of a refusal no reason: an account that is not there costs and looks the same as one that may not. " +
			"A dry run needs that scope. Under an Idempotency-Key an account's first outcome is answered again.",
		example: `{"identifier":"ada@example.com","provider":"self","client":"web","method":"password"}`,
		codes:   []domain.Code{domain.CodeInvalidRequest, domain.CodeConcurrentChange, domain.CodeIdempotencyKeyReused},
	}, s.recordLogin)
}

type recordLoginInput struct {
	IdempotencyKey string `header:"Idempotency-Key" maxLength:"255" doc:"Makes the request safe to repeat."`
	DryRun         bool   `query:"dry_run" doc:"Answer, with the events it would append, and record nothing. Needs the scope accounts:read."`
	JSON[newLogin]
}

// newLogin is the body of POST /v1/logins. There is no If-Match: whether it
// fits would tell a caller of an account that is to stay unknown.
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
	Reason  domain.LoginRefusal `json:"reason,omitzero" doc:"Why the login is refused: pending, declined, combined, deleted or unknown. Callers without the scope accounts:read always see refused."`
	Events  []plannedEvent      `json:"events,omitzero" doc:"For a dry run: the events the command would append."`
}

// loginRefused is the only reason that callers without accounts:read learn.
const loginRefused domain.LoginRefusal = "refused"

func (s *server) recordLogin(ctx context.Context, c *call, in *recordLoginInput) (*answer, error) {
	body := in.value
	if (body.Identifier == "") == (body.Sub == "") {
		return nil, invalid([]domain.Fault{{Pointer: "/identifier", Detail: "either identifier or sub is required"}})
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
		cmd.Identifier = append(domain.Candidates("", "", body.Identifier),
			domain.Candidates(domain.KindProviderUserID, cmd.Provider, body.Identifier)...)
	}
	sub, err := s.whoLogsIn(ctx, body.Sub, cmd.Identifier)
	if err != nil {
		return nil, err
	}
	r := domain.Request{Meta: domain.Metadata{Actor: c.actor, CorrelationID: c.id, Traceparent: c.traceparent}, DryRun: in.DryRun}
	if in.IdempotencyKey != "" {
		id, digest := repeatable(c.actor, in.IdempotencyKey), c.digest()
		if !c.sees {
			digest = "" // that the key was used for another request would tell of an account
		}
		r.Meta = r.Meta.WithRequest(hex.EncodeToString(id[:]), digest)
	}
	return s.login(ctx, c, r, sub, cmd)
}

// whoLogsIn is the account that is meant, or the one it was combined into; ""
// if there is none.
func (s *server) whoLogsIn(ctx context.Context, sub string, identifier []domain.Candidate) (string, error) {
	accounts := s.Views.Accounts()
	var row projections.AccountRow
	var err error
	if sub == "" {
		row, err = accounts.Lookup(ctx, identifier)
	} else if sub, err = canonical(sub); err != nil {
		return "", nil
	} else {
		row, err = accounts.Get(ctx, sub)
	}
	const most = 50 // more accounts are not in one another
	for range most {
		if errors.Is(err, projections.ErrNotFound) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		account, err := domain.ParseAccount(row.JSON)
		if err != nil {
			return "", err
		}
		if account.CombinedInto == "" {
			break
		}
		if row, err = accounts.Get(ctx, account.CombinedInto); err != nil {
			return "", err
		}
	}
	return row.Sub, nil
}

// login asks cmd of the account sub and answers what it came to. Without an
// account it commits as much as with one.
func (s *server) login(ctx context.Context, c *call, r domain.Request, sub string, cmd domain.Login) (*answer, error) {
	result, err := domain.Result{}, error(&domain.Error{Code: domain.CodeAccountNotFound})
	if sub != "" {
		result, err = s.Ledger.Execute(ctx, r, sub, cmd)
	}
	position, told := result.Account.Position, loginAnswer{Reason: domain.LoginUnknown}
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
				told = loginAnswer{Allowed: true, Sub: sub}
			case domain.LoginFailed:
				told.Reason = e.Reason
			}
		}
	}
	if !told.Allowed && !c.sees {
		told.Reason = loginRefused
	}
	if r.DryRun {
		if told.Events, err = planned(result.Events); err != nil {
			return nil, err
		}
		return (&answer{LedgerPosition: strconv.FormatInt(int64(position), 10)}).rendered(told)
	}
	return s.settled(ctx, position).rendered(told)
}
