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
	"time"

	"github.com/go-json-experiment/json"
	_ "github.com/mattn/go-sqlite3" // the driver "sqlite3"

	"accountledger/domain"
	"accountledger/eventstore"
)

// What identifies our file: PRAGMA application_id and user_version.
const (
	applicationID = 0x414c6477 // "ALdw"
	schemaVersion = 4
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
}

func openStore(ctx context.Context, path string, ring int64) (*store, error) {
	// SQLite would create the file, its -wal and its -shm readable by everyone.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("webhooks: %w", err)
	}
	f.Close()
	s := &store{path: path, ring: ring}
	if s.write, err = connect(path, "_journal_mode=WAL&_synchronous=NORMAL&_secure_delete=on&_txlock=immediate"); err != nil {
		return nil, err
	}
	s.write.SetMaxOpenConns(1)
	if s.read, err = connect(path, "mode=ro"); err != nil {
		return nil, errors.Join(err, s.write.Close())
	}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("webhooks: open %s: %w", path, err), s.close())
	}
	return s, nil
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
// any other.
func (s *store) prepare(ctx context.Context) error {
	return s.update(ctx, func(tx *sql.Tx) error {
		var app, version, tables int
		const look = `SELECT (SELECT * FROM pragma_application_id), (SELECT * FROM pragma_user_version), (SELECT count(*) FROM sqlite_schema)`
		if err := tx.QueryRowContext(ctx, look).Scan(&app, &version, &tables); err != nil {
			return err
		}
		switch {
		case app == 0 && tables == 0:
			_, err := tx.ExecContext(ctx, fmt.Sprintf(`PRAGMA application_id = %d; PRAGMA user_version = %d; %s
				INSERT INTO follow (id, position) VALUES (1, 0);`, applicationID, schemaVersion, schema))
			return err
		case app != applicationID:
			return errors.New("not a delivery file of this program")
		case version > schemaVersion || version < 1:
			return fmt.Errorf("its format is version %d, this program reads version %d", version, schemaVersion)
		}
		for _, step := range upgrades[version-1:] {
			if _, err := tx.ExecContext(ctx, step); err != nil {
				return err
			}
		}
		return nil
	})
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

func (s *store) follow(ctx context.Context, p eventstore.Position) error {
	_, err := s.write.ExecContext(ctx, `UPDATE follow SET position = max(position, ?)`, p)
	return err
}

// put stores a copy of a webhook's configuration. A new webhook gets a cursor
// where its configuration says. A webhook that is enabled again gets a closed
// breaker, so that its next attempt is immediate. Of a deleted webhook only its
// id remains.
func (s *store) put(ctx context.Context, w domain.Webhook) error {
	config, err := json.Marshal(w)
	if err != nil {
		return err
	}
	return s.update(ctx, func(tx *sql.Tx) error {
		var no int64
		var old string
		err := tx.QueryRowContext(ctx, `SELECT no, config FROM endpoint WHERE id = ?`, w.WebhookID).Scan(&no, &old)
		known := err == nil
		switch {
		case err != nil && !errors.Is(err, sql.ErrNoRows):
			return err
		case known && !w.Exists():
			return drop(ctx, tx, no)
		case !w.Exists():
			return nil
		case !known:
			if err := tx.QueryRowContext(ctx, `INSERT INTO endpoint (id, config) VALUES (?, ?) RETURNING no`, w.WebhookID, string(config)).Scan(&no); err != nil {
				return err
			}
			_, err = tx.ExecContext(ctx, `INSERT INTO cursor (endpoint, low) VALUES (?, ?)`, no, w.After)
			return err
		}
		var before domain.Webhook
		if err := json.Unmarshal([]byte(old), &before); err != nil {
			return err
		}
		if before.State != domain.WebhookEnabled && w.State == domain.WebhookEnabled {
			if _, err := tx.ExecContext(ctx, `UPDATE cursor SET breaker_step = 0, breaker_until = 0, breaker_reason = '', first_failure = 0 WHERE endpoint = ?`, no); err != nil {
				return err
			}
		}
		_, err = tx.ExecContext(ctx, `UPDATE endpoint SET config = ? WHERE no = ?`, string(config), no)
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

// webhooks returns the copies of all configurations, oldest webhook first.
func (s *store) webhooks(ctx context.Context) ([]domain.Webhook, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT config FROM endpoint ORDER BY no`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []domain.Webhook
	for rows.Next() {
		var config []byte
		var w domain.Webhook
		if err := rows.Scan(&config); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(config, &w); err != nil {
			return nil, err
		}
		all = append(all, w)
	}
	return all, rows.Err()
}

// clamp moves cursors that are ahead of the log back to its head. The log then is
// an older copy, restored from a backup. clamp returns how many there were.
func (s *store) clamp(ctx context.Context, head eventstore.Position) (n int64, err error) {
	err = s.update(ctx, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, `UPDATE cursor SET low = min(low, ?1), done = x'' WHERE endpoint IN (
			SELECT no FROM endpoint WHERE (SELECT position FROM follow) > ?1)`, head)
		if err != nil {
			return err
		}
		if n, err = result.RowsAffected(); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE follow SET position = min(position, ?)`, head)
		return err
	})
	return n, err
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
