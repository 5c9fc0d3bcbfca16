package projections

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"os"
	"runtime"
	"time"

	"github.com/mattn/go-sqlite3"

	"accountledger/eventstore"
)

//go:embed schema.sql
var schema string

// The header of views.db identifies the file and its layout. The application
// id has a fixed offset in a SQLite file, so that it can be read even if the
// rest is damaged.
const (
	applicationID       = 0x414c5657 // "ALVW"
	applicationIDOffset = 68         // https://sqlite.org/fileformat2.html#application_id
	schemaVersion       = 2
	condemned           = 0 // the layout of a file that Run has found damaged
)

var (
	errForeign    = errors.New("the file is not a views file; move it away") // Open refuses the file
	errOutdated   = errors.New("another version created the file's tables")  // Open replaces the file
	errUnreadable = errors.New("the file is damaged")                        // Open moves the file aside
)

// fileState is what a views file says about itself.
type fileState struct {
	missing bool // or empty
	layout  int64
	marks   []Mark // of the live views
}

// ledger returns the id of the ledger that the file names, "" if it names none.
func (f fileState) ledger() string {
	for _, m := range f.marks {
		return m.Ledger
	}
	return ""
}

// openWriter opens the file for its one writer, after comparing it with the log;
// if they contradict each other, the error is an *AheadError and nothing has been
// written. It creates a missing file, upgrades one with an older layout, replaces
// one that Run has found damaged, because the log has all of its data, and moves
// one that cannot be read aside, because nothing says that the log has its data.
// It refuses any other file, and that of a newer version.
func openWriter(ctx context.Context, c Config) (db *sql.DB, made bool, err error) {
	f, err := inspect(ctx, c.Path)
	for i := 0; i < len(f.marks) && err == nil; i++ {
		err = f.marks[i].Check(ctx, c.Path, c.LedgerID, c.Log)
	}
	switch {
	case errors.Is(err, errUnreadable):
		var aside string
		if aside, err = setAside(c.Path, "damaged"); err != nil {
			return nil, false, err
		}
		c.Logger.ErrorContext(ctx, "the views file cannot be read; the views are rebuilt from the log. The damaged file has personal data that erasures no longer remove: delete it when nobody needs it", "damaged", aside)
		f = fileState{missing: true}
	case err != nil:
		return nil, false, err
	case f.layout == condemned && !f.missing:
		c.Logger.WarnContext(ctx, "the views file was found damaged; the views are rebuilt from the log")
		if err := remove(c.Path); err != nil {
			return nil, false, err
		}
		f = fileState{missing: true}
	}
	// SQLite would make the file readable for other users; its -wal and -shm
	// files get this file's mode.
	file, err := os.OpenFile(c.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, err
	}
	file.Close()
	db, err = connect(c.Path, "_journal_mode=WAL&_synchronous=NORMAL&_secure_delete=true&_txlock=immediate&_cache_size=-16384", 1)
	if err != nil {
		return nil, false, err
	}
	// Shrink the write-ahead log after a rebuild has grown it.
	_, err = db.ExecContext(ctx, "PRAGMA journal_size_limit = 16777216")
	switch {
	case err != nil:
	case f.missing:
		err = create(ctx, db)
	case f.layout < schemaVersion:
		_, err = db.ExecContext(ctx, "BEGIN IMMEDIATE; "+upgrade+"; COMMIT")
	}
	if err == nil && f.ledger() == "" && c.LedgerID != "" {
		_, err = db.ExecContext(ctx, `INSERT INTO ledger (one, id) VALUES (1, ?) ON CONFLICT DO NOTHING`, c.LedgerID)
	}
	if err != nil {
		db.Close()
		return nil, false, err
	}
	return db, f.missing, nil
}

// Marks returns what a views file says it has followed, for each view. It does not
// change the file.
func Marks(ctx context.Context, path string) ([]Mark, error) {
	f, err := inspect(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("projections: read %s: %w", path, err)
	}
	return f.marks, nil
}

// upgrade changes a file from layout 1 to layout 2.
const upgrade = `CREATE TABLE ledger (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL) STRICT; PRAGMA user_version = 2`

