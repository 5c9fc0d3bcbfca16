package webhooks

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	_ "github.com/mattn/go-sqlite3" // the driver "sqlite3"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
)

// What identifies our file: PRAGMA application_id and user_version.
const (
	applicationID = 0x414c6477 // "ALdw"
	schemaVersion = 5
)

//go:embed schema.sql
var schema string

// store is delivery.db. It is not synced at every commit: after a power loss the
// cursors are a little behind, and some events are sent again.
type store struct {
	path  string
	write *sql.DB // one connection: SQLite has one writer, so queue here, not in busy_timeout
	read  *sql.DB
	ring  int64 // attempts stored per webhook
	mark  atomic.Pointer[mark]
}

// mark is an event up to which the log was followed.
type mark struct {
	position eventstore.Position
	event    [16]byte
}

// writing are the parameters of the connection that writes.
const writing = "_journal_mode=WAL&_synchronous=NORMAL&_secure_delete=on&_txlock=immediate"

// openStore opens delivery.db, or creates it. It refuses a file that contradicts
// the log, with a *projections.AheadError and before it changes the file.
func openStore(ctx context.Context, c Config) (*store, error) {
	path := c.Path
	if err := compare(ctx, c); err != nil {
		return nil, fmt.Errorf("webhooks: open %s: %w", path, err)
	}
	// SQLite would create the file, its -wal and its -shm readable by everyone.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("webhooks: %w", err)
	}
	f.Close()
	s := &store{path: path, ring: int64(c.KeepAttempts)}
	if s.write, err = connect(path, writing); err != nil {
		return nil, err
	}
	s.write.SetMaxOpenConns(1)
	if s.read, err = connect(path, "mode=ro"); err != nil {
		return nil, errors.Join(err, s.write.Close())
	}
	err = s.prepare(ctx, c.LedgerID)
	if err == nil {
		err = s.bind(ctx, c.Log)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("webhooks: open %s: %w", path, err), s.close())
	}
	return s, nil
}

// compare returns an *projections.AheadError if the file contradicts the log. It
// changes nothing. It says nothing about a file that prepare refuses or creates.
func compare(ctx context.Context, c Config) error {
	marks, err := Marks(ctx, c.Path)
	for i := 0; i < len(marks) && err == nil; i++ {
		err = marks[i].Check(ctx, c.Path, c.LedgerID, c.Log)
	}
	return err
}

