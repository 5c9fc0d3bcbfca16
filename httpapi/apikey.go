package httpapi

import (
	"context"
	"reflect"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
)

func (s *server) apiKeyRoutes() {
	onKey := []domain.Code{domain.CodeAPIKeyNotFound}
	handle(s, route{
		method: "POST", path: "/v1/api-keys", name: "createAPIKey", scope: scopeKeysWrite, status: 201, answer: createdAPIKey{},
		summary: "Create an API key",
		text:    "Creates a key and returns it. This is the only response that contains the key; the ledger stores only a hash. A caller can grant only scopes it has itself. A repeated request with the same Idempotency-Key returns the key's data without the key; if the key is lost, revoke it and create another.",
		example: `{"name":"CRM import","scopes":["accounts:read","accounts:write"],"expiresTime":"2030-01-01T00:00:00Z"}`,
		codes:   onCommand,
	}, s.createAPIKey)
	handle(s, route{
		method: "GET", path: "/v1/api-keys", name: "listAPIKeys", scope: scopeKeysRead, status: 200, answer: apiKeys{},
		summary: "List the API keys",
		text:    "Returns all keys, oldest first, including the bootstrap key and excluding revoked ones.",
		codes:   onQuery,
	}, s.listAPIKeys)
	handle(s, route{
		method: "GET", path: "/v1/api-keys/{keyId}", name: "getAPIKey", scope: scopeKeysRead, status: 200, answer: APIKey{},
		summary: "Get an API key",
		text:    "Returns the key's scopes, its expiry and its last use.",
		codes:   codes(onKey, onQuery),
	}, s.getAPIKey)
	handle(s, route{
		method: "PATCH", path: "/v1/api-keys/{keyId}", name: "patchAPIKey", scope: scopeKeysWrite, status: 200, answer: APIKey{},
		summary: "Change an API key",
		text:    "The body is an RFC 7396 merge patch; an expiresTime of null removes the expiry. The caller must have all scopes that the key has after the change.",
		example: `{"scopes":["accounts:read"],"expiresTime":null}`,
		codes:   codes(onKey, onCommand, []domain.Code{domain.CodeSystemManaged}),
	}, s.patchAPIKey)
	handle(s, route{
		method: "DELETE", path: "/v1/api-keys/{keyId}", name: "revokeAPIKey", scope: scopeKeysWrite, status: 204,
		summary: "Revoke an API key",
		text:    "Revokes the key permanently. Its next request is refused, and its open streams end at their next heartbeat.",
		codes:   codes(onKey, onCommand, []domain.Code{domain.CodeSystemManaged}),
	}, s.revokeAPIKey)
}

// APIKey is an API key as the API returns it.
type APIKey struct {
	domain.APIKey
	System       bool      `json:"system" doc:"The bootstrap key, created with the data directory. Only the command admin-key replaces it."` // see Bootstrap
	LastUsedTime time.Time `json:"lastUsedTime,omitzero" doc:"When the key was last used, recorded at most once an hour. Absent: never."`    // see authenticator.use
}

// createdAPIKey is a new API key with the key itself.
type createdAPIKey struct {
	APIKey
	Key string `json:"key,omitzero" doc:"The key itself. Only the response that creates the key contains it; a repeated request does not."`
}

// apiKeys is the list of all keys.
type apiKeys struct {
	APIKeys []APIKey `json:"apiKeys" doc:"The keys, oldest first."`
	Next    *string  `json:"next" doc:"Always null: the list is never paged."`
}

// KeyID identifies the API key a request is about.
type KeyID struct {
	ID string `path:"keyId" doc:"The API key's id." example:"0190b0c2-5f3e-7c1a-9d5e-3f6a1b2c4d5e"`
}

// NewAPIKey holds the settings of an API key.
type NewAPIKey struct {
	Name        string    `json:"name" minLength:"1" maxLength:"255" doc:"What the key is for. Key names are stored permanently; do not put personal data in them."`
	Scopes      []string  `json:"scopes" minItems:"1" maxItems:"50" doc:"The scopes the key grants. The caller must have them itself."`
	ExpiresTime time.Time `json:"expiresTime,omitzero" doc:"When the key expires. Default: never."`
}

