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
	"github.com/google/uuid"
	_ "github.com/mattn/go-sqlite3" // the driver "sqlite3"

	"accountledger/domain"
	"accountledger/eventstore"
)

// What makes a file ours, see PRAGMA application_id and user_version.
const (
	applicationID = 0x414c6477 // "ALdw"
	schemaVersion = 4
)

//go:embed schema.sql
var schema string

// errFenced says that another owner has taken over the endpoint, or that it
// was deleted: nothing was written.
var errFenced = errors.New("webhooks: the endpoint has another owner now")

// store is delivery.db. Nothing in it is precious, so it is not synced at
// every commit: power loss moves cursors back, and events are sent again.
type store struct {
	path  string
	write *sql.DB // one connection: SQLite has one writer, so queue here
	read  *sql.DB
	ring  int64 // attempts kept per endpoint
}

func openStore(ctx context.Context, path string, ring int64) (*store, error) {
	// SQLite would make the file, its -wal and its -shm readable for all.
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
	// The driver takes a path for a URI, in which ? and % have a meaning.
	return sql.Open("sqlite3", "file:"+(&url.URL{Path: abs}).EscapedPath()+"?_busy_timeout=1000&"+params)
}

// prepare makes the tables in a new file and refuses one that is not ours.
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

// followed is how far the log was followed for changes of endpoints.
func (s *store) followed(ctx context.Context) (p eventstore.Position, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT position FROM follow`).Scan(&p)
	return p, err
}

func (s *store) follow(ctx context.Context, p eventstore.Position) error {
	_, err := s.write.ExecContext(ctx, `UPDATE follow SET position = max(position, ?)`, p)
	return err
}

// put copies what the log says about an endpoint. A new one gets a cursor
// where it wants to start. One that is started again, by hand, is tried at
// once. One that is deleted leaves nothing behind.
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

// endpoints returns the copies of all endpoints in the order of their making.
func (s *store) endpoints(ctx context.Context) ([]domain.Webhook, error) {
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

// progress is what is stored of an endpoint's delivery besides its lanes.
type progress struct {
	no, epoch   int64
	cursor      cursor
	breaker     breaker
	lastSuccess time.Time
}

// load reads an endpoint's progress.
func (s *store) load(ctx context.Context, id string) (progress, error) {
	var p progress
	var low eventstore.Position
	var done, partial []byte
	var until, first, success int64
	err := s.read.QueryRowContext(ctx, `SELECT c.endpoint, epoch, low, done, partial, breaker_step, breaker_until, breaker_reason, first_failure, last_success
		FROM cursor c JOIN endpoint e ON e.no = c.endpoint WHERE e.id = ?`, id).
		Scan(&p.no, &p.epoch, &low, &done, &partial, &p.breaker.step, &until, &p.breaker.reason, &first, &success)
	if err != nil {
		return p, fmt.Errorf("webhooks: load endpoint: %w", err)
	}
	var parts map[eventstore.Position]int
	if err := json.Unmarshal(partial, &parts); err != nil {
		return p, fmt.Errorf("webhooks: load endpoint: %w", err)
	}
	p.cursor = newCursor(low, done, parts)
	p.breaker.until, p.breaker.firstFailure, p.lastSuccess = fromMicro(until), fromMicro(first), fromMicro(success)
	return p, nil
}

// state is what is written of an endpoint's delivery: its progress, how many
// lanes are failing, how many of them had more attempts than tries, how many
// events were given up. An endpoint not copied yet
// has none.
func (s *store) state(ctx context.Context, id string, tries int) (p progress, lanes, exhausted int, dead int64, err error) {
	p, err = s.load(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return p, 0, 0, 0, nil
	}
	if err != nil {
		return p, 0, 0, 0, err
	}
	err = s.read.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM lane WHERE endpoint = ?1 AND attempt > 0), (SELECT count(*) FROM lane WHERE endpoint = ?1 AND attempt > ?2),
		(SELECT count(*) FROM dead_letter WHERE endpoint = ?1)`, p.no, tries).Scan(&lanes, &exhausted, &dead)
	return p, lanes, exhausted, dead, err
}

