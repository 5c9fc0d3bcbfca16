package httpapi

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
	"accountledger/eventstore/seal"
)

// scope is a right that a credential has and a route needs.
type scope string

// The scopes.
const (
	scopeAccountsRead  scope = "accounts:read"  // get and look up accounts
	scopeAccountsWrite scope = "accounts:write" // create and change accounts
	scopeAccountsAdmin scope = "accounts:admin" // besides, write read-only custom fields and see and write internal ones
	scopeAuditRead     scope = "audit:read"     // histories, positions of projections
	scopeEventsRead    scope = "events:read"    // the feed
	scopeWebhooksRead  scope = "webhooks:read"
	scopeWebhooksWrite scope = "webhooks:write"
	scopeLoginsWrite   scope = "logins:write" // ask whether somebody may log in, and record it
	scopeConfigRead    scope = "config:read"
	scopeConfigWrite   scope = "config:write" // change the configuration, rebuild projections
	scopeAdmin         scope = "ledger:admin" // everything, also what later versions add
)

// scopes is the list of all scopes.
var scopes = []scope{scopeAccountsRead, scopeAccountsWrite, scopeAccountsAdmin, scopeAuditRead, scopeEventsRead,
	scopeWebhooksRead, scopeWebhooksWrite, scopeLoginsWrite, scopeConfigRead, scopeConfigWrite, scopeAdmin}

// credential is what is kept of an API key, in the key store under
// "credential/<id>". The key itself is kept nowhere.
type credential struct {
	Hash        []byte    `json:"hash"` // SHA-256 of the secret, which is random and long: no need for a slow hash
	Scopes      []scope   `json:"scopes"`
	CreatedTime time.Time `json:"createdTime"`
}

func (c credential) allows(need scope) bool {
	return slices.Contains(c.Scopes, need) || slices.Contains(c.Scopes, scopeAdmin)
}

// An API key is alk_<id>_<secret>: the id names the caller in the log, the
// secret is 32 random bytes in base64url.
const (
	keyPrefix  = "alk_"
	adminKeyID = "admin"
)

func credentialName(id string) string { return "credential/" + id }

// parseKey cuts an API key into its id and its secret.
func parseKey(key string) (id, secret string, ok bool) {
	rest, ok := strings.CutPrefix(key, keyPrefix)
	if !ok {
		return "", "", false
	}
	id, secret, ok = strings.Cut(rest, "_")
	ok = ok && id != "" && len(id) <= 32 && len(secret) == 43 &&
		strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
	return id, secret, ok
}

// credentialTTL is how long a credential is remembered, and thus how long a
// key that another process revoked may still be accepted.
const credentialTTL = 30 * time.Second

// authenticator knows the callers.
type authenticator struct {
	keys *seal.Keys
	now  func() time.Time

	mu    sync.RWMutex
	known map[string]knownCredential // by id; no more than there are in the key store
}

type knownCredential struct {
	credential
	until time.Time
}

// Why access was refused, as it is logged and counted.
const (
	refusedNoKey   = "no-key"   // no Authorization header of the form Bearer alk_...
	refusedUnknown = "unknown"  // no such credential
	refusedSecret  = "secret"   // a credential's id with another secret
	refusedScope   = "no-scope" // a valid key without the scope
)

// authenticate returns who sends authorization, or the reason why nobody is
// believed to.
func (a *authenticator) authenticate(ctx context.Context, authorization string) (id string, _ credential, refused string, _ error) {
	scheme, key, _ := strings.Cut(authorization, " ")
	id, secret, ok := parseKey(key)
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return "", credential{}, refusedNoKey, nil
	}
	c, err := a.credential(ctx, id)
	if errors.Is(err, seal.ErrNoSecret) {
		return "", c, refusedUnknown, nil
	}
	if err != nil {
		return "", c, "", err
	}
	hash := sha256.Sum256([]byte(secret))
	if subtle.ConstantTimeCompare(hash[:], c.Hash) != 1 {
		return "", c, refusedSecret, nil
	}
	return id, c, "", nil
}

