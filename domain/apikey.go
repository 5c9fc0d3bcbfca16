package domain

import (
	"cmp"
	"context"
	"maps"
	"regexp"
	"slices"
	"time"

	"accountledger/eventstore"
)

// APIKey authenticates a program and grants it scopes. Only the program has the
// secret part: the key store has a hash of it.
type APIKey struct {
	KeyID       string              `json:"keyId" doc:"The key's id. It names the caller in histories."`
	Name        string              `json:"name" doc:"What the key is for. Key names are stored permanently; do not put personal data in them."`
	Scopes      []string            `json:"scopes" doc:"The scopes the key grants."`                         // sorted
	ExpiresTime time.Time           `json:"expiresTime,omitzero" doc:"When the key expires. Absent: never."` // zero: never
	CreatedTime time.Time           `json:"createdTime" doc:"When the key was created."`
	Revision    eventstore.Revision `json:"revision" doc:"The key's revision, for If-Match."` // of the stream of all keys

	revoked bool
}

// Expired reports whether k has expired at a time.
func (k APIKey) Expired(now time.Time) bool {
	return !k.ExpiresTime.IsZero() && !now.Before(k.ExpiresTime)
}

// Settings returns the settings of k.
func (k APIKey) Settings() APIKeySettings { return APIKeySettings{k.Name, k.Scopes, k.ExpiresTime} }

// APIKeySettings are the settings of an API key that a caller can change. Package
// httpapi defines the scopes and who may grant them.
type APIKeySettings struct {
	Name        string    `json:"name"`
	Scopes      []string  `json:"scopes"`
	ExpiresTime time.Time `json:"expiresTime,omitzero"` // zero: never
}

// APIKeyCreated creates an API key.
type APIKeyCreated struct {
	KeyID    string         `json:"keyId" pii:"clear"`
	Settings APIKeySettings `json:"settings" pii:"clear"`
}

func (APIKeyCreated) eventType() string { return "api-key.created.v1" }

func (e APIKeyCreated) public(Entry) []publicEvent {
	return objectSet("API_KEY", true, e.KeyID, []string{"name", "scopes", "expiresTime"})
}

func (APIKeyCreated) catalogue() []PublicType {
	return []PublicType{{Name: "API_KEY_CREATED", When: "an API key is created", Data: configChanged{}}}
}

// APIKeyUpdated changes the settings of an API key.
type APIKeyUpdated struct {
	KeyID    string         `json:"keyId" pii:"clear"`
	Settings APIKeySettings `json:"settings" pii:"clear"` // all of them
	Fields   []string       `json:"fields" pii:"clear"`   // those that changed
}

func (APIKeyUpdated) eventType() string { return "api-key.updated.v1" }

func (e APIKeyUpdated) public(Entry) []publicEvent {
	return objectSet("API_KEY", false, e.KeyID, e.Fields)
}

func (APIKeyUpdated) catalogue() []PublicType {
	return []PublicType{{Name: "API_KEY_UPDATED", When: "an API key is changed", Data: configChanged{}}}
}

// APIKeyRevoked ends an API key permanently.
type APIKeyRevoked struct {
	KeyID string `json:"keyId" pii:"clear"`
}

func (APIKeyRevoked) eventType() string { return "api-key.revoked.v1" }

func (e APIKeyRevoked) public(Entry) []publicEvent { return objectDeleted("API_KEY", e.KeyID) }

func (APIKeyRevoked) catalogue() []PublicType {
	return objectDeletedTypes("API_KEY", "an API key is revoked")
}

// APIKeyStream is the stream of all API keys. It is separate from the configuration
// so that revoking a key never waits for a change of the configuration.
const APIKeyStream = "api-keys"

// APIKeys is the fold of the stream of all API keys. A value never changes.
type APIKeys struct {
	keys     map[string]APIKey // with the revoked ones, because an id cannot be reused
	Revision eventstore.Revision
	Position eventstore.Position // of the last event
	commands commands
}

// newAPIKeys returns the API keys before the first event.
func newAPIKeys() *APIKeys { return &APIKeys{keys: map[string]APIKey{}, Revision: eventstore.NoStream} }

