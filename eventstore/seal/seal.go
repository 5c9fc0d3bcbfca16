// Package seal keeps personal data out of the log: each account has a random
// 256-bit data key, personal parts of events are sealed under it before they
// cross the eventstore port, and destroying the key is what erases them, in
// every copy of the log there is.
//
// The data keys lie in keys.db, wrapped by a master key that is in no file of
// the ledger's directory that is backed up with it. Beside them lie the
// secrets that are not a person's: the key under which claims are hashed, the
// webhooks' signing secrets, the hashes of credentials.
//
//	kid    = slot u64 || first 24 bytes of HKDF-SHA256(DEK, info "al1/kid")
//	enc    = HKDF-SHA256(DEK, info "al1/enc")
//	sealed = nonce[12] || AES-256-GCM(enc) ciphertext || tag[16]
//	AAD    = "AL1/aad" || event id[16] || u32len stream || revision u64 || u32len type
//
// HKDF is RFC 5869 without a salt, GCM is NIST SP 800-38D, integers are
// big-endian. The kid commits to the key: AES-GCM alone does not, one
// ciphertext can be made to open under two keys, so the kid is compared
// before anything is decrypted.
package seal

import (
	"cmp"
	"context"
	"crypto/cipher"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	_ "github.com/mattn/go-sqlite3" // the driver "sqlite3"
	"github.com/maypok86/otter/v2"

	"accountledger/eventstore"
)

// What opening, sealing and keeping may be refused with.
var (
	ErrErased   = errors.New("seal: the key was destroyed")
	ErrKey      = errors.New("seal: no such key")
	ErrOpen     = errors.New("seal: the sealed bytes are not this event's")
	ErrMaster   = errors.New("seal: not the master key of this file")
	ErrNoSecret = errors.New("seal: no such secret")
	ErrReadOnly = errors.New("seal: opened for reading")
	ErrBusy     = errors.New("seal: old pages are still on disk, another reader holds them")
)

// What makes a file ours, see PRAGMA application_id and user_version.
const (
	applicationID = 0x414c6b79 // "ALky"
	schemaVersion = 1
)

//go:embed schema.sql
var schema string

// Config says where the keys are and what opens them.
type Config struct {
	Path      string // of keys.db; Open makes it, with mode 0600, in a directory that exists
	Master    Master // wraps all keys in the file
	PoolSize  int    // largest batch of keys made ahead; default 1024
	CacheSize int    // data keys kept ready in memory, about 1 KiB each; default 16384
}

// Keys is the open key file. All methods may be called at once by many
// goroutines. One process at a time may have it from Open; any number may
// have it from OpenReader.
type Keys struct {
	path  string
	wrap  wrapper
	claim []byte // HMAC key of claims

	write *sql.DB // one connection: SQLite has one writer, so queue here; nil in a reader
	read  *sql.DB
	pool  *pool // nil in a reader

	find, findAll *sql.Stmt // the row of a key and those of its neighbours, on read
	ahead         ahead

	cache *otter.Cache[eventstore.KeyID, cipher.AEAD]
	fence sync.RWMutex // held for reading from finding a key's row to caching it, see Destroy
}

// Open opens keys.db for a server, making it where there is none. It refuses
// with ErrMaster if the file was made under another master key.
func Open(ctx context.Context, cfg Config) (*Keys, error) {
	if cfg.PoolSize < 0 || cfg.CacheSize < 0 {
		return nil, errors.New("seal: a size is negative")
	}
	// SQLite would make the file, its -wal and its -shm readable for all.
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

// OpenReader opens keys.db for a command-line tool beside a running server: it
// seals, opens, hashes claims and reads secrets, and changes nothing. It
// remembers keys it has opened, and their neighbours, so a key destroyed
// meanwhile may open in it until it is closed.
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
		if err := k.create(ctx); err != nil {
			return nil, fmt.Errorf("seal: open %s: %w", cfg.Path, err)
		}
	}
	// Not query_only: that adds nothing to mode=ro but to refuse VACUUM INTO.
	if k.read, err = connect(cfg.Path, "mode=ro"); err != nil {
		return nil, err
	}
	if err := k.prepare(ctx, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("seal: open %s: %w", cfg.Path, err), k.read.Close())
	}
	return k, nil
}

// connect opens the file with these parameters of the driver. The busy timeout
// is what a destroyed key's checkpoint waits for readers.
func connect(path, params string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	// The driver takes a path for a URI, in which ? and % have a meaning.
	dsn := "file:" + (&url.URL{Path: abs}).EscapedPath() + "?_busy_timeout=5000&" + params
	return sql.Open("sqlite3", dsn)
}

