package domain

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"accountledger/eventstore"
)

// LoginRefusal is the reason why an account may not log in.
type LoginRefusal string

// The reasons. Those of an existing account follow its status.
const (
	LoginPending  LoginRefusal = "pending"
	LoginDeclined LoginRefusal = "declined"
	LoginCombined LoginRefusal = "combined"
	LoginDeleted  LoginRefusal = "deleted"
	LoginUnknown  LoginRefusal = "unknown" // the account does not exist or was erased

	LoginAmbiguous LoginRefusal = "ambiguous" // several accounts have the identifier
)

// LoginRecorded records a login to the account.
type LoginRecorded struct {
	IdentityID string    `json:"identityId,omitzero" pii:"clear"` // empty if the account has no identity of the provider
	Provider   string    `json:"provider" pii:"clear"`
	Method     string    `json:"method,omitzero" pii:"clear"` // a code such as password
	Situation  Situation `json:"situation,omitzero" pii:"seal"`
}

func (LoginRecorded) eventType() string { return "account.login-recorded.v1" }

func (e LoginRecorded) evolve(a Account, x Entry) Account {
	a.LastLoggedInTime = x.OccurredTime()
	if e.IdentityID != "" {
		a.LastUsedIdentity = e.IdentityID
	}
	return a
}

func (e LoginRecorded) public(x Entry) []publicEvent {
	return []publicEvent{{"USER_LOGIN", userLogin{x.Sub(), e.IdentityID, e.Provider, e.Method, "", x.OccurredTime(), e.Situation}}}
}

func (LoginRecorded) catalogue() []PublicType {
	return []PublicType{{Name: "USER_LOGIN", When: "a person logs in", Data: userLogin{}, Aliases: []Alias{
		{"LOGIN_WITH_CIDAAS", "with provider self", func(data any) bool { return data.(userLogin).Provider == ProviderSelf }},
		{"LOGIN_WITH_SOCIAL", "with another provider", func(data any) bool { return data.(userLogin).Provider != ProviderSelf }},
	}}}
}

type userLogin struct {
	Sub        string       `json:"sub" doc:"The account."`
	IdentityID string       `json:"identity,omitzero" doc:"The identityId used for the login."`
	Provider   string       `json:"provider" doc:"The identity provider."`
	Method     string       `json:"method,omitzero" doc:"How the person signed in, as a code, such as password."`
	Reason     LoginRefusal `json:"reason,omitzero" doc:"Why the login was refused: pending, declined, combined or deleted."`
	Time       time.Time    `json:"time" doc:"When the login happened."`
	Situation
}

// LoginFailed records a login that the account's status refused.
type LoginFailed struct {
	IdentityID string       `json:"identityId,omitzero" pii:"clear"`
	Provider   string       `json:"provider" pii:"clear"`
	Method     string       `json:"method,omitzero" pii:"clear"`
	Reason     LoginRefusal `json:"reason" pii:"clear"`
	Situation  Situation    `json:"situation,omitzero" pii:"seal"`
}

func (LoginFailed) eventType() string { return "account.login-failed.v1" }

func (LoginFailed) evolve(a Account, _ Entry) Account { return a }

func (e LoginFailed) public(x Entry) []publicEvent {
	return []publicEvent{{"USER_LOGIN_FAILED", userLogin{x.Sub(), e.IdentityID, e.Provider, e.Method, e.Reason, x.OccurredTime(), e.Situation}}}
}

func (LoginFailed) catalogue() []PublicType {
	return []PublicType{{Name: "USER_LOGIN_FAILED", When: "a login to an existing account is refused", Data: userLogin{},
		Aliases: []Alias{{"LOGIN_FAILURE", "", nil}}}}
}

// UnknownLogin records a login to an account that does not exist, or with an
// identifier that several accounts have. It holds no personal data, not even what
// was typed.
type UnknownLogin struct {
	Provider string `json:"provider" pii:"clear"`
	Method   string `json:"method,omitzero" pii:"clear"`
}

func (UnknownLogin) eventType() string { return "login.unknown.v1" }

func (UnknownLogin) public(Entry) []publicEvent { return internal } // it belongs to no account

// LoginsStream is the stream of the logins that belong to no account. The ledger
// appends to it at any revision, so that writers never conflict.
const LoginsStream = "logins"

// Login decides whether a person may log in. It causes a LoginRecorded or a
// LoginFailed; the account's status never refuses the command itself.
type Login struct {
	Identifier []Candidate // what the typed identifier may stand for; empty if the sub was given
	Provider   string
	Method     string
	Situation  Situation
}

func (Login) command() {}

func (Login) admits(Status) bool { return true }

var loginMethod = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,63}$`)

// Check returns what is wrong with the command, for any account.
func (c Login) Check() error {
	var f faults
	if !providerKey.MatchString(c.Provider) {
		f.add("/provider", "must be a lower-case letter followed by up to 63 lower-case letters, digits, '_' or '-'")
	}
	if c.Method != "" && !loginMethod.MatchString(c.Method) {
		f.add("/method", "must be a code of at most 64 lower-case letters, digits, '_', '.' or '-', beginning with a letter or digit")
	}
	f.text("/client", c.Situation.Client, 255)
	f.text("/device", c.Situation.Device, 255)
	f.text("/location", c.Situation.Location, 255)
	return f.err()
}

func (c Login) decide(_ Setting, a Account) ([]Event, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	id := c.identity(a)
	if a.Status != StatusVerified {
		reason := LoginRefusal(strings.ToLower(string(a.Status)))
		return []Event{LoginFailed{IdentityID: id, Provider: c.Provider, Method: c.Method, Reason: reason, Situation: c.Situation}}, nil
	}
	return []Event{LoginRecorded{IdentityID: id, Provider: c.Provider, Method: c.Method, Situation: c.Situation}}, nil
}

// identity returns the identity of the login: the provider's identity that has the
// identifier, otherwise the provider's first identity, "" if there is none.
func (c Login) identity(a Account) string {
	for _, u := range a.UserIDs {
		i, ok := a.identity(u.IdentityID)
		if ok && i.Provider == c.Provider && slices.Contains(c.Identifier, Candidate{u.Type, u.Key()}) {
			return i.IdentityID
		}
	}
	for _, i := range a.Identities {
		if i.Provider == c.Provider {
			return i.IdentityID
		}
	}
	return ""
}

// RecordUnknownLogin records a login that belongs to no account: none has the
// identifier, or several have it. Like a login to an existing account it makes
// one commit.
func (l *Ledger) RecordUnknownLogin(ctx context.Context, r Request, cmd Login) (Entry, error) {
	if err := cmd.Check(); err != nil {
		return Entry{}, err
	}
	// A digest of the request would allow guesses at the identifier in it, and
	// there is no key to seal it with.
	meta := r.Meta.WithRequest("", "")
	e := UnknownLogin{Provider: cmd.Provider, Method: cmd.Method}
	x := Entry{ID: NewID(), Type: e.eventType(), Stream: LoginsStream, Time: l.now().UTC().Truncate(time.Microsecond), Meta: meta, Event: e}
	if r.DryRun {
		return x, nil
	}
	encoded, err := l.codec.encode(x, eventstore.KeyID{})
	if err != nil {
		return x, err
	}
	receipt, err := l.log.Append(ctx, eventstore.Commit{Writes: []eventstore.Write{
		{Stream: LoginsStream, Expected: eventstore.Any, Events: []eventstore.Event{encoded}}}})
	x.Position, x.Time = receipt.Last, receipt.Time
	return x, err
}
