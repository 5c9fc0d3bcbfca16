// Package seal keeps plaintext personal data out of the log. Each account has
// a random 256-bit data key. The personal part of an event is sealed under
// that key before the event crosses the eventstore port; destroying the key
// erases the account's personal data in every copy of the log.
//
// The file keys.db holds the data keys, wrapped by a master key, which backups
// of the ledger's directory do not contain. It also holds secrets that belong
// to the ledger: the HMAC key for claims, the signing secrets of webhooks, and
// the hashes of credentials.
//
//	kid    = slot u64 || first 24 bytes of HKDF-SHA256(DEK, info "al1/kid")
//	enc    = HKDF-SHA256(DEK, info "al1/enc")
//	sealed = nonce[12] || AES-256-GCM(enc) ciphertext || tag[16]
//	AAD    = "AL1/aad" || event id[16] || u32len stream || revision u64 || u32len type
//
// HKDF is that of RFC 5869 without a salt, GCM is that of NIST SP 800-38D, and
// integers are big-endian. The kid commits to the key. AES-GCM does not: a
// ciphertext can be constructed that opens under two keys. So the package
// compares the kid before it decrypts anything.
package seal

import (
	"cmp"
	"context"
	"crypto/cipher"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	_ "github.com/mattn/go-sqlite3" // the driver "sqlite3"
	"github.com/maypok86/otter/v2"

	"accountledger/eventstore"
)

// Errors that methods of Keys return or wrap.
var (
	ErrErased   = errors.New("seal: the key was destroyed")
	ErrKey      = errors.New("seal: no such key")
	ErrOpen     = errors.New("seal: the sealed bytes are damaged or belong to another event")
	ErrMaster   = errors.New("seal: not the master key of this file")
	ErrNoSecret = errors.New("seal: no such secret")
	ErrReadOnly = errors.New("seal: the key file is open for reading only")
	ErrLedger   = errors.New("seal: the key file belongs to another ledger")
	ErrEmpty    = errors.New("seal: the key file is missing or empty")
	ErrBusy     = errors.New("seal: deleted data is still on disk because a reader holds old pages; try again")
)

// Values of PRAGMA application_id and user_version in a key file.
const (
	applicationID = 0x414c6b79 // "ALky"
	schemaVersion = 2
)

//go:embed schema.sql
var schema string

// upgrade brings a file of version 1 to version 2.
const upgrade = `
ALTER TABLE meta RENAME TO meta_1;
%s
INSERT INTO epochs (epoch, check_value) SELECT epoch, check_value FROM meta_1;
INSERT INTO meta (id, ledger, destroyed) VALUES (1, '', (SELECT count(*) FROM keys WHERE wrapped = x''));
DROP TABLE meta_1;
PRAGMA user_version = 2`

// Config configures Open and OpenReader.
type Config struct {
	Path     string // of keys.db; Open creates it with mode 0600, but not its directory
	Master   Master // wraps all keys in the file
	PoolSize int    // size of the largest batch of keys created in advance; 0 means 1024

	// Ledger is the id of the ledger that the file must belong to. "" accepts
	// the file of any ledger.
	Ledger string
	// Existing makes Open fail with ErrEmpty if the file is missing or empty,
	// instead of creating it.
	Existing bool
}

// cachedKeys is the number of data keys kept ready in memory, about 1 KiB each.
const cachedKeys = 1 << 14

// Keys is an open key file. Its methods are safe for concurrent use. Only one
// process at a time may have the file open with Open; any number may have it
// open with OpenReader.
type Keys struct {
	path    string
	version int // of the file's format
	wrap    wrapper
	claim   []byte // HMAC key for claims
	head    *heads // computes Vouch; nil in a reader of a version 1 file
	fresh   []byte // the head key that Bind adds to a version 1 file
	sealed  bool   // see LogSealed

	changes, destroyed atomic.Int64 // as in meta
	slots              atomic.Int64 // the highest slot

	write *sql.DB // one connection: SQLite has one writer, so queue here; nil in a reader
	read  *sql.DB
	pool  *pool // nil in a reader

	find, findRange *sql.Stmt // on read: the row in a slot, and the rows in a range of slots
	ahead           readAhead

	cache *otter.Cache[eventstore.KeyID, cipher.AEAD]
	fence sync.RWMutex // held for reading from reading a key's row to caching its cipher; see Destroy
}

