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

	"github.com/mattn/go-sqlite3"
)

//go:embed schema.sql
var schema string

// The header of views.db identifies the file and its layout. The application
// id has a fixed offset in a SQLite file, so that it can be read even if the
// rest is damaged.
const (
	applicationID       = 0x414c5657 // "ALVW"
	applicationIDOffset = 68         // https://sqlite.org/fileformat2.html#application_id
	schemaVersion       = 1
)

var (
	errForeign  = errors.New("the file is not a views file; move it away")                   // Open refuses the file
	errOutdated = errors.New("the file has another layout or was found damaged before this") // Open replaces the file
)

// openWriter opens the file for its one writer. It creates a missing file, and
// replaces a views file that has an older layout or is damaged, because the log
// has all of its data. It refuses any other file, and that of a newer version.
func openWriter(ctx context.Context, path string) (db *sql.DB, made bool, err error) {
	made, err = identify(ctx, path)
	if errors.Is(err, errOutdated) || damaged(err) && headerIsOurs(path) {
		made, err = true, remove(path)
	}
	if err != nil {
		return nil, false, err
	}
	// SQLite would make the file readable for other users; its -wal and -shm
	// files get this file's mode.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, err
	}
	f.Close()
	db, err = connect(path, "_journal_mode=WAL&_synchronous=NORMAL&_secure_delete=true&_txlock=immediate&_cache_size=-16384", 1)
	if err != nil {
		return nil, false, err
	}
	// Shrink the write-ahead log after a rebuild has grown it.
	_, err = db.ExecContext(ctx, "PRAGMA journal_size_limit = 16777216")
	if err == nil && made {
		err = create(ctx, db)
	}
	if err != nil {
		db.Close()
		return nil, false, err
	}
	return db, made, nil
}

// identify checks that the file is a views file of this version, without
// changing it. An empty file or database counts as missing.
func identify(ctx context.Context, path string) (missing bool, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && info.Size() == 0 {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	db, err := openPool(path)
	if err != nil {
		return false, err
	}
	defer db.Close()
	var id, version, tables int64
	err = db.QueryRowContext(ctx, `SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)
		FROM pragma_application_id, pragma_user_version`).Scan(&id, &version, &tables)
	switch {
	case err != nil:
		return false, err
	case id == 0 && version == 0 && tables == 0:
		return true, nil
	case id != applicationID:
		return false, errForeign
	case version > schemaVersion:
		return false, fmt.Errorf("a newer version wrote the file: it has layout %d, this version supports %d", version, schemaVersion)
	case version < schemaVersion:
		return false, errOutdated
	}
	return false, nil
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
	_, err := db.Exec("PRAGMA user_version = 0")
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

func remove(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
