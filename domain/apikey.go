package domain

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"regexp"
	"slices"
	"time"

	"accountledger/eventstore"
)

// APIKey is what a program shows to be let in, and what it may then do. The
// secret half is nobody's but the program's: the key store has a hash of it.
type APIKey struct {
	KeyID       string              `json:"keyId"`
	Name        string              `json:"name"`
	Scopes      []string            `json:"scopes"`               // sorted
	ExpiresTime time.Time           `json:"expiresTime,omitzero"` // zero: never
	CreatedTime time.Time           `json:"createdTime"`
	Revision    eventstore.Revision `json:"revision"` // of the stream of all keys, when this one last changed

	revoked bool
}

// Expired reports whether k is no longer good at a time.
func (k APIKey) Expired(now time.Time) bool {
	return !k.ExpiresTime.IsZero() && !now.Before(k.ExpiresTime)
}

// Settings is what of k can be changed.
func (k APIKey) Settings() APIKeySettings { return APIKeySettings{k.Name, k.Scopes, k.ExpiresTime} }

// APIKeySettings is what an API key can be set to. Which scopes there are, and
// who may grant them, is up to who knows what they protect.
type APIKeySettings struct {
	Name        string    `json:"name"`
	Scopes      []string  `json:"scopes"`
	ExpiresTime time.Time `json:"expiresTime,omitzero"` // zero: never
}

// APIKeyCreated makes an API key.
type APIKeyCreated struct {
	KeyID    string         `json:"keyId" pii:"clear"`
	Settings APIKeySettings `json:"settings" pii:"clear"`
}

func (APIKeyCreated) eventType() string { return "api-key.created.v1" }

func (e APIKeyCreated) public(Entry) []publicEvent {
	return objectSet("API_KEY", true, e.KeyID, []string{"name", "scopes", "expiresTime"})
}

func (APIKeyCreated) catalogue() []PublicType {
	return []PublicType{{Name: "API_KEY_CREATED", When: "an API key is made", Data: configChanged{}}}
}

// APIKeyUpdated sets an API key anew.
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

// APIKeyRevoked ends an API key for good.
type APIKeyRevoked struct {
	KeyID string `json:"keyId" pii:"clear"`
}

func (APIKeyRevoked) eventType() string { return "api-key.revoked.v1" }

func (e APIKeyRevoked) public(Entry) []publicEvent { return objectDeleted("API_KEY", e.KeyID) }

func (APIKeyRevoked) catalogue() []PublicType {
	return objectDeletedTypes("API_KEY", "an API key is revoked")
}

// APIKeyStream is the stream of all API keys. It is apart from the
// configuration so that a key can be revoked whatever else is under way.
const APIKeyStream = "api-keys"

// APIKeys are all API keys there were: the fold of one stream. A value never
// changes.
type APIKeys struct {
	keys     map[string]APIKey // also revoked ones: an id is not used again
	Revision eventstore.Revision
	Position eventstore.Position // of the last event
	commands commands
}

// newAPIKeys is before the first event.
func newAPIKeys() *APIKeys { return &APIKeys{keys: map[string]APIKey{}, Revision: eventstore.NoStream} }

// Get returns the key with an id, if there is one that was not revoked.
func (k *APIKeys) Get(id string) (APIKey, bool) {
	key, ok := k.keys[id]
	return key, ok && !key.revoked
}

// List returns the keys that were not revoked, oldest first.
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

// with returns k after entries.
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

// APIKeyCommand is something a caller asks of one API key.
type APIKeyCommand interface {
	decide(k *APIKeys, now time.Time) ([]Event, error)
	id() string // of the key
}

// CreateAPIKey makes an API key.
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

// UpdateAPIKey sets an API key anew.
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

// RevokeAPIKey ends an API key.
type RevokeAPIKey struct{ KeyID string }

func (c RevokeAPIKey) id() string { return c.KeyID }

func (c RevokeAPIKey) decide(k *APIKeys, _ time.Time) ([]Event, error) {
	if _, ok := k.Get(c.KeyID); !ok {
		return nil, errNoAPIKey()
	}
	return []Event{APIKeyRevoked(c)}, nil
}

func errNoAPIKey() *Error { return refuse(CodeAPIKeyNotFound, "There is no such API key.") }

