package projections

import (
	"context"
	"database/sql"
	"slices"
	"strings"
)

// insertion inserts rows, many in a statement where there are many: the way
// into SQLite and back costs about as much as what it does there.
type insertion struct{ one, many *sql.Stmt }

const rowsAtOnce = 16

// manyRows is the INSERT of one row made one of rowsAtOnce.
func manyRows(insert string) string {
	from, to := strings.Index(insert, "(?"), strings.Index(insert, "?)")+len("?)")
	row := insert[from:to]
	return insert[:from] + strings.Repeat(row+", ", rowsAtOnce-1) + row + insert[to:]
}

// exec returns the number of the last row.
func (i insertion) exec(ctx context.Context, tx *sql.Tx, rows [][]any) (last int64, err error) {
	var result sql.Result
	for n := 0; len(rows) > 0; rows = rows[n:] {
		statement := i.one
		if n = 1; len(rows) >= rowsAtOnce {
			n, statement = rowsAtOnce, i.many
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