// Get returns the key with an id, if it exists and is not revoked.
func (k *APIKeys) Get(id string) (APIKey, bool) {
	key, ok := k.keys[id]
	return key, ok && !key.revoked
}

// List returns the keys that are not revoked, oldest first.
func (k *APIKeys) List() []APIKey {
	list := []APIKey{}
	for _, key := range k.keys {
		if !key.revoked {
			list = append(list, key)
		}
	}
	slices.SortFunc(list, func(a, b APIKey) int {
		return cmp.Or(a.CreatedTime.Compare(b.CreatedTime), cmp.Compare(a.KeyID, b.KeyID))
	})
	return list
}

func (k *APIKeys) head() head {
	return head{stream: APIKeyStream, revision: k.Revision, position: k.Position, commands: k.commands, repeatable: true}
}

func (*APIKeys) initial() *APIKeys { return newAPIKeys() }

func (k *APIKeys) with(entries ...Entry) *APIKeys {
	after := *k
	after.keys = maps.Clone(k.keys)
	for _, x := range entries {
		after.evolve(x)
	}
	return &after
}

func (k *APIKeys) evolve(x Entry) {
	var key APIKey
	switch e := x.Event.(type) {
	case APIKeyCreated:
		key = APIKey{KeyID: e.KeyID, Name: e.Settings.Name, Scopes: e.Settings.Scopes, ExpiresTime: e.Settings.ExpiresTime, CreatedTime: x.Time}
	case APIKeyUpdated:
		key = k.keys[e.KeyID]
		key.Name, key.Scopes, key.ExpiresTime = e.Settings.Name, e.Settings.Scopes, e.Settings.ExpiresTime
	case APIKeyRevoked:
		key = k.keys[e.KeyID]
		key.revoked = true
	default:
		panic("domain: " + x.Type + " does not belong to the API keys")
	}
	key.Revision = x.Revision
	k.keys[key.KeyID] = key
	k.Revision, k.Position = x.Revision, x.Position
	k.commands = k.commands.with(x)
}

// APIKeyCommand is a command on one API key.
type APIKeyCommand interface {
	decide(k *APIKeys, now time.Time) ([]Event, error)
	id() string // of the key
}

// CreateAPIKey creates an API key.
type CreateAPIKey struct {
	KeyID    string
	Settings APIKeySettings
}

func (c CreateAPIKey) id() string { return c.KeyID }

func (c CreateAPIKey) decide(k *APIKeys, now time.Time) ([]Event, error) {
	if _, used := k.keys[c.KeyID]; used {
		return nil, refuse(CodeIdempotencyKeyReused, "This Idempotency-Key was used for another API key.")
	}
	if err := c.Settings.check(now, time.Time{}); err != nil {
		return nil, err
	}
	return []Event{APIKeyCreated{c.KeyID, c.Settings.normal()}}, nil
}

// UpdateAPIKey replaces the settings of an API key.
type UpdateAPIKey struct {
	KeyID    string
	Settings APIKeySettings
}

func (c UpdateAPIKey) id() string { return c.KeyID }

func (c UpdateAPIKey) decide(k *APIKeys, now time.Time) ([]Event, error) {
	key, ok := k.Get(c.KeyID)
	if !ok {
		return nil, errNoAPIKey()
	}
	if err := c.Settings.check(now, key.ExpiresTime); err != nil {
		return nil, err
	}
	settings := c.Settings.normal()
	fields := changed(false, member{"name", settings.Name != key.Name}, member{"scopes", !slices.Equal(settings.Scopes, key.Scopes)},
		member{"expiresTime", !settings.ExpiresTime.Equal(key.ExpiresTime)})
	if len(fields) == 0 {
		return nil, nil
	}
	return []Event{APIKeyUpdated{c.KeyID, settings, fields}}, nil
}

// RevokeAPIKey revokes an API key permanently.
type RevokeAPIKey struct{ KeyID string }

func (c RevokeAPIKey) id() string { return c.KeyID }