// normal is s as it is recorded.
func (s APIKeySettings) normal() APIKeySettings {
	s.Scopes = slices.Compact(slices.Sorted(slices.Values(s.Scopes)))
	s.ExpiresTime = s.ExpiresTime.UTC().Truncate(time.Microsecond)
	return s
}

var scopeName = regexp.MustCompile(`^[a-z][a-z-]{0,30}:[a-z]{1,16}$`)

// check returns what is wrong with s; an end that stays as it is may be past.
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

// APIKeysResult is what came of an APIKeyCommand.
type APIKeysResult struct {
	Keys     *APIKeys // after the command; at a repetition, as they were then
	Events   []Entry  // what it caused; none where it changed nothing or had been executed before
	Repeated bool
}

// APIKeys returns the keys as they are now, so far as this process knows:
// another one's changes are seen by LoadAPIKeys.
func (l *Ledger) APIKeys(ctx context.Context) (*APIKeys, error) {
	if k := l.apiKeys.Load(); k != nil {
		return k, nil
	}
	return l.LoadAPIKeys(ctx)
}

// LoadAPIKeys brings the keys in memory up to their stream's end.
func (l *Ledger) LoadAPIKeys(ctx context.Context) (*APIKeys, error) {
	l.keying.Lock()
	defer l.keying.Unlock()
	return l.loadAPIKeys(ctx)
}

// loadAPIKeys is LoadAPIKeys for who holds l.keying.
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

// ChangeAPIKey asks cmd of the API keys. The events are durable when it
// returns, and APIKeys knows of them. A refusal is an *Error.
func (l *Ledger) ChangeAPIKey(ctx context.Context, r Request, cmd APIKeyCommand) (result APIKeysResult, err error) {
	start := time.Now()
	defer func() { l.executed(ctx, cmd, start, len(result.Events) > 0 && !r.DryRun, err) }()
	l.keying.Lock()
	defer l.keying.Unlock()
	for range tries {
		result, err := l.changeAPIKey(ctx, r, cmd)
		if _, conflict := errors.AsType[*eventstore.ConflictError](err); !conflict {
			return result, err
		}
	}
	return APIKeysResult{}, refuse(CodeConcurrentChange, "Others change the API keys all the time; try again.")
}

func (l *Ledger) changeAPIKey(ctx context.Context, r Request, cmd APIKeyCommand) (APIKeysResult, error) {
	before, err := l.loadAPIKeys(ctx)
	if err != nil {
		return APIKeysResult{}, err
	}
	seen, repeated, err := l.recall(ctx, before.commands, r.Meta)
	if err != nil {
		return APIKeysResult{}, err
	}
	if repeated {
		then, err := l.apiKeysAt(ctx, seen.revision)
		return APIKeysResult{Keys: then, Repeated: true}, err
	}
	at := eventstore.NoStream
	if key, ok := before.Get(cmd.id()); ok {
		at = key.Revision
	}
	if r.Expected != nil && *r.Expected != at {
		return APIKeysResult{}, refuse(CodeStaleRevision, "It is at revision %d, not %d.", at, *r.Expected)
	}
	now := l.now().UTC().Truncate(time.Microsecond)
	events, err := cmd.decide(before, now)
	if err == nil && len(events) == 0 {
		err = l.rememberUnchanged(ctx, r, APIKeyStream, eventstore.KeyID{}, before.Revision)
	}
	if err != nil || len(events) == 0 {
		return APIKeysResult{Keys: before}, err
	}
	forgotten, err := l.rememberForgotten(before.commands, r.Meta, APIKeyStream, eventstore.KeyID{})
	if err != nil {
		return APIKeysResult{}, err
	}
	entries, err := l.appendClear(ctx, r, APIKeyStream, before.Revision, before.Position, now, events, forgotten...)
	if err != nil {
		return APIKeysResult{}, err
	}
	after := before.with(entries...)
	if !r.DryRun {
		l.apiKeys.Store(after)
	}
	return APIKeysResult{Keys: after, Events: entries}, nil
}

// apiKeysAt folds the API keys up to a revision.
func (l *Ledger) apiKeysAt(ctx context.Context, revision eventstore.Revision) (*APIKeys, error) {
	k := newAPIKeys()
	for x, err := range l.entries(ctx, APIKeyStream, 0) {
		if err != nil {
			return nil, err
		}
		if x.Revision > revision {
			break
		}
		k.evolve(x)
	}
	return k, nil
}
