package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"io"
	"net/url"

	"github.com/mattn/go-sqlite3"
)

// conn is a connection to a log's file. It speaks to the driver and not
// through database/sql: whoever holds one holds it for long and prepares once,
// and at tens of thousands of rows a second a pool's locks and conversions on
// every call were a third of the writer's time. One goroutine at a time uses it.
type conn struct {
	db   *sqlite3.SQLiteConn
	kept []*stmt // closed with the connection
}

// Options of a connection, as the driver and SQLite read them from the DSN.
const (
	// readWrite has no pragma that writes: whose file it is, is asked first.
	// What it deletes it overwrites: an erased part must not stay in a free page.
	readWrite = "mode=rwc&_secure_delete=on&_synchronous=FULL&_txlock=immediate&_busy_timeout=5000&_foreign_keys=0&_cache_size=-16384&_mutex=no"
	readOnly  = "mode=ro&_query_only=1&_busy_timeout=5000&_foreign_keys=0&_mutex=no"
)

func dial(path, options string) (*conn, error) {
	// A path may hold what means something in a URI.
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + options
	db, err := new(sqlite3.SQLiteDriver).Open(dsn)
	if err != nil {
		return nil, classify(err)
	}
	return &conn{db: db.(*sqlite3.SQLiteConn)}, nil
}

// close closes the file. A statement left open would keep it open, too.
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

// scalar returns the first column of the only row of a query without
// arguments, or nil where it has no row.
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
	args []driver.NamedValue // kept, so that binding makes no garbage
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

// keep prepares each query into the statement beside it, for as long as the
// connection lives.
//
// SQLite compiles a statement anew when the value of a parameter changes that
// its plan might depend on, which takes many times longer than to run it. It
// sees such a parameter in LIMIT ?, and in x = ? where rows come ordered by the
// column after x or one table's x finds another's row; hence numbers after
// LIMIT, subqueries for joins, and x = +?.
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
	// A context that can end would cost a goroutine for every step.
	rows, err := s.s.(driver.StmtQueryContext).QueryContext(context.Background(), s.args)
	return rows, classify(err)
}

// exec runs a statement that has no rows. It goes the way of a query because
// there the driver resets, binds and steps in one call into C. The statement
// has then come to its end, so the rows need not be closed, which would be a
// second call.
func (s *stmt) exec(args ...driver.Value) error {
	_, err := s.query(args...)
	return err
}

// row reads the first row into dest and says whether there was one.
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

// fields takes the columns of a row one by one. STRICT tables hold the types
// asked for; that of a damaged file need not, and then the row is bad.
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

// maybe says whether the next column is not NULL, and passes over it if it is.
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
