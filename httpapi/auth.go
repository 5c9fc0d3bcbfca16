package httpapi

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
	"accountledger/eventstore/seal"
)

// caller is an authenticated caller and its scopes.
type caller struct {
	actor  domain.Actor
	scopes []scope
}

func (c caller) allows(need scope) bool {
	return slices.Contains(c.scopes, need) || slices.Contains(c.scopes, scopeAdmin)
}

// credential is the key store's record of an API key, under "credential/<id>".
// The key itself is not stored anywhere.
type credential struct {
	Hash        []byte    `json:"hash"`            // SHA-256 of the secret, which is random and long: no need for a slow hash
	Scopes      []scope   `json:"scopes,omitzero"` // only of the admin key; the log has those of other keys
	CreatedTime time.Time `json:"createdTime"`
}

// An API key is alk_<id>_<secret>: the id names the caller in the log, the
// secret is 32 random bytes in base64url.
const keyPrefix = "alk_"

func formatKey(id, secret string) string { return keyPrefix + id + "_" + secret }

func newKeySecret() string {
	var random [32]byte
	rand.Read(random[:])
	return base64.RawURLEncoding.EncodeToString(random[:])
}

// Names in the key store.
func credentialName(id string) string    { return "credential/" + id }
func credentialUseName(id string) string { return "credential-used/" + id }

// parseKey splits an API key into its id and secret.
func parseKey(key string) (id, secret string, ok bool) {
	rest, ok := strings.CutPrefix(key, keyPrefix)
	if !ok {
		return "", "", false
	}
	id, secret, ok = strings.Cut(rest, "_")
	ok = ok && id != "" && len(id) <= 36 && len(secret) == 43 &&
		strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
	return id, secret, ok
}

// credentialTTL is how long a credential and its record in the log are cached,
// and so how long a key may keep working after another process has revoked or
// changed it. Changes made by this process take effect at once.
const credentialTTL = 30 * time.Second

// useEvery is the minimum interval between two records of a key's last use.
const useEvery = time.Hour

// authenticator identifies callers by their API keys and tokens.
type authenticator struct {
	keys   *seal.Keys
	ledger *domain.Ledger
	tokens *tokens // nil: tokens are not accepted
	now    func() time.Time
	logger *slog.Logger

	loaded atomic.Int64 // when the API keys were last read from the log, Unix nanoseconds

	mu    sync.RWMutex
	known map[string]knownCredential // by id; never more than the key store has
}

type knownCredential struct {
	credential
	until time.Time
	used  *atomic.Int64 // the recorded last use, Unix seconds; 0: never
}

// The reasons for which access is refused, as logged and counted. See Refusals.
const (
	refusedNoKey   = "no-key"   // no Authorization header with an API key or a token
	refusedUnknown = "unknown"  // no such credential, or it was revoked
	refusedSecret  = "secret"   // the secret does not match the credential
	refusedExpired = "expired"  // an expired API key or token
	refusedToken   = "token"    // a token of another issuer, for another audience, or not valid yet
	refusedScope   = "no-scope" // a valid key without the scope
)

// authenticate returns the caller that the Authorization header identifies, or
// the reason for refusing access.
func (a *authenticator) authenticate(ctx context.Context, authorization string) (_ caller, refused string, _ error) {
	scheme, key, _ := strings.Cut(authorization, " ")
	id, secret, ok := parseKey(key)
	bearer := strings.EqualFold(scheme, "Bearer")
	if bearer && a.tokens != nil && strings.Count(key, ".") == 2 {
		return a.tokens.caller(ctx, key)
	}
	if !ok || !bearer {
		return caller{}, refusedNoKey, nil
	}
	c, err := a.credential(ctx, id)
	if errors.Is(err, seal.ErrNoSecret) {
		return caller{}, refusedUnknown, nil
	}
	if err != nil {
		return caller{}, "", err
	}
	hash := sha256.Sum256([]byte(secret))
	if subtle.ConstantTimeCompare(hash[:], c.Hash) != 1 {
		return caller{}, refusedSecret, nil
	}
	who := caller{domain.Actor{Kind: "api-key", ID: id}, c.Scopes}
	if len(c.Scopes) == 0 {
		keys, err := a.apiKeys(ctx)
		if err != nil {
			return caller{}, "", err
		}
		key, ok := keys.Get(id)
		switch {
		case !ok:
			return caller{}, refusedUnknown, nil
		case key.Expired(a.now()):
			return caller{}, refusedExpired, nil
		}
		for _, s := range key.Scopes {
			who.scopes = append(who.scopes, scope(s))
		}
	}
	a.use(ctx, id, c.used)
	return who, "", nil
}

// apiKeys returns the keys as they are in the log, or were less than
// credentialTTL ago.
func (a *authenticator) apiKeys(ctx context.Context) (*domain.APIKeys, error) {
	now := a.now().UnixNano()
	if loaded := a.loaded.Load(); now-loaded < int64(credentialTTL) || !a.loaded.CompareAndSwap(loaded, now) {
		return a.ledger.APIKeys(ctx)
	}
	return a.ledger.LoadAPIKeys(ctx)
}

