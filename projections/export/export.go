// Package export hands over all accounts at once, to systems that load them,
// and compares what such a system has with the ledger. What it yields is as it
// was at one position of the log: whoever follows the log from there gets every
// later change, and none twice.
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

// Format is a form that accounts are written in.
type Format string

// The formats.
const (
	NDJSON  Format = "ndjson"  // a document a line, exactly as the API has it
	CSV     Format = "csv"     // RFC 4180 with a header, a column a member
	Parquet Format = "parquet" // the same columns, with types
)

// Formats is the list of all formats.
var Formats = []Format{NDJSON, CSV, Parquet}

// Options says which accounts are written, and how.
type Options struct {
	Format Format
	Since  eventstore.Position // only those that have an event after it
	Fields []string            // of Columns: only these and the sub; none: everything
	Hidden domain.Hidden       // custom fields that are left out

	// Begun is called before anything is written, with the position that the
	// accounts are of and how many there are; Each after each. Both may be nil.
	Begun func(at eventstore.Position, total int64) error
	Each  func()
}

// Summary is what was written.
type Summary struct {
	Position eventstore.Position // all accounts are as they were here
	Accounts int64
}

// Check reports why o cannot be followed.
func (o Options) Check() error {
	if !slices.Contains(Formats, o.Format) {
		return fmt.Errorf("export: there is no format %q", o.Format)
	}
	for _, name := range o.Fields {
		if !slices.Contains(Columns, name) {
			return fmt.Errorf("export: there is no column %q", name)
		}
	}
	return nil
}

// Accounts writes the accounts of views to w, in the order of their subs, as
// they are at one position; erased ones, too, without personal data. Memory
// holds one account, of Parquet some thousand. After an error, what was written
// is a part.
func Accounts(ctx context.Context, views *projections.Views, w io.Writer, o Options) (Summary, error) {
	if err := o.Check(); err != nil {
		return Summary{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // gives the connection back where the rows are not ranged over
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

// without is row as it is shown to who must not see h.
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
