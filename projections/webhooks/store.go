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
	schemaVersion = 2
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
		case version == 1:
			_, err := tx.ExecContext(ctx, `CREATE TABLE erased (sub TEXT PRIMARY KEY, until INTEGER NOT NULL) STRICT, WITHOUT ROWID; PRAGMA user_version = 2`)
			return err
		case version != schemaVersion:
			return fmt.Errorf("its format is version %d, this program reads version %d", version, schemaVersion)
		}
		return nil
	})
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
		`DELETE FROM endpoint WHERE no = ?`, `DELETE FROM cursor WHERE endpoint = ?`, `DELETE FROM lane WHERE endpoint = ?`,
		`DELETE FROM dead_letter WHERE endpoint = ?`, `DELETE FROM attempt WHERE endpoint = ?`,
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
	seq         int64 // of the last attempt
}

// load reads an endpoint's progress.
func (s *store) load(ctx context.Context, id string) (progress, error) {
	var p progress
	var low eventstore.Position
	var done, partial []byte
	var until, first, success int64
	err := s.read.QueryRowContext(ctx, `SELECT c.endpoint, epoch, low, done, partial, breaker_step, breaker_until, breaker_reason, first_failure, last_success,
			(SELECT coalesce(max(seq), 0) FROM attempt a WHERE a.endpoint = c.endpoint)
		FROM cursor c JOIN endpoint e ON e.no = c.endpoint WHERE e.id = ?`, id).
		Scan(&p.no, &p.epoch, &low, &done, &partial, &p.breaker.step, &until, &p.breaker.reason, &first, &success, &p.seq)
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
// lanes are failing, how many events were given up. An endpoint not copied yet
// has none.
func (s *store) state(ctx context.Context, id string) (p progress, lanes int, dead int64, err error) {
	p, err = s.load(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return p, 0, 0, nil
	}
	if err != nil {
		return p, 0, 0, err
	}
	err = s.read.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM lane WHERE endpoint = ?1 AND attempt > 0), (SELECT count(*) FROM dead_letter WHERE endpoint = ?1)`, p.no).Scan(&lanes, &dead)
	return p, lanes, dead, err
}

// own makes the caller the endpoint's owner: the next epoch is his.
func (s *store) own(ctx context.Context, no int64) (epoch int64, err error) {
	err = s.write.QueryRowContext(ctx, `UPDATE cursor SET epoch = epoch + 1 WHERE endpoint = ? RETURNING epoch`, no).Scan(&epoch)
	return epoch, err
}

// lanes reads an endpoint's lanes.
func (s *store) lanes(ctx context.Context, no int64) ([]*lane, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT stream, next_revision, next_position, attempt, not_before, gap FROM lane WHERE endpoint = ?`, no)
	if err != nil {
		return nil, fmt.Errorf("webhooks: load lanes: %w", err)
	}
	defer rows.Close()
	var all []*lane
	for rows.Next() {
		l := &lane{index: -1}
		var due int64
		if err := rows.Scan(&l.stream, &l.revision, &l.position, &l.attempt, &due, &l.gap); err != nil {
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
	seq      int64 // of an attempt
}

// save writes checkpoints, all in one transaction, and tells each sender how
// it went. One that is fenced does not keep the others from being written.
func (s *store) save(ctx context.Context, all []checkpoint) {
	fenced := make([]bool, len(all))
	err := s.update(ctx, func(tx *sql.Tx) error {
		for i, c := range all {
			ours, err := s.saveCursor(ctx, tx, c)
			if err != nil {
				return err
			}
			fenced[i] = !ours
			if !ours {
				continue
			}
			if err := s.saveResults(ctx, tx, c); err != nil {
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

// saveCursor writes the cursor and reports whether the endpoint was still the
// writer's.
func (s *store) saveCursor(ctx context.Context, tx *sql.Tx, c checkpoint) (bool, error) {
	b := c.progress.breaker
	result, err := tx.ExecContext(ctx, `UPDATE cursor SET low = ?, done = ?, partial = ?, breaker_step = ?, breaker_until = ?, breaker_reason = ?,
			first_failure = ?, last_success = ? WHERE endpoint = ? AND epoch = ?`,
		c.low, c.done, string(c.partial), b.step, micro(b.until), b.reason, micro(b.firstFailure), micro(c.progress.lastSuccess), c.progress.no, c.progress.epoch)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

func (s *store) saveResults(ctx context.Context, tx *sql.Tx, c checkpoint) error {
	no := c.progress.no
	for _, l := range c.lanes {
		if _, err := tx.ExecContext(ctx, `INSERT OR REPLACE INTO lane VALUES (?, ?, ?, ?, ?, ?, ?)`,
			no, l.stream, l.revision, l.position, l.attempt, micro(l.due), l.gap); err != nil {
			return err
		}
	}
	for _, stream := range c.gone {
		if _, err := tx.ExecContext(ctx, `DELETE FROM lane WHERE endpoint = ? AND stream = ?`, no, stream); err != nil {
			return err
		}
	}
	for _, r := range c.dead {
		if _, err := tx.ExecContext(ctx, `INSERT OR REPLACE INTO dead_letter VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			no, r.position, r.part, r.event[:], r.kind, r.sub, r.sequence, micro(r.time), r.outcome.code); err != nil {
			return err
		}
	}
	if len(c.attempts) == 0 {
		return nil
	}
	insert, err := tx.PrepareContext(ctx, `INSERT OR REPLACE INTO attempt VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13,
		CASE WHEN EXISTS (SELECT 1 FROM erased WHERE sub = ?8 AND until > ?10) THEN NULL ELSE ?14 END)`)
	if err != nil {
		return err
	}
	defer insert.Close()
	for _, r := range c.attempts {
		if _, err := insert.ExecContext(ctx, no, r.seq%s.ring, r.seq, r.position, r.part, r.event[:], r.kind, r.sub, r.sequence,
			micro(r.time), r.duration.Microseconds(), r.outcome.status, r.outcome.code, r.outcome.response); err != nil {
			return err
		}
	}
	return nil
}

// writer saves what comes until the channel is closed: all that is at hand in
// one transaction.
func (s *store) writer(saves <-chan checkpoint) {
	for c := range saves {
		batch := []checkpoint{c}
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