// own makes the caller the endpoint's owner: the next epoch is his.
func (s *store) own(ctx context.Context, no int64) (epoch int64, err error) {
	err = s.write.QueryRowContext(ctx, `UPDATE cursor SET epoch = epoch + 1 WHERE endpoint = ? RETURNING epoch`, no).Scan(&epoch)
	return epoch, err
}

// lanes reads an endpoint's lanes.
func (s *store) lanes(ctx context.Context, no int64) ([]*lane, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT stream, next_revision, next_position, attempt, not_before, error FROM lane WHERE endpoint = ?`, no)
	if err != nil {
		return nil, fmt.Errorf("webhooks: load lanes: %w", err)
	}
	defer rows.Close()
	var all []*lane
	for rows.Next() {
		l := &lane{index: -1}
		var due int64
		if err := rows.Scan(&l.stream, &l.revision, &l.position, &l.attempt, &due, &l.code); err != nil {
			return nil, fmt.Errorf("webhooks: load lanes: %w", err)
		}
		l.due = fromMicro(due)
		all = append(all, l)
	}
	return all, rows.Err()
}

// owes reports whether a lane has not come past position p of its stream.
func (s *store) owes(ctx context.Context, no int64, stream string, p eventstore.Position) (owes bool, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM lane WHERE endpoint = ? AND stream = ? AND next_position <= ?)`, no, stream, p).Scan(&owes)
	if err != nil {
		return false, fmt.Errorf("webhooks: look at lane: %w", err)
	}
	return owes, nil
}

// checkpoint is what an endpoint has to write down after some results: all of
// it in one transaction, after the results are known, never before sending.
type checkpoint struct {
	progress progress
	done     []byte // of the cursor at its low
	low      eventstore.Position
	partial  []byte
	lanes    []lane
	gone     []string // streams whose lanes are closed
	dead     []record // events given up
	attempts []record
	written  chan<- error
	waiters  []chan struct{} // the endpoint's, see endpoint.settled
}

// record is what became of one message at one time.
type record struct {
	position eventstore.Position
	part     int
	event    uuid.UUID
	kind     string // the public name
	sub      string
	sequence eventstore.Revision
	time     time.Time
	duration time.Duration
	outcome  outcome
	trigger  string // of an attempt
}

// Why an attempt was made.
const (
	triggerSchedule = "schedule" // in its turn, the first time or again
	triggerManual   = "manual"   // somebody asked for this one
	triggerRecover  = "recover"  // somebody asked for all that had failed
	triggerReplay   = "replay"   // somebody asked for a part of the log
)