// Marks returns what a delivery file says it has followed: the log, and for a
// webhook. It does not change the file, and returns nothing for a missing or new
// one.
func Marks(ctx context.Context, path string) ([]projections.Mark, error) {
	if info, err := os.Stat(path); errors.Is(err, os.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil, nil
	}
	db, err := connect(path, "mode=ro")
	if err != nil {
		return nil, err
	}
	defer db.Close()
	var app, version, tables int
	if err := db.QueryRowContext(ctx, identity).Scan(&app, &version, &tables); err != nil {
		return nil, err
	}
	if known, err := recognise(app, version, tables); err != nil || !known {
		return nil, err
	}
	var foreign int
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema WHERE type IN ('trigger', 'view')`).Scan(&foreign); err != nil {
		return nil, err
	}
	if foreign > 0 {
		return nil, fmt.Errorf("%w: delivery.db has a trigger or a view that this program did not create", eventstore.ErrTampered)
	}
	var followed, settled projections.Mark
	columns := `position, event, ledger`
	if version < 5 {
		columns = `position, x'', ''`
	}
	var event []byte
	err = db.QueryRowContext(ctx, `SELECT `+columns+`, (SELECT coalesce(max(low), 0) FROM cursor) FROM follow`).
		Scan(&followed.Position, &event, &followed.Ledger, &settled.Position)
	copy(followed.Event[:], event)
	return []projections.Mark{followed, settled}, err
}

// identity reads what identifies a file.
const identity = `SELECT (SELECT * FROM pragma_application_id), (SELECT * FROM pragma_user_version), (SELECT count(*) FROM sqlite_schema)`

// recognise returns an error unless the file is new, or one that this program can
// read; then known is true.
func recognise(app, version, tables int) (known bool, err error) {
	switch {
	case app == 0 && tables == 0:
		return false, nil
	case app != applicationID:
		return false, errors.New("not a delivery file of this program")
	case version > schemaVersion || version < 1:
		return false, fmt.Errorf("its format is version %d, this program reads version %d", version, schemaVersion)
	}
	return true, nil
}

func connect(path, params string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("webhooks: %w", err)
	}
	// The driver reads the path as a URI, in which ? and % are special.
	return sql.Open("sqlite3", "file:"+(&url.URL{Path: abs}).EscapedPath()+"?_busy_timeout=1000&"+params)
}

// prepare creates the tables in a new file, upgrades an older one, and refuses
// any other. A file without a ledger becomes that of the one with this id, unless
// the id is "".
func (s *store) prepare(ctx context.Context, ledgerID string) error {
	return s.update(ctx, func(tx *sql.Tx) error {
		var app, version, tables int
		if err := tx.QueryRowContext(ctx, identity).Scan(&app, &version, &tables); err != nil {
			return err
		}
		known, err := recognise(app, version, tables)
		if err != nil {
			return err
		}
		steps := []string{fmt.Sprintf(`PRAGMA application_id = %d; PRAGMA user_version = %d; %s
			INSERT INTO follow (id, position) VALUES (1, 0);`, applicationID, schemaVersion, schema)}
		if known {
			steps = upgrades[version-1:]
		}
		for _, step := range steps {
			if _, err := tx.ExecContext(ctx, step); err != nil {
				return err
			}
		}
		_, err = tx.ExecContext(ctx, `UPDATE follow SET ledger = ?1 WHERE ledger = '' AND ?1 != ''`, ledgerID)
		return err
	})
}

// bind adds the id of the event at the position that a file of an earlier version
// has followed the log to.
func (s *store) bind(ctx context.Context, log eventstore.Store) error {
	var at eventstore.Position
	err := s.read.QueryRowContext(ctx, `SELECT position FROM follow WHERE position > 0 AND event = x''`).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	for page, err := range log.Subscribe(ctx, at-1) {
		if err == nil {
			_, err = s.write.ExecContext(ctx, `UPDATE follow SET event = ? WHERE position = ?`, page[0].ID[:], at)
		}
		return err
	}
	return ctx.Err()
}

// upgrades bring a file from each version to the next.
var upgrades = [schemaVersion - 1]string{
	`CREATE TABLE erased (sub TEXT PRIMARY KEY, until INTEGER NOT NULL) STRICT, WITHOUT ROWID;
	PRAGMA user_version = 2`,
	`ALTER TABLE cursor ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
	UPDATE cursor SET attempts = (SELECT coalesce(max(seq), 0) FROM attempt a WHERE a.endpoint = cursor.endpoint);
	ALTER TABLE lane DROP COLUMN gap;
	ALTER TABLE lane ADD COLUMN error TEXT NOT NULL DEFAULT '';
	ALTER TABLE dead_letter ADD COLUMN reported INTEGER NOT NULL DEFAULT 0;
	UPDATE dead_letter SET reported = 1;
	ALTER TABLE attempt ADD COLUMN trigger TEXT NOT NULL DEFAULT 'schedule';
	CREATE TABLE replay (id TEXT PRIMARY KEY, endpoint INTEGER NOT NULL, filter TEXT NOT NULL, position INTEGER NOT NULL, last INTEGER NOT NULL,
		sent INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL, created INTEGER NOT NULL,
		ended INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;
	CREATE INDEX replays ON replay (endpoint, created);
	PRAGMA user_version = 3`,
	`CREATE TABLE former (no INTEGER PRIMARY KEY, id TEXT NOT NULL) STRICT;
	PRAGMA user_version = 4`,
	`ALTER TABLE follow ADD COLUMN event BLOB NOT NULL DEFAULT x'';
	ALTER TABLE follow ADD COLUMN ledger TEXT NOT NULL DEFAULT '';
	ALTER TABLE endpoint ADD COLUMN state TEXT NOT NULL DEFAULT '';
	UPDATE endpoint SET state = coalesce(json_extract(config, '$.state'), '') WHERE json_valid(config);
	ALTER TABLE endpoint DROP COLUMN config;
	PRAGMA user_version = 5`,
}

func (s *store) update(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

func (s *store) close() error {
	// Readers first: the writer, closing last, merges its log into the file.
	return errors.Join(s.read.Close(), s.write.Close())
}

// followed returns the position up to which the log was followed for changes of
// webhooks.
func (s *store) followed(ctx context.Context) (p eventstore.Position, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT position FROM follow`).Scan(&p)
	return p, err
}

