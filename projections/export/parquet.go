package export

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/parquet-go/parquet-go"

	"accountledger/eventstore"
	"accountledger/projections"
)

// The keys of a Parquet file's metadata.
const (
	metaPosition = "ledger-position" // the position of the snapshot
	metaSince    = "ledger-since"    // Options.Since
)

// rowGroup is the number of accounts in a row group, which is kept in memory.
const rowGroup = 5_000

// The columns with another Parquet type than string.
var (
	booleans  = []string{"email_verified", "mobile_number_verified"}
	integers  = []string{"revision", "position"}
	times     = []string{"createdTime", "updatedTime", "lastLoggedInTime", "erasedTime"}
	documents = []string{"address", "identities", "userIds", "customFields", "fieldClaims", "groups", "consents", "schedules", "deletion", "combinedFrom"}
)

// parquetAccounts writes Apache Parquet: the columns of CSV, ordered by name, all
// optional except the sub. Lists and objects are JSON.
func parquetAccounts(w io.Writer, columns []string, at, since eventstore.Position) writer {
	columns = slices.Sorted(slices.Values(columns)) // the order of a parquet.Group
	nodes := parquet.Group{}
	for _, name := range columns {
		nodes[name] = parquet.Optional(nodeOf(name))
		if name == "sub" {
			nodes[name] = nodeOf(name)
		}
	}
	out := parquet.NewWriter(w, parquet.NewSchema("account", nodes), parquet.Compression(&parquet.Snappy), parquet.MaxRowsPerRowGroup(rowGroup),
		parquet.KeyValueMetadata(metaPosition, strconv.FormatInt(int64(at), 10)), parquet.KeyValueMetadata(metaSince, strconv.FormatInt(int64(since), 10)))
	cells := make(parquet.Row, len(columns))
	return writer{
		write: func(row projections.AccountRow) error {
			values, err := flat(row, columns)
			if err != nil {
				return err
			}
			for i, v := range values {
				if cells[i], err = cell(columns[i], v); err != nil {
					return fmt.Errorf("export: account %s: column %s: %T", row.Sub, columns[i], err)
				}
				defined := 1
				if columns[i] == "sub" || cells[i].IsNull() {
					defined = 0
				}
				cells[i] = cells[i].Level(0, defined, i)
			}
			_, err = out.WriteRows([]parquet.Row{cells})
			return err
		},
		flush: out.Close,
	}
}

// nodeOf returns the type of a column.
func nodeOf(column string) parquet.Node {
	switch {
	case slices.Contains(booleans, column):
		return parquet.Leaf(parquet.BooleanType)
	case slices.Contains(integers, column):
		return parquet.Int(64)
	case slices.Contains(times, column):
		return parquet.Timestamp(parquet.Microsecond)
	case slices.Contains(documents, column):
		return parquet.JSON()
	}
	return parquet.String()
}

// cell returns a member's value in its column's type.
func cell(column string, v jsontext.Value) (parquet.Value, error) {
	switch {
	case len(v) == 0:
		return parquet.NullValue(), nil
	case slices.Contains(booleans, column):
		return parquet.BooleanValue(v.Kind() == 't'), nil
	case slices.Contains(integers, column):
		n, err := strconv.ParseInt(string(v), 10, 64)
		return parquet.Int64Value(n), err
	case slices.Contains(times, column):
		t, err := time.Parse(time.RFC3339Nano, text(v))
		return parquet.Int64Value(t.UnixMicro()), err
	}
	return parquet.ByteArrayValue([]byte(text(v))), nil
}