func (c RevokeAPIKey) decide(k *APIKeys, _ time.Time) ([]Event, error) {
	if _, ok := k.Get(c.KeyID); !ok {
		return nil, errNoAPIKey()
	}
	return []Event{APIKeyRevoked(c)}, nil
}

func errNoAPIKey() *Error { return refuse(CodeAPIKeyNotFound, "There is no such API key.") }

// normal returns s in the form in which it is recorded.
func (s APIKeySettings) normal() APIKeySettings {
	s.Scopes = slices.Compact(slices.Sorted(slices.Values(s.Scopes)))
	s.ExpiresTime = s.ExpiresTime.UTC().Truncate(time.Microsecond)
	return s
}

var scopeName = regexp.MustCompile(`^[a-z][a-z-]{0,30}:[a-z]{1,16}$`)

// check returns the faults of s. An expiry that does not change may be in the past.
func (s APIKeySettings) check(now, expires time.Time) error {
	var f faults
	if s.Name == "" {
		f.add("/name", "must be given")
	}
	f.text("/name", s.Name, 255)
	if len(s.Scopes) == 0 || len(s.Scopes) > 50 {
		f.add("/scopes", "1 to 50 scopes")
	}
	if slices.ContainsFunc(s.Scopes, func(scope string) bool { return !scopeName.MatchString(scope) }) {
		f.add("/scopes", "must be names of scopes, like accounts:read")
	}
	if !s.ExpiresTime.IsZero() && !s.ExpiresTime.After(now) && !s.ExpiresTime.Equal(expires) {
		f.add("/expiresTime", "must lie in the future")
	}
	return f.err()
}

// APIKeys returns the current keys, as far as this process knows. LoadAPIKeys
// also sees the changes of other processes.
func (l *Ledger) APIKeys(ctx context.Context) (*APIKeys, error) {
	if k := l.apiKeys.Load(); k != nil {
		return k, nil
	}
	return l.LoadAPIKeys(ctx)
}

// LoadAPIKeys applies the events that the keys in memory do not have yet.
func (l *Ledger) LoadAPIKeys(ctx context.Context) (*APIKeys, error) {
	l.keying.Lock()
	defer l.keying.Unlock()
	return l.loadAPIKeys(ctx)
}

// loadAPIKeys is LoadAPIKeys for a caller that holds l.keying.
func (l *Ledger) loadAPIKeys(ctx context.Context) (*APIKeys, error) {
	k := l.apiKeys.Load()
	first := k == nil
	if first {
		k = newAPIKeys()
	}
	var more []Entry
	for x, err := range l.entries(ctx, APIKeyStream, k.Revision+1) {
		if err != nil {
			return nil, err
		}
		more = append(more, x)
	}
	if first || len(more) > 0 {
		k = k.with(more...)
		l.apiKeys.Store(k)
	}
	return k, nil
}

// ChangeAPIKey carries out cmd on the API keys. The events are durable when it
// returns, and APIKeys shows them. A refusal is an *Error.
func (l *Ledger) ChangeAPIKey(ctx context.Context, r Request, cmd APIKeyCommand) (Result[*APIKeys], error) {
	return observed(ctx, l, cmd, r, func() (Result[*APIKeys], error) {
		l.keying.Lock()
		defer l.keying.Unlock()
		return retry(func() (Result[*APIKeys], error) {
			before, err := l.loadAPIKeys(ctx)
			if err != nil {
				return Result[*APIKeys]{}, err
			}
			return carryOut(ctx, l, order[*APIKeys]{
				Request: r,
				noun:    "API key",
				revision: func(k *APIKeys) eventstore.Revision {
					key, ok := k.Get(cmd.id())
					if !ok {
						return eventstore.NoStream
					}
					return key.Revision
				},
				decide: func(now time.Time, _ []*APIKeys) ([][]Event, error) {
					events, err := cmd.decide(before, now)
					return [][]Event{events}, err
				},
				keep: func(k *APIKeys) { l.apiKeys.Store(k) },
			}, []*APIKeys{before})
		})
	})
}