// create makes the tables, the check value and the claim key in a file that
// has none.
func (k *Keys) create(ctx context.Context) error {
	tx, err := k.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var app, tables int
	if err := tx.QueryRowContext(ctx, `SELECT (SELECT * FROM pragma_application_id), (SELECT count(*) FROM sqlite_schema)`).Scan(&app, &tables); err != nil {
		return err
	}
	if app != 0 || tables != 0 {
		return nil // somebody's: prepare says whose
	}
	script := fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d; %s", applicationID, schemaVersion, schema)
	if _, err := tx.ExecContext(ctx, script); err != nil {
		return err
	}
	check := k.wrap.wrap(checkPlace(k.wrap.epoch), nil)
	if _, err := tx.ExecContext(ctx, `INSERT INTO meta (id, epoch, check_value) VALUES (1, ?, ?)`, k.wrap.epoch, check); err != nil {
		return err
	}
	if err := k.putSecret(ctx, tx, claimSecret, randomKey()); err != nil {
		return err
	}
	return tx.Commit()
}

// prepare checks whose file it is and fills what every call needs.
func (k *Keys) prepare(ctx context.Context, cfg Config) (err error) {
	var app, version int
	if err := k.read.QueryRowContext(ctx, `SELECT (SELECT * FROM pragma_application_id), (SELECT * FROM pragma_user_version)`).Scan(&app, &version); err != nil {
		return err
	}
	switch {
	case app != applicationID:
		return errors.New("not a key file of this program")
	case version != schemaVersion:
		return fmt.Errorf("its format is version %d, this program reads version %d", version, schemaVersion)
	}
	if err := k.checkMaster(ctx); err != nil {
		return err
	}
	if k.claim, err = k.secret(ctx, claimSecret); err != nil {
		return err
	}
	k.cache, err = otter.New(&otter.Options[eventstore.KeyID, cipher.AEAD]{MaximumSize: cmp.Or(cfg.CacheSize, 1<<14)})
	if err != nil {
		return err
	}
	if k.find, err = k.read.PrepareContext(ctx, `SELECT epoch, wrapped FROM keys WHERE slot = ?`); err != nil {
		return err
	}
	k.findAll, err = k.read.PrepareContext(ctx, `SELECT slot, epoch, wrapped FROM keys WHERE slot BETWEEN ? AND ? ORDER BY slot`)
	return err
}

func (k *Keys) checkMaster(ctx context.Context) error {
	var epoch uint32
	var check []byte
	if err := k.read.QueryRowContext(ctx, `SELECT epoch, check_value FROM meta`).Scan(&epoch, &check); err != nil {
		return err
	}
	if epoch != k.wrap.epoch {
		return fmt.Errorf("%w: that is of epoch %d, this of %d", ErrMaster, epoch, k.wrap.epoch)
	}
	if _, err := k.wrap.unwrap(checkPlace(k.wrap.epoch), check); err != nil {
		return ErrMaster
	}
	return nil
}

// Check reads the whole file: its structure, and whether every key and secret
// opens under the master key. It says how many do not and where the first is.
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

// checkKeys reads in pages, so that it never keeps the log of a destroyed key
// from being cut off.
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

// column is the one column of a query's rows.
func column[T any](ctx context.Context, db *sql.DB, query string, args ...any) ([]T, error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		var one T
		if err := rows.Scan(&one); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// Backup writes a consistent copy of the live file to dest, which must not
// exist. Its bytes are durable when Backup returns; the caller makes its name
// durable by syncing the directory. A key destroyed later lives on in
// the copy, under the master key of its epoch: keep copies no longer than the
// law lets you, and destroy again what the log says is erased after restoring
// one.
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

// Close ends the making of keys and closes the file. Keys made ahead and not
// taken are abandoned, see NewKey.
func (k *Keys) Close() error {
	var writeErr error
	if k.pool != nil {
		k.pool.close()
	}
	// Readers first: the writer, closing last, merges its log into the file.
	readErr := errors.Join(k.find.Close(), k.findAll.Close(), k.read.Close())
	if k.write != nil {
		writeErr = k.write.Close()
	}
	k.cache.InvalidateAll()
	if err := errors.Join(readErr, writeErr); err != nil {
		return fmt.Errorf("seal: close: %w", err)
	}
	return nil
}