// Open opens keys.db for a server, and creates it unless Config.Existing is set. It
// fails with ErrMaster if the file was created under another master key, and
// with ErrLedger if it belongs to another ledger. A file of an older version stays
// as it is, and belongs to no ledger, until Bind.
func Open(ctx context.Context, cfg Config) (*Keys, error) {
	if cfg.PoolSize < 0 {
		return nil, errors.New("seal: the pool size is negative")
	}
	if info, err := os.Stat(cfg.Path); cfg.Existing && (errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0) {
		return nil, fmt.Errorf("%w: %s", ErrEmpty, cfg.Path)
	}
	// SQLite would create the file, its -wal and its -shm readable by all users.
	f, err := os.OpenFile(cfg.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	f.Close()

	write, err := connect(cfg.Path, "_journal_mode=WAL&_synchronous=FULL&_secure_delete=on&_txlock=immediate")
	if err != nil {
		return nil, err
	}
	write.SetMaxOpenConns(1)
	k, err := open(ctx, cfg, write)
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	k.pool = newPool(cmp.Or(cfg.PoolSize, 1024))
	go k.refill()
	return k, nil
}

// OpenReader opens an existing keys.db for a command-line tool beside a running
// server. The reader can seal, open, compute claims and read secrets; methods
// that change the file fail with ErrReadOnly. It caches keys that it used and
// their neighbours, so a key that the server destroys meanwhile may still work
// in the reader until Close.
func OpenReader(ctx context.Context, cfg Config) (*Keys, error) {
	if _, err := os.Stat(cfg.Path); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return open(ctx, cfg, nil)
}

func open(ctx context.Context, cfg Config, write *sql.DB) (*Keys, error) {
	wrap, err := newWrapper(cfg.Master)
	if err != nil {
		return nil, err
	}
	k := &Keys{path: cfg.Path, wrap: wrap, write: write}
	if write != nil {
		if err := k.make(ctx, cfg); err != nil {
			return nil, fmt.Errorf("seal: open %s: %w", cfg.Path, err)
		}
	}
	// Without query_only, which would also refuse the VACUUM INTO of Backup.
	if k.read, err = connect(cfg.Path, "mode=ro"); err != nil {
		return nil, err
	}
	if err := k.prepare(ctx, cfg.Ledger); err != nil {
		return nil, errors.Join(fmt.Errorf("seal: open %s: %w", cfg.Path, err), k.read.Close())
	}
	return k, nil
}

// connect opens the file with the given driver parameters. The busy timeout
// bounds how long the WAL checkpoint after a deletion waits for readers.
func connect(path, params string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	// The driver reads the path as a URI, in which ? and % are special.
	dsn := "file:" + (&url.URL{Path: abs}).EscapedPath() + "?_busy_timeout=5000&" + params
	return sql.Open("sqlite3", dsn)
}

// make fills an empty file, if cfg allows that.
func (k *Keys) make(ctx context.Context, cfg Config) error {
	tx, err := k.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var app, version, tables int
	const look = `SELECT (SELECT * FROM pragma_application_id), (SELECT * FROM pragma_user_version), (SELECT count(*) FROM sqlite_schema)`
	if err := tx.QueryRowContext(ctx, look).Scan(&app, &version, &tables); err != nil {
		return err
	}
	switch {
	case app == 0 && tables == 0:
		if cfg.Existing {
			return ErrEmpty
		}
		err = k.create(ctx, tx, cfg.Ledger)
	default:
		return nil // prepare checks whether it is a key file
	}
	if err != nil {
		return err
	}
	return tx.Commit()
}

// create adds the tables, the check value and the ledger's own keys to an empty
// file.
func (k *Keys) create(ctx context.Context, tx *sql.Tx, ledger string) error {
	script := fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d; %s", applicationID, schemaVersion, schema)
	if _, err := tx.ExecContext(ctx, script); err != nil {
		return err
	}
	check := k.wrap.wrap(checkAAD(k.wrap.epoch), nil)
	if _, err := tx.ExecContext(ctx, `INSERT INTO epochs (epoch, check_value) VALUES (?, ?)`, k.wrap.epoch, check); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO meta (id, ledger) VALUES (1, ?)`, ledger); err != nil {
		return err
	}
	if err := k.putSecret(ctx, tx, claimSecret, randomKey()); err != nil {
		return err
	}
	key := randomKey()
	if err := k.putSecret(ctx, tx, headSecret, append(key[:headKey:headKey], logSealed)); err != nil {
		return err
	}
	return sealSecrets(ctx, tx, newHeads(key))
}

// upgrade brings the file of version 1 to the present one, with the head key that
// Vouch has used since Open.
func (k *Keys) upgrade(ctx context.Context, tx *sql.Tx) error {
	var added []string // the tables that version 1 does not have
	for _, statement := range strings.SplitAfter(schema, ";\n\n") {
		for _, table := range []string{"meta", "epochs", "credentials"} {
			if strings.Contains(statement, "CREATE TABLE "+table+" ") {
				added = append(added, statement)
			}
		}
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf(upgrade, strings.Join(added, ""))); err != nil {
		return err
	}
	if err := k.putSecret(ctx, tx, headSecret, append(k.fresh[:headKey:headKey], logUnsealed)); err != nil {
		return err
	}
	return sealSecrets(ctx, tx, k.head)
}

// The head secret is the head key and a byte that says whether the log beside the
// file has a sealed head. It is part of the secret, because whoever may write to
// the file could remove a row of its own.
const (
	headKey     = 32
	logUnsealed = 0
	logSealed   = 1
)

// LogSealed reports whether the log beside the file has had a sealed head. A log
// without one is then not this ledger's.
func (k *Keys) LogSealed() bool { return k.sealed }

// MarkLogSealed records that the log beside the file has a sealed head.
func (k *Keys) MarkLogSealed(ctx context.Context) error {
	if k.sealed {
		return nil
	}
	if k.write == nil {
		return ErrReadOnly
	}
	key, err := k.secret(ctx, headSecret)
	if err != nil {
		return err
	}
	tx, err := k.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("seal: mark: %w", err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, `DELETE FROM secrets WHERE name = ?`, headSecret); err != nil {
		return fmt.Errorf("seal: mark: %w", err)
	}
	err = k.putSecret(ctx, tx, headSecret, append(key[:headKey:headKey], logSealed))
	if err == nil {
		err = sealSecrets(ctx, tx, k.head)
	}
	if err != nil {
		return fmt.Errorf("seal: mark: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("seal: mark: %w", err)
	}
	k.sealed = true
	return k.truncateWAL(ctx)
}

// Bind makes the file, which an older version of this program wrote, that of a
// ledger. It fails with ErrLedger if it belongs to another one.
func (k *Keys) Bind(ctx context.Context, ledger string) error {
	if k.write == nil {
		return ErrReadOnly
	}
	tx, err := k.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("seal: bind: %w", err)
	}
	defer tx.Rollback()
	if k.version == 1 {
		if err := k.upgrade(ctx, tx); err != nil {
			return fmt.Errorf("seal: bind: %w", err)
		}
	}
	if _, err := tx.ExecContext(ctx, `UPDATE meta SET ledger = ? WHERE ledger = ''`, ledger); err != nil {
		return fmt.Errorf("seal: bind: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("seal: bind: %w", err)
	}
	k.version = schemaVersion
	owner, err := k.Ledger(ctx)
	if err == nil && owner != ledger {
		err = ErrLedger
	}
	return err
}

// Ledger returns the id of the ledger that the file belongs to, "" if none.
func (k *Keys) Ledger(ctx context.Context) (id string, err error) {
	if k.version == 1 {
		return "", nil
	}
	if err := k.read.QueryRowContext(ctx, `SELECT ledger FROM meta`).Scan(&id); err != nil {
		return "", fmt.Errorf("seal: ledger: %w", err)
	}
	return id, nil
}

// Reload returns the same as State, from the file: a reader does not notice what a
// server changes.
func (k *Keys) Reload(ctx context.Context) (s eventstore.KeyState, err error) {
	err = k.read.QueryRowContext(ctx, `SELECT changes, destroyed, (SELECT coalesce(max(slot), 0) FROM keys) FROM meta`).
		Scan(&s.Changes, &s.Destroyed, &s.Slot)
	if err != nil {
		return s, fmt.Errorf("seal: state: %w", err)
	}
	return s, nil
}

// State returns what the log's sealed head says about the key file.
func (k *Keys) State() eventstore.KeyState {
	return eventstore.KeyState{Slot: uint64(k.slots.Load()), Changes: k.changes.Load(), Destroyed: k.destroyed.Load()}
}

// prepare checks that the file is a key file under this master key and of this
// ledger, and sets the fields that the methods need.
func (k *Keys) prepare(ctx context.Context, ledger string) (err error) {
	var app, version int
	if err := k.read.QueryRowContext(ctx, `SELECT (SELECT * FROM pragma_application_id), (SELECT * FROM pragma_user_version)`).Scan(&app, &version); err != nil {
		return err
	}
	switch {
	case app == 0:
		return ErrEmpty
	case app != applicationID:
		return errors.New("it is not a key file of this program")
	case version > schemaVersion || version < 1:
		return fmt.Errorf("it has format version %d, but this program reads version %d", version, schemaVersion)
	}
	k.version = version
	if err := k.checkTriggers(ctx); err != nil {
		return err
	}
	if err := k.checkMaster(ctx); err != nil {
		return err
	}
	if k.claim, err = k.secret(ctx, claimSecret); err != nil {
		return err
	}
	if err := k.load(ctx, ledger); err != nil {
		return err
	}
	k.cache, err = otter.New(&otter.Options[eventstore.KeyID, cipher.AEAD]{MaximumSize: cachedKeys})
	if err != nil {
		return err
	}
	if k.find, err = k.read.PrepareContext(ctx, `SELECT epoch, wrapped FROM keys WHERE slot = ?`); err != nil {
		return err
	}
	k.findRange, err = k.read.PrepareContext(ctx, `SELECT slot, epoch, wrapped FROM keys WHERE slot BETWEEN ? AND ? ORDER BY slot`)
	return err
}

// checkTriggers fails unless the file's triggers are those of the schema, and there
// are no views: others would run when keys and secrets are changed.
func (k *Keys) checkTriggers(ctx context.Context) error {
	found, err := column[string](ctx, k.read, `SELECT coalesce(sql, '') FROM sqlite_schema WHERE type NOT IN ('table', 'index')`)
	if err != nil {
		return err
	}
	for _, trigger := range found {
		if !strings.Contains(schema, trigger) {
			return fmt.Errorf("%w: keys.db has a trigger or a view that this program did not create", eventstore.ErrTampered)
		}
	}
	return nil
}

// load reads what State and Vouch return.
func (k *Keys) load(ctx context.Context, ledger string) error {
	if k.version == 1 {
		if k.write != nil {
			k.fresh = randomKey()
			k.head = newHeads(k.fresh)
		}
		var slots, destroyed int64
		err := k.read.QueryRowContext(ctx, `SELECT coalesce(max(slot), 0), count(*) FILTER (WHERE wrapped = x'') FROM keys`).Scan(&slots, &destroyed)
		k.slots.Store(slots)
		k.destroyed.Store(destroyed)
		return err
	}
	key, err := k.secret(ctx, headSecret)
	if err != nil {
		return err
	}
	if len(key) != headKey+1 {
		return ErrOpen
	}
	k.head, k.sealed = newHeads(key[:headKey]), key[headKey] == logSealed
	var owner string
	var changes, destroyed, slots int64
	err = k.read.QueryRowContext(ctx, `SELECT ledger, changes, destroyed, (SELECT coalesce(max(slot), 0) FROM keys) FROM meta`).
		Scan(&owner, &changes, &destroyed, &slots)
	if err != nil {
		return err
	}
	if ledger != "" && owner != "" && owner != ledger {
		return fmt.Errorf("%w, %s", ErrLedger, owner)
	}
	k.changes.Store(changes)
	k.destroyed.Store(destroyed)
	k.slots.Store(slots)
	return k.checkSecrets(ctx)
}

func (k *Keys) checkMaster(ctx context.Context) error {
	query := `SELECT epoch, check_value FROM epochs ORDER BY epoch DESC LIMIT 1`
	if k.version == 1 {
		query = `SELECT epoch, check_value FROM meta`
	}
	var epoch uint32
	var check []byte
	if err := k.read.QueryRowContext(ctx, query).Scan(&epoch, &check); err != nil {
		return err
	}
	return k.checkValue(epoch, check)
}

func (k *Keys) checkValue(epoch uint32, check []byte) error {
	if epoch != k.wrap.epoch {
		return fmt.Errorf("%w: the file's key has epoch %d, the given key has epoch %d", ErrMaster, epoch, k.wrap.epoch)
	}
	if _, err := k.wrap.unwrap(checkAAD(k.wrap.epoch), check); err != nil {
		return ErrMaster
	}
	return nil
}

// Check reads the whole file and returns an error if SQLite finds it damaged,
// or if a key or secret does not open under the master key. The error says how
// many keys do not open and gives the slot of the first.
func (k *Keys) Check(ctx context.Context) error {
	var found string
	if err := k.read.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&found); err != nil {
		return fmt.Errorf("seal: check: %w", err)
	}
	if found != "ok" {
		return fmt.Errorf("seal: check %s: %s", k.path, found)
	}
	if err := k.checkMaster(ctx); err != nil {
		return fmt.Errorf("seal: check %s: %w", k.path, err)
	}
	if err := k.checkKeys(ctx); err != nil {
		return err
	}
	names, err := column[string](ctx, k.read, `SELECT name FROM secrets`)
	if err != nil {
		return fmt.Errorf("seal: check: %w", err)
	}
	for _, name := range names {
		if _, err := k.secret(ctx, name); err != nil && !errors.Is(err, ErrNoSecret) {
			return err
		}
	}
	return nil
}

// checkKeys reads in pages, so that it does not hold old pages of the
// write-ahead log that Destroy has to remove.
func (k *Keys) checkKeys(ctx context.Context) error {
	const page = 1 << 12
	var last, bad, first int64
	for {
		slots, err := column[int64](ctx, k.read, `SELECT slot FROM keys WHERE slot > ? ORDER BY slot LIMIT ?`, last, page)
		if err != nil {
			return fmt.Errorf("seal: check: %w", err)
		}
		if len(slots) == 0 {
			break
		}
		for _, slot := range slots {
			if _, err := k.row(slot); err != nil && !errors.Is(err, ErrErased) {
				if bad++; bad == 1 {
					first = slot
				}
			}
		}
		last = slots[len(slots)-1]
	}
	if bad > 0 {
		return fmt.Errorf("seal: check %s: %d keys do not open, the first in slot %d", k.path, bad, first)
	}
	return nil
}

// column runs a query and returns its only column.
func column[T any](ctx context.Context, db *sql.DB, query string, args ...any) ([]T, error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		var value T
		if err := rows.Scan(&value); err != nil {
			return nil, err
		}
		all = append(all, value)
	}
	return all, rows.Err()
}

// Backup writes a consistent copy of the file to dest. It fails if dest exists.
// The bytes of the copy are durable when Backup returns nil; the caller makes its
// name durable by syncing the directory. A key destroyed later remains in
// the copy, wrapped by the master key. So keep copies no longer than the law
// permits, and after restoring one, destroy again the keys that the log says
// are erased.
func (k *Keys) Backup(ctx context.Context, dest string) error {
	f, err := os.OpenFile(dest, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("seal: back up: %w", err)
	}
	defer f.Close()
	if _, err := k.read.ExecContext(ctx, `VACUUM INTO ?`, dest); err != nil {
		return errors.Join(fmt.Errorf("seal: back up %s: %w", k.path, err), os.Remove(dest))
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("seal: back up: %w", err)
	}
	return nil
}

// Close stops the creation of keys and closes the file. It abandons the keys
// that NewKey has not returned.
func (k *Keys) Close() error {
	var writeErr error
	if k.pool != nil {
		k.pool.close()
	}
	// Close the readers first: SQLite merges the write-ahead log into the file
	// when the last connection closes, and that must be the writer's.
	readErr := errors.Join(k.find.Close(), k.findRange.Close(), k.read.Close())
	if k.write != nil {
		writeErr = k.write.Close()
	}
	k.cache.InvalidateAll()
	if err := errors.Join(readErr, writeErr); err != nil {
		return fmt.Errorf("seal: close: %w", err)
	}
	return nil
}