// inspect reads what the file says about itself, without changing it. The error
// is errUnreadable if it is a views file but cannot be read. An empty file or
// database counts as missing.
func inspect(ctx context.Context, path string) (f fileState, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && info.Size() == 0 {
		return fileState{missing: true}, nil
	}
	if err != nil {
		return f, err
	}
	db, err := openPool(path)
	if err != nil {
		return f, err
	}
	defer db.Close()
	var id, tables, foreign int64
	err = db.QueryRowContext(ctx, `SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema),
			(SELECT count(*) FROM sqlite_schema WHERE type IN ('trigger', 'view'))
		FROM pragma_application_id, pragma_user_version`).Scan(&id, &f.layout, &tables, &foreign)
	switch {
	case damaged(err) && headerIsOurs(path):
		return f, fmt.Errorf("%w: %w", errUnreadable, err)
	case err != nil:
		return f, err
	case id == 0 && f.layout == 0 && tables == 0:
		return fileState{missing: true}, nil
	case foreign > 0:
		return f, fmt.Errorf("%w: views.db has a trigger or a view that this program did not create", eventstore.ErrTampered)
	case id != applicationID:
		return f, errForeign
	case f.layout > schemaVersion:
		return f, fmt.Errorf("a newer version wrote the file: it has layout %d, this version supports %d", f.layout, schemaVersion)
	}
	f.marks, err = readMarks(ctx, db)
	if damaged(err) || err != nil && f.layout == condemned {
		err = fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return f, err
}

// readMarks reads how far the live views have followed which log. A file without
// views has one mark at position 0.
func readMarks(ctx context.Context, db *sql.DB) ([]Mark, error) {
	var named bool
	first := Mark{}
	err := db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'ledger')`).Scan(&named)
	if err == nil && named {
		err = db.QueryRowContext(ctx, `SELECT coalesce(max(id), '') FROM ledger`).Scan(&first.Ledger)
	}
	if err != nil {
		return nil, err
	}
	rows, err := db.QueryContext(ctx, `SELECT DISTINCT position, event FROM views WHERE state = 'live'`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	marks := []Mark{first}
	for rows.Next() {
		m := first
		var event []byte
		if err := rows.Scan(&m.Position, &event); err != nil {
			return nil, err
		}
		copy(m.Event[:], event)
		marks = append(marks, m)
	}
	return marks, rows.Err()
}

// create creates the tables of a new file.
func create(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err = tx.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d; %s", applicationID, schemaVersion, schema)); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	// Move the header from the write-ahead log into the file, where
	// headerIsOurs reads it.
	_, err = db.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
	return err
}

// openPool opens the file for reading. In WAL mode, readers do not wait for
// the writer.
func openPool(path string) (*sql.DB, error) {
	return connect(path, "mode=ro&_query_only=true&_txlock=deferred", max(4, 2*runtime.GOMAXPROCS(0)))
}

func connect(path, options string, connections int) (*sql.DB, error) {
	name := url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: "_busy_timeout=10000&" + options}
	db, err := sql.Open("sqlite3", name.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, nil
}

// condemn marks a damaged file, so that the next openWriter replaces it.
func condemn(db *sql.DB) error {
	_, err := db.Exec(fmt.Sprintf("PRAGMA user_version = %d", condemned))
	return err
}

// damaged reports whether err says that the file is corrupt.
func damaged(err error) bool {
	e, ok := errors.AsType[sqlite3.Error](err)
	return ok && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB)
}

// headerIsOurs reports whether the file has the application id of a views file.
func headerIsOurs(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	var id [4]byte
	_, err = f.ReadAt(id[:], applicationIDOffset)
	return err == nil && binary.BigEndian.Uint32(id[:]) == applicationID
}

// suffixes are those of the files of a database, the database itself last: its
// write-ahead log must not stay behind and become that of a new database.
var suffixes = []string{"-wal", "-shm", ""}

func remove(path string) error {
	for _, suffix := range suffixes {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// setAside renames the database at path, for a reason that becomes part of the
// new name, which it returns.
func setAside(path, why string) (aside string, err error) {
	aside = path + "." + why + "-" + time.Now().UTC().Format("20060102T150405.000000Z")
	for _, suffix := range suffixes {
		if err := os.Rename(path+suffix, aside+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
	}
	return aside, nil
}

// Rewind prepares the views file at path for a log that is rolled back to a
// position: if a view is ahead of it, Rewind renames the file and returns its new
// name, and the next start rebuilds the views from the log. Otherwise it returns
// "". No Views may be open on the file. The renamed file has personal data that
// erasures no longer remove.
func Rewind(ctx context.Context, path string, to eventstore.Position) (aside string, err error) {
	f, err := inspect(ctx, path)
	ahead := errors.Is(err, errUnreadable)
	if err != nil && !ahead {
		return "", fmt.Errorf("projections: rewind %s: %w", path, err)
	}
	for _, m := range f.marks {
		ahead = ahead || m.Position > to
	}
	if !ahead {
		return "", nil
	}
	if aside, err = setAside(path, "ahead"); err != nil {
		return "", fmt.Errorf("projections: rewind %s: %w", path, err)
	}
	return aside, nil
}
