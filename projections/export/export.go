// Package export writes all accounts in bulk for other systems to load, and
// compares the accounts of such a target system with the ledger. An export is a
// snapshot at one position of the log: a system that loads it and follows the
// log from there gets every later change exactly once.
package export

import (
	"context"
	"fmt"
	"io"
	"slices"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
)

// Format is a file format of an export.
type Format string

// The formats.
const (
	NDJSON  Format = "ndjson"  // one document per line, as the API returns it
	CSV     Format = "csv"     // RFC 4180 with a header, one column per member
	Parquet Format = "parquet" // the same columns as CSV, with types
)

// Formats lists all formats.
var Formats = []Format{NDJSON, CSV, Parquet}

// Options selects the accounts to export and their form.
type Options struct {
	Format Format
	Since  eventstore.Position // only accounts with an event after this position
	Fields []string            // the Columns to write besides the sub; empty: the whole account
	Hidden domain.Hidden       // custom fields to omit

	// Begun, if not nil, is called before the first write, with the position of
	// the snapshot and the number of accounts in it. Its error ends the export.
	Begun func(at eventstore.Position, total int64) error
	Each  func() // if not nil, called after each account
}

// Summary describes a finished export.
type Summary struct {
	Position eventstore.Position // of the snapshot
	Accounts int64               // the number of accounts written
}

// Check returns an error if o has an unknown format or column.
func (o Options) Check() error {
	if !slices.Contains(Formats, o.Format) {
		return fmt.Errorf("export: unknown format %q", o.Format)
	}
	for _, name := range o.Fields {
		if !slices.Contains(Columns, name) {
			return fmt.Errorf("export: unknown column %q", name)
		}
	}
	return nil
}

// Accounts writes a snapshot of the accounts of views to w, in the order of their
// subs. It includes erased accounts, which have no personal data. It keeps one
// account in memory, for Parquet a row group of 5,000. After an error, the output
// is incomplete.
func Accounts(ctx context.Context, views *projections.Views, w io.Writer, o Options) (Summary, error) {
	if err := o.Check(); err != nil {
		return Summary{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // releases the connection if the rows are not ranged over
	at, total, rows, err := views.Accounts().Changed(ctx, o.Since)
	if err != nil {
		return Summary{}, err
	}
	s := Summary{Position: at}
	if o.Begun != nil {
		if err := o.Begun(at, total); err != nil {
			return s, err
		}
	}
	out := o.writer(w, at)
	for row, err := range rows {
		if err == nil {
			row, err = without(row, o.Hidden)
		}
		if err == nil {
			err = out.write(row)
		}
		if err != nil {
			return s, err
		}
		if s.Accounts++; o.Each != nil {
			o.Each()
		}
	}
	return s, out.flush()
}

// without returns a copy of row with the fields in h removed from its document.
func without(row projections.AccountRow, h domain.Hidden) (projections.AccountRow, error) {
	if len(h) == 0 {
		return row, nil
	}
	account, err := row.Account()
	if err != nil {
		return row, err
	}
	row.JSON, err = account.Without(h).JSON()
	return row, err
}