func (a *authenticator) credential(ctx context.Context, id string) (credential, error) {
	a.mu.RLock()
	known, ok := a.known[id]
	a.mu.RUnlock()
	now := a.now()
	if ok && now.Before(known.until) {
		return known.credential, nil
	}
	var c credential
	data, err := a.keys.Secret(ctx, credentialName(id))
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		delete(a.known, id)
		return c, fmt.Errorf("httpapi: credential: %w", err)
	}
	a.known[id] = knownCredential{c, now.Add(credentialTTL)}
	return c, nil
}

// Bootstrap makes the admin key when the ledger has none yet and writes it to
// path, readable by its owner only. Where there is one it does nothing, also
// when the file is gone: a lost key is replaced on purpose, by NewAdminKey.
func Bootstrap(ctx context.Context, keys *seal.Keys, path string) error {
	_, err := keys.Secret(ctx, credentialName(adminKeyID))
	if errors.Is(err, seal.ErrNoSecret) {
		return NewAdminKey(ctx, keys, path)
	}
	if err != nil {
		return fmt.Errorf("httpapi: look for the admin key: %w", err)
	}
	return nil
}

// NewAdminKey makes a new admin key, with every scope, and writes it to path.
// The one before is no longer valid.
func NewAdminKey(ctx context.Context, keys *seal.Keys, path string) error {
	var random [32]byte
	rand.Read(random[:])
	secret := base64.RawURLEncoding.EncodeToString(random[:])
	// The file first: a key that is stored and was never written is lost,
	// one that was written and is not stored is replaced at the next start.
	if err := writePrivate(path, []byte(keyPrefix+adminKeyID+"_"+secret+"\n")); err != nil {
		return fmt.Errorf("httpapi: write the admin key: %w", err)
	}
	hash := sha256.Sum256([]byte(secret))
	data, err := json.Marshal(credential{Hash: hash[:], Scopes: []scope{scopeAdmin}, CreatedTime: time.Now().UTC()})
	if err != nil {
		return err
	}
	if err := keys.PutSecret(ctx, credentialName(adminKeyID), data); err != nil {
		return fmt.Errorf("httpapi: store the admin key: %w", err)
	}
	return nil
}

// writePrivate puts data at path, whole or not at all, with mode 0600.
func writePrivate(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return &fs.PathError{Op: "write", Path: path, Err: errors.New("not a regular file")}
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close()) // or a crash takes the name back
}

// newRefusals counts refused access by reason. The map is never changed.
func newRefusals() map[string]*atomic.Int64 {
	counts := map[string]*atomic.Int64{}
	for _, reason := range []string{refusedNoKey, refusedUnknown, refusedSecret, refusedScope} {
		counts[reason] = new(atomic.Int64)
	}
	return counts
}

// admit lets a caller with the scope in and notes in c who it is.
func (s *server) admit(ctx context.Context, c *call, need scope, authorization string) error {
	id, credential, refused, err := s.auth.authenticate(ctx, authorization)
	if err != nil {
		return err
	}
	if refused != "" {
		s.refuse(ctx, c, refused)
		return newProblem(codeUnauthorized, "A valid API key is required.").with("WWW-Authenticate", `Bearer realm="accountledger"`)
	}
	c.actor = domain.Actor{Kind: "api-key", ID: id}
	c.admin, c.sees = credential.allows(scopeAccountsAdmin), credential.allows(scopeAccountsRead)
	if !credential.allows(need) {
		s.refuse(ctx, c, refusedScope)
		return newProblem(codeForbidden, "The scope %s is required.", need).
			with("WWW-Authenticate", fmt.Sprintf(`Bearer realm="accountledger", error="insufficient_scope", scope="%s"`, need))
	}
	return nil
}

// refuse logs and counts a refusal of access. What was sent as a key is not
// logged, not even its id: it may be a secret in the wrong place.
func (s *server) refuse(ctx context.Context, c *call, reason string) {
	s.refused[reason].Add(1)
	s.Logger.WarnContext(ctx, "access refused", "reason", reason, "route", c.route, "actor", c.actor.ID, "request", c.id)
}
