package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"io"
	"net/url"

	"github.com/mattn/go-sqlite3"
)

// conn is a connection to a log file. It calls the driver directly instead of
// database/sql: a conn lives long and prepares its statements once, and at tens
// of thousands of rows per second, the locks and conversions of database/sql
// took a third of the writer's time. It is not safe for concurrent use.
type conn struct {
	db   *sqlite3.SQLiteConn
	kept []*stmt // closed with the connection
}

// Connection options, which the driver and SQLite read from the DSN.
const (
	// readWrite contains no pragma that writes, because openFile checks the
	// file's origin after connecting. secure_delete overwrites deleted data, so
	// that no erased part remains in a free page.
	readWrite = "mode=rwc&_secure_delete=on&_synchronous=FULL&_txlock=immediate&_busy_timeout=5000&_foreign_keys=0&_cache_size=-16384&_mutex=no"
	readOnly  = "mode=ro&_query_only=1&_busy_timeout=5000&_foreign_keys=0&_mutex=no"
)

func dial(path, options string) (*conn, error) {
	// The path may contain characters that are special in a URI.
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + options
	db, err := new(sqlite3.SQLiteDriver).Open(dsn)
	if err != nil {
		return nil, classify(err)
	}
	return &conn{db: db.(*sqlite3.SQLiteConn)}, nil
}

// close closes the prepared statements, which would keep the file open, and
// then the file.
func (c *conn) close() error {
	for _, s := range c.kept {
		s.close()
	}
	return classify(c.db.Close())
}

// exec runs statements without arguments or results.
func (c *conn) exec(ctx context.Context, script string) error {
	_, err := c.db.ExecContext(ctx, script, nil)
	return classify(err)
}

// scalar runs a query without arguments and returns the first column of its
// first row, or nil if it has no rows.
func (c *conn) scalar(query string) (driver.Value, error) {
	s, err := c.prepare(query)
	if err != nil {
		return nil, err
	}
	defer s.close()
	row := make([]driver.Value, 1)
	if _, err := s.row(row); err != nil {
		return nil, err
	}
	return row[0], nil
}

// stmt is a prepared statement.
type stmt struct {
	s    driver.Stmt
	args []driver.NamedValue // reused, so that binding does not allocate
}

func (c *conn) prepare(query string) (*stmt, error) {
	s, err := c.db.Prepare(query)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", classify(err))
	}
	st := &stmt{s: s, args: make([]driver.NamedValue, s.NumInput())}
	for i := range st.args {
		st.args[i].Ordinal = i + 1
	}
	return st, nil
}

// keep prepares each query and stores it in the statement that is its map key.
// The connection closes these statements.
//
// SQLite recompiles a statement when a parameter changes that its query plan
// may depend on, and that takes many times longer than running the statement.
// Such a parameter is the one in LIMIT ?, and in x = ? if the rows are ordered
// by the column after x, or if x of one table selects the row of another. So
// the queries use constants in LIMIT, subqueries instead of joins, and x = +?.
func (c *conn) keep(queries map[**stmt]string) error {
	for s, query := range queries {
		var err error
		if *s, err = c.prepare(query); err != nil {
			return err
		}
		c.kept = append(c.kept, *s)
	}
	return nil
}

func (s *stmt) close() { s.s.Close() }

func (s *stmt) query(args ...driver.Value) (driver.Rows, error) {
	for i, v := range args {
		s.args[i].Value = v
	}
	// A context that can be canceled would cost a goroutine per step.
	rows, err := s.s.(driver.StmtQueryContext).QueryContext(context.Background(), s.args)
	return rows, classify(err)
}

// exec runs a statement that returns no rows. It uses query because the driver
// then resets, binds and steps in one call into C. The statement is complete
// after that call, so exec does not need to close the rows, which would be a
// second call.
func (s *stmt) exec(args ...driver.Value) error {
	_, err := s.query(args...)
	return err
}

// row reads the first row into dest and reports whether there was one.
func (s *stmt) row(dest []driver.Value, args ...driver.Value) (bool, error) {
	rows, err := s.query(args...)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	switch err := rows.Next(dest); err {
	case nil:
		return true, nil
	case io.EOF:
		return false, nil
	default:
		return false, classify(err)
	}
}

// each runs the statement and calls f with each row of columns columns.
func (s *stmt) each(columns int, f func(*fields) error, args ...driver.Value) error {
	rows, err := s.query(args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for row := make([]driver.Value, columns); ; {
		switch err := rows.Next(row); err {
		case nil:
		case io.EOF:
			return nil
		default:
			return classify(err)
		}
		if err := f(&fields{row: row}); err != nil {
			return err
		}
	}
}

// changes runs a statement that returns no rows, and returns the number of rows
// it changed.
func (s *stmt) changes(args ...driver.Value) (int64, error) {
	for i, v := range args {
		s.args[i].Value = v
	}
	result, err := s.s.(driver.StmtExecContext).ExecContext(context.Background(), s.args)
	if err != nil {
		return 0, classify(err)
	}
	return result.RowsAffected()
}

// fields reads the columns of a row one by one. It sets bad if a column does not
// have the expected type, which happens only in a damaged file because the
// tables are STRICT.
type fields struct {
	row []driver.Value
	bad bool
}

func field[T any](f *fields) T {
	v, ok := f.row[0].(T)
	f.row, f.bad = f.row[1:], f.bad || !ok
	return v
}

func (f *fields) int() int64   { return field[int64](f) }
func (f *fields) text() string { return field[string](f) }

// blob returns nil for an empty blob.
func (f *fields) blob() []byte {
	if b := field[[]byte](f); len(b) > 0 {
		return b
	}
	return nil
}

// maybe reports whether the next column is not NULL. It skips a NULL column.
func (f *fields) maybe() bool {
	if f.row[0] != nil {
		return true
	}
	f.row = f.row[1:]
	return false
}

func (f *fields) hash() (h [32]byte) {
	b := field[[]byte](f)
	f.bad = copy(h[:], b) != len(h) || len(b) != len(h) || f.bad
	return h
}

func (f *fields) id() (id [16]byte) {
	b := field[[]byte](f)
	f.bad = copy(id[:], b) != len(id) || len(b) != len(id) || f.bad
	return id
}