// granted returns b as the domain's settings. It refuses scopes that the caller
// does not have: otherwise a caller that may create keys could do everything.
func (c *call) granted(b NewAPIKey) (domain.APIKeySettings, error) {
	if slices.ContainsFunc(b.Scopes, func(name string) bool { return !scope(name).known() }) {
		return domain.APIKeySettings{}, invalid([]domain.Fault{{Pointer: "/scopes", Detail: "must be existing scopes"}})
	}
	for _, name := range b.Scopes {
		if !c.allows(scope(name)) {
			return domain.APIKeySettings{}, newProblem(codeForbidden, "Only a caller with the scope %s can grant it.", name)
		}
	}
	return domain.APIKeySettings(b), nil
}

type createAPIKeyInput struct {
	Command
	JSON[NewAPIKey]
}

func (s *server) createAPIKey(ctx context.Context, c *call, in *createAPIKeyInput) (*answer, error) {
	settings, err := c.granted(in.value)
	if err != nil {
		return nil, err
	}
	r, err := in.request(c)
	if err != nil {
		return nil, err
	}
	cmd := domain.CreateAPIKey{KeyID: in.newID(c), Settings: settings}
	secret := newKeySecret()
	// First the hash: a key without one could not be used, a hash without a key
	// does no harm.
	r.Prepare = func(ctx context.Context) error { return s.auth.keep(ctx, cmd.KeyID, secret) }
	result, err := s.Ledger.ChangeAPIKey(ctx, r, cmd)
	if err != nil {
		return nil, err
	}
	if in.DryRun {
		return triedAPIKey(result)
	}
	var key string
	if !result.Repeated {
		key = formatKey(cmd.KeyID, secret)
	}
	a, shown, err := s.apiKeyAnswer(ctx, result, cmd.KeyID)
	if err != nil {
		return nil, err
	}
	a.Location = "/v1/api-keys/" + cmd.KeyID
	return a.rendered(createdAPIKey{shown, key})
}

// apiKeyAnswer starts the answer to a command on a key and returns the key after it.
func (s *server) apiKeyAnswer(ctx context.Context, result domain.Result[*domain.APIKeys], id string) (*answer, APIKey, error) {
	key, ok := result.State.Get(id)
	if !ok {
		return nil, APIKey{}, noAPIKey()
	}
	shown, err := s.shownAPIKey(ctx, key)
	if err != nil {
		return nil, APIKey{}, err
	}
	a := s.settled(ctx, result.Position())
	a.ETag = etag(key.Revision)
	return a, shown, nil
}

func triedAPIKey(result domain.Result[*domain.APIKeys]) (*answer, error) {
	events, err := planned(result.Events)
	if err != nil {
		return nil, err
	}
	return (&answer{Status: 200}).rendered(triedConfig{events})
}

func noAPIKey() error {
	return &domain.Error{Code: domain.CodeAPIKeyNotFound, Detail: "There is no such API key."}
}

func (s *server) shownAPIKey(ctx context.Context, key domain.APIKey) (APIKey, error) {
	used, err := s.auth.lastUsed(ctx, key.KeyID)
	return APIKey{APIKey: key, LastUsedTime: used}, err
}

// adminKey returns the bootstrap key.
func (s *server) adminKey(ctx context.Context) (APIKey, error) {
	c, err := s.auth.credential(ctx, adminKeyID)
	if err != nil {
		return APIKey{}, err
	}
	key, err := s.shownAPIKey(ctx, domain.APIKey{KeyID: adminKeyID, Name: adminKeyID, Scopes: []string{string(scopeAdmin)}, CreatedTime: c.CreatedTime, Revision: -1})
	key.System = true
	return key, err
}

type listAPIKeysInput struct{ Query }