func (s *store) follow(ctx context.Context, m mark) error {
	_, err := s.write.ExecContext(ctx, follow, m.position, m.event[:])
	return err
}

const follow = `UPDATE follow SET position = ?1, event = ?2 WHERE position < ?1`

// put makes the file agree with a webhook's configuration. A new webhook gets a
// cursor where its configuration says. A webhook that is enabled again gets a closed
// breaker, so that its next attempt is immediate. Of a deleted webhook only its
// id remains.
func (s *store) put(ctx context.Context, w domain.Webhook) error {
	return s.update(ctx, func(tx *sql.Tx) error {
		var no int64
		var before domain.WebhookState
		err := tx.QueryRowContext(ctx, `SELECT no, state FROM endpoint WHERE id = ?`, w.WebhookID).Scan(&no, &before)
		known := err == nil
		switch {
		case err != nil && !errors.Is(err, sql.ErrNoRows):
			return err
		case known && !w.Exists():
			return drop(ctx, tx, no)
		case !w.Exists():
			return nil
		case !known:
			if err := tx.QueryRowContext(ctx, `INSERT INTO endpoint (id, state) VALUES (?, ?) RETURNING no`, w.WebhookID, w.State).Scan(&no); err != nil {
				return err
			}
			_, err = tx.ExecContext(ctx, `INSERT INTO cursor (endpoint, low) VALUES (?, ?)`, no, w.After)
			return err
		case before == w.State:
			return nil
		case w.State == domain.WebhookEnabled:
			if _, err := tx.ExecContext(ctx, `UPDATE cursor SET breaker_step = 0, breaker_until = 0, breaker_reason = '', first_failure = 0 WHERE endpoint = ?`, no); err != nil {
				return err
			}
		}
		_, err = tx.ExecContext(ctx, `UPDATE endpoint SET state = ? WHERE no = ?`, w.State, no)
		return err
	})
}

func drop(ctx context.Context, tx *sql.Tx, no int64) error {
	for _, statement := range []string{
		`INSERT INTO former (no, id) SELECT no, id FROM endpoint WHERE no = ?`,
		`DELETE FROM endpoint WHERE no = ?`, `DELETE FROM cursor WHERE endpoint = ?`, `DELETE FROM lane WHERE endpoint = ?`,
		`DELETE FROM dead_letter WHERE endpoint = ?`, `DELETE FROM attempt WHERE endpoint = ?`, `DELETE FROM replay WHERE endpoint = ?`,
	} {
		if _, err := tx.ExecContext(ctx, statement, no); err != nil {
			return err
		}
	}
	return nil
}

// expire deletes attempts from before a time, and the notes of erasures that only
// concern requests from before it.
func (s *store) expire(ctx context.Context, before time.Time) error {
	return s.update(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM attempt WHERE time < ?`, micro(before)); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM erased WHERE until < ?`, micro(before))
		return err
	})
}

// forget deletes the stored responses to requests about an account, which may
// quote the erased data, and notes the erasure: save does not store responses to
// requests that began before until.
func (s *store) forget(ctx context.Context, sub string, until time.Time) error {
	return s.update(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO erased VALUES (?, ?) ON CONFLICT DO UPDATE SET until = max(until, excluded.until)`, sub, micro(until)); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE attempt SET response = NULL WHERE sub = ? AND response IS NOT NULL`, sub)
		return err
	})
}

// scrub empties the write-ahead log, which still holds overwritten pages.
func (s *store) scrub(ctx context.Context) error {
	var busy, pages, moved int
	if err := s.write.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &pages, &moved); err != nil {
		return err
	}
	if busy != 0 {
		return ErrBusy
	}
	return nil
}

// ErrBusy is returned by Purge if old pages cannot be removed because another
// reader holds them for too long. Call Purge again.
var ErrBusy = errors.New("webhooks: old pages are still on disk, another reader holds them")

func micro(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicro(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
