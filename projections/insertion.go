package projections

import (
	"context"
	"database/sql"
	"slices"
	"strings"
)

// insertion inserts rows: up to rowsPerStatement at a time, because calling
// SQLite costs about as much as inserting a row.
type insertion struct{ one, many *sql.Stmt }

const rowsPerStatement = 16

// manyRows turns an INSERT of one row into one of rowsPerStatement rows.
func manyRows(insert string) string {
	from, to := strings.Index(insert, "(?"), strings.Index(insert, "?)")+len("?)")
	row := insert[from:to]
	return insert[:from] + strings.Repeat(row+", ", rowsPerStatement-1) + row + insert[to:]
}

// exec inserts rows and returns the rowid of the last one.
func (i insertion) exec(ctx context.Context, tx *sql.Tx, rows [][]any) (last int64, err error) {
	var result sql.Result
	for n := 0; len(rows) > 0; rows = rows[n:] {
		statement := i.one
		if n = 1; len(rows) >= rowsPerStatement {
			n, statement = rowsPerStatement, i.many
		}
		if result, err = tx.StmtContext(ctx, statement).ExecContext(ctx, slices.Concat(rows[:n]...)...); err != nil {
			return 0, err
		}
	}
	if result == nil {
		return 0, nil
	}
	return result.LastInsertId()
}