// save writes checkpoints, all in one transaction, and tells each sender how
// it went. One that is fenced does not keep the others from being written.
func (s *store) save(ctx context.Context, all []*checkpoint) {
	fenced := make([]bool, len(all))
	err := s.update(ctx, func(tx *sql.Tx) error {
		for i, c := range all {
			seq, err := s.saveCursor(ctx, tx, c)
			if fenced[i] = errors.Is(err, sql.ErrNoRows); fenced[i] {
				continue
			}
			if err != nil {
				return err
			}
			if err := s.saveResults(ctx, tx, c, seq); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("webhooks: write progress: %w", err)
	}
	for i, c := range all {
		if err == nil && fenced[i] {
			c.written <- errFenced
			continue
		}
		c.written <- err
	}
}

// saveCursor writes the cursor and returns how many attempts were made before.
// If the endpoint is not the writer's any more, the error is sql.ErrNoRows.
func (s *store) saveCursor(ctx context.Context, tx *sql.Tx, c *checkpoint) (before int64, err error) {
	b := c.progress.breaker
	err = tx.QueryRowContext(ctx, `UPDATE cursor SET low = ?, done = ?, partial = ?, breaker_step = ?, breaker_until = ?, breaker_reason = ?,
			first_failure = ?, last_success = ?, attempts = attempts + ? WHERE endpoint = ? AND epoch = ? RETURNING attempts`,
		c.low, c.done, string(c.partial), b.step, micro(b.until), b.reason, micro(b.firstFailure), micro(c.progress.lastSuccess), len(c.attempts), c.progress.no, c.progress.epoch).Scan(&before)
	return before - int64(len(c.attempts)), err
}

func (s *store) saveResults(ctx context.Context, tx *sql.Tx, c *checkpoint, seq int64) error {
	no := c.progress.no
	for _, l := range c.lanes {
		if _, err := tx.ExecContext(ctx, `INSERT OR REPLACE INTO lane VALUES (?, ?, ?, ?, ?, ?, ?)`,
			no, l.stream, l.revision, l.position, l.attempt, micro(l.due), l.code); err != nil {
			return err
		}
	}
	for _, stream := range c.gone {
		if _, err := tx.ExecContext(ctx, `DELETE FROM lane WHERE endpoint = ? AND stream = ?`, no, stream); err != nil {
			return err
		}
	}
	for _, r := range c.dead {
		if _, err := tx.ExecContext(ctx, `INSERT INTO dead_letter VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)
				ON CONFLICT DO UPDATE SET time = excluded.time, reason = excluded.reason`,
			no, r.position, r.part, r.event[:], r.kind, r.sub, r.sequence, micro(r.time), r.outcome.code); err != nil {
			return err
		}
	}
	return s.saveAttempts(ctx, tx, no, seq, c.attempts)
}

// saveAttempts writes attempts down, of which there were seq before. One that
// was not the schedule's and arrived settles a dead letter.
func (s *store) saveAttempts(ctx context.Context, tx *sql.Tx, no, seq int64, all []record) error {
	if len(all) == 0 {
		return nil
	}
	insert, err := tx.PrepareContext(ctx, `INSERT OR REPLACE INTO attempt VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13,
		CASE WHEN EXISTS (SELECT 1 FROM erased WHERE sub = ?8 AND until > ?10) THEN NULL ELSE ?14 END, ?15)`)
	if err != nil {
		return err
	}
	defer insert.Close()
	for _, r := range all {
		seq++
		if _, err := insert.ExecContext(ctx, no, seq%s.ring, seq, r.position, r.part, r.event[:], r.kind, r.sub, r.sequence,
			micro(r.time), r.duration.Microseconds(), r.outcome.status, r.outcome.code, r.outcome.response, r.trigger); err != nil {
			return err
		}
		if r.trigger != triggerSchedule && r.outcome.scope == delivered {
			if _, err := tx.ExecContext(ctx, `DELETE FROM dead_letter WHERE endpoint = ? AND position = ? AND part = ?`, no, r.position, r.part); err != nil {
				return err
			}
		}
	}
	return nil
}

// writer saves what comes until the channel is closed: all that is at hand in
// one transaction.
func (s *store) writer(saves <-chan *checkpoint) {
	for c := range saves {
		batch := []*checkpoint{c}
		for len(saves) > 0 {
			batch = append(batch, <-saves)
		}
		s.save(context.Background(), batch)
	}
}

// clamp takes back cursors that are ahead of the log, which then is not the
// one they were written for but an older copy. It returns how many there were.
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

// expire forgets attempts from before a time, and erasures that no request
// begun after it could quote.
func (s *store) expire(ctx context.Context, before time.Time) error {
	return s.update(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM attempt WHERE time < ?`, micro(before)); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM erased WHERE until < ?`, micro(before))
		return err
	})
}

// forget removes what receivers answered about an account, for they may have
// quoted what they were sent, and has save leave out what they are still to
// answer to requests begun before until.
func (s *store) forget(ctx context.Context, sub string, until time.Time) error {
	return s.update(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO erased VALUES (?, ?) ON CONFLICT DO UPDATE SET until = max(until, excluded.until)`, sub, micro(until)); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE attempt SET response = NULL WHERE sub = ? AND response IS NOT NULL`, sub)
		return err
	})
}

// scrub empties the write-ahead log, which still has what was overwritten.
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