func (a *authenticator) credential(ctx context.Context, id string) (knownCredential, error) {
	a.mu.RLock()
	known, ok := a.known[id]
	a.mu.RUnlock()
	now := a.now()
	if ok && now.Before(known.until) {
		return known, nil
	}
	known = knownCredential{until: now.Add(credentialTTL), used: new(atomic.Int64)}
	data, err := a.keys.Secret(ctx, credentialName(id))
	if err == nil {
		err = json.Unmarshal(data, &known.credential)
	}
	if err == nil {
		var used time.Time
		used, err = a.lastUsed(ctx, id)
		known.used.Store(max(0, used.Unix()))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		delete(a.known, id)
		return known, fmt.Errorf("httpapi: credential: %w", err)
	}
	a.known[id] = known
	return known, nil
}

// keep stores the hash of a new key's secret.
func (a *authenticator) keep(ctx context.Context, id, secret string, scopes ...scope) error {
	hash := sha256.Sum256([]byte(secret))
	data, err := json.Marshal(credential{Hash: hash[:], Scopes: scopes, CreatedTime: a.now().UTC()})
	if err != nil {
		return err
	}
	if err := a.keys.PutSecret(ctx, credentialName(id), data); err != nil {
		return fmt.Errorf("httpapi: keep an API key: %w", err)
	}
	return nil
}

// forget removes a revoked key from the key store.
func (a *authenticator) forget(ctx context.Context, id string) error {
	a.mu.Lock()
	delete(a.known, id)
	a.mu.Unlock()
	return errors.Join(a.keys.DeleteSecret(ctx, credentialName(id)), a.keys.DeleteSecret(ctx, credentialUseName(id)))
}

// use records that a key is used, at most once an hour. The record is in the
// key store and not in the log: it says nothing about accounts and would be the
// most frequent event of all.
func (a *authenticator) use(ctx context.Context, id string, used *atomic.Int64) {
	now := a.now()
	before := used.Load()
	if now.Sub(time.Unix(before, 0)) < useEvery || !used.CompareAndSwap(before, now.Unix()) {
		return
	}
	if err := a.keys.PutSecret(ctx, credentialUseName(id), []byte(now.UTC().Format(time.RFC3339))); err != nil {
		a.logger.WarnContext(ctx, "cannot record the use of an API key", "actor", id, "err", err)
	}
}

// lastUsed returns the recorded time of a key's last use; zero: never.
func (a *authenticator) lastUsed(ctx context.Context, id string) (time.Time, error) {
	text, err := a.keys.Secret(ctx, credentialUseName(id))
	if errors.Is(err, seal.ErrNoSecret) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	return time.Parse(time.RFC3339, string(text))
}

// Refusals lists the reasons for which access is refused.
var Refusals = []string{refusedNoKey, refusedUnknown, refusedSecret, refusedExpired, refusedToken, refusedScope}

// admit authenticates the caller, requires the scope, counts the request
// against the caller's limit, and stores the caller in c.
func (s *server) admit(ctx context.Context, c *call, need scope, authorization string) error {
	err := s.recognize(ctx, c, need, authorization)
	if c.actor.ID == "" {
		return err
	}
	return cmp.Or(s.byCaller.take(c.w.Header(), c.actor.String()), err)
}

// recognize is admit without the caller's limit, for callers already admitted.
func (s *server) recognize(ctx context.Context, c *call, need scope, authorization string) error {
	who, refused, err := s.auth.authenticate(ctx, authorization)
	if err != nil {
		return err
	}
	if refused != "" {
		s.refuse(ctx, c, refused)
		// Slows down clients that guess keys. Valid callers are not affected.
		if err := s.byAddress.take(c.w.Header(), s.address(c.r)); err != nil {
			return err
		}
		challenge := `Bearer realm="accountledger"`
		if refused != refusedNoKey {
			challenge += `, error="invalid_token"` // RFC 6750
		}
		return newProblem(codeUnauthorized, "A valid API key or token is required.").with("WWW-Authenticate", challenge)
	}
	c.caller = who
	c.admin, c.sees = who.allows(scopeAccountsAdmin), who.allows(scopeAccountsRead)
	if !who.allows(need) {
		s.refuse(ctx, c, refusedScope)
		return newProblem(codeForbidden, "The scope %s is required.", need).
			with("WWW-Authenticate", fmt.Sprintf(`Bearer realm="accountledger", error="insufficient_scope", scope="%s"`, need))
	}
	return nil
}

// refuse logs and counts a refusal of access. It logs no part of the key that
// was sent, not even its id: it may be a secret in the wrong place.
func (s *server) refuse(ctx context.Context, c *call, reason string) {
	s.Refused(reason)
	s.Logger.WarnContext(ctx, "access refused", "reason", reason, "route", c.route, "actor", c.actor.ID, "request", c.id)
}