func (s *server) listAPIKeys(ctx context.Context, _ *call, in *listAPIKeysInput) (*answer, error) {
	a, err := s.fresh(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	keys, err := s.auth.apiKeys(ctx)
	if err != nil {
		return nil, err
	}
	admin, err := s.adminKey(ctx)
	if err != nil {
		return nil, err
	}
	list := apiKeys{APIKeys: []APIKey{admin}}
	for _, key := range keys.List() {
		shown, err := s.shownAPIKey(ctx, key)
		if err != nil {
			return nil, err
		}
		list.APIKeys = append(list.APIKeys, shown)
	}
	return a.rendered(list)
}

type getAPIKeyInput struct {
	KeyID
	Query
}

func (s *server) getAPIKey(ctx context.Context, _ *call, in *getAPIKeyInput) (*answer, error) {
	a, err := s.fresh(ctx, in.Query)
	if err != nil {
		return nil, err
	}
	if in.ID == adminKeyID {
		key, err := s.adminKey(ctx)
		if err != nil {
			return nil, err
		}
		return a.rendered(key)
	}
	keys, err := s.auth.apiKeys(ctx)
	if err != nil {
		return nil, err
	}
	key, ok := keys.Get(in.ID)
	if !ok {
		return nil, noAPIKey()
	}
	shown, err := s.shownAPIKey(ctx, key)
	if err != nil {
		return nil, err
	}
	a.ETag = etag(key.Revision)
	return a.rendered(shown)
}

type patchAPIKeyInput struct {
	KeyID
	Command
	JSON[apiKeyPatch]
}

// apiKeyPatch is an RFC 7396 merge patch of NewAPIKey, as sent.
type apiKeyPatch map[string]jsontext.Value

// Schema returns the OpenAPI schema of the patch.
func (apiKeyPatch) Schema(r huma.Registry) *huma.Schema {
	schema := huma.SchemaFromType(r, reflect.TypeFor[NewAPIKey]())
	schema.Required = nil
	for name, member := range schema.Properties {
		member.Nullable = name == "expiresTime"
	}
	return schema
}

// errSystemKey returns an error for the bootstrap key, which cannot be changed here.
func (id KeyID) errSystemKey() error {
	if id.ID == adminKeyID {
		return &domain.Error{Code: domain.CodeSystemManaged, Detail: "The bootstrap key cannot be changed or revoked; the command admin-key replaces it."}
	}
	return nil
}

func (s *server) patchAPIKey(ctx context.Context, c *call, in *patchAPIKeyInput) (*answer, error) {
	if err := in.errSystemKey(); err != nil {
		return nil, err
	}
	r, err := in.request(c)
	if err != nil {
		return nil, err
	}
	s.changingKeys.Lock() // the key must not change while the patch is merged into it
	defer s.changingKeys.Unlock()
	keys, err := s.Ledger.LoadAPIKeys(ctx)
	if err != nil {
		return nil, err
	}
	var settings domain.APIKeySettings
	if before, ok := keys.Get(in.ID); ok { // else the ledger refuses, or knows a repetition
		var body NewAPIKey
		if err := decodeMerged(NewAPIKey(before.Settings()), in.RawBody, &body); err != nil {
			return nil, err
		}
		if settings, err = c.granted(body); err != nil {
			return nil, err
		}
	}
	result, err := s.Ledger.ChangeAPIKey(ctx, r, domain.UpdateAPIKey{KeyID: in.ID, Settings: settings})
	if err != nil {
		return nil, err
	}
	if in.DryRun {
		return triedAPIKey(result)
	}
	a, shown, err := s.apiKeyAnswer(ctx, result, in.ID)
	if err != nil {
		return nil, err
	}
	return a.rendered(shown)
}

type revokeAPIKeyInput struct {
	KeyID
	Command
}

func (s *server) revokeAPIKey(ctx context.Context, c *call, in *revokeAPIKeyInput) (*answer, error) {
	if err := in.errSystemKey(); err != nil {
		return nil, err
	}
	r, err := in.request(c)
	if err != nil {
		return nil, err
	}
	result, err := s.Ledger.ChangeAPIKey(ctx, r, domain.RevokeAPIKey{KeyID: in.ID})
	if err != nil {
		return nil, err
	}
	if in.DryRun {
		return triedAPIKey(result)
	}
	// The key is already refused; its hash is no longer needed.
	if err := s.auth.forget(ctx, in.ID); err != nil {
		s.Logger.WarnContext(ctx, "cannot remove the hash of a revoked API key", "key", in.ID, "err", err)
	}
	return s.settled(ctx, result.Position()), nil
}
