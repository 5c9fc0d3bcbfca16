// Package projections follows the log and keeps what it adds up to in tables
// that can be thrown away: views.db is made of the log and of nothing else.
package projections

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"time"

	"accountledger/domain"
	"accountledger/eventstore"
)

// Config says what Views follow and where they keep what they make of it.
type Config struct {
	Path   string           // of views.db; made if it is missing
	Log    eventstore.Store // what is followed
	Codec  domain.Codec     // opens and decodes what the log holds
	Logger *slog.Logger     // default: nothing is logged
}

// Views are the read models in one file, views.db.
type Views struct{ accounts *Accounts }

// Status is where a view stands.
type Status struct {
	Name     string
	Position eventstore.Position // of the last event it has applied
	Head     eventstore.Position // of the last event of the log
	Lag      int64               // events of the log it has not applied
	State    string              // "live", or "rebuilding" beside the live view
	Rebuilt  eventstore.Position // how far the rebuild is
	Parked   []Parked            // streams it could not apply
}

// Parked is a stream that waits because one of its events could not be
// applied. Other streams go on.
type Parked struct {
	Stream   string
	Revision eventstore.Revision // of the first event that waits
	Position eventstore.Position
	Error    string // why, without personal data
	Since    time.Time
	Attempts int64
}

var errSkeleton = errors.New("projections: being written")

// Open opens views.db, or makes it.
func Open(ctx context.Context, c Config) (*Views, error) { return nil, errSkeleton }

// OpenReader opens views.db for status and queries, beside a live server.
func OpenReader(ctx context.Context, path string) (*Views, error) { return nil, errSkeleton }

// Run keeps all views up to date until ctx is done.
func (v *Views) Run(ctx context.Context) error { return errSkeleton }

// Await returns when the view has applied p.
func (v *Views) Await(ctx context.Context, view string, p eventstore.Position) error {
	return errSkeleton
}

// Status says where each view stands.
func (v *Views) Status(ctx context.Context) ([]Status, error) { return nil, errSkeleton }

// Rebuild makes the view again beside the live one, then switches.
func (v *Views) Rebuild(ctx context.Context, view string, progress func(done, total int64)) error {
	return errSkeleton
}

// Accounts is the account view.
func (v *Views) Accounts() *Accounts { return v.accounts }

// Check examines the file.
func (v *Views) Check(ctx context.Context) error { return errSkeleton }

// Backup writes a consistent copy of the file to dest.
func (v *Views) Backup(ctx context.Context, dest string) error { return errSkeleton }

// Close closes the file.
func (v *Views) Close() error { return nil }

// AccountsView is the name of the account view.
const AccountsView = "accounts"

// ErrNotFound is returned where no account matches.
var ErrNotFound = errors.New("projections: not found")

// Accounts answers questions about accounts from the account view.
type Accounts struct{}

// AccountRow is one account as it goes over the wire.
type AccountRow struct {
	Sub        string
	JSON       []byte // exactly domain.Account.JSON
	Revision   eventstore.Revision
	Position   eventstore.Position
	ErasedTime time.Time // zero unless the account's personal data is gone
}

// Get returns the account sub, or ErrNotFound.
func (a *Accounts) Get(ctx context.Context, sub string) (AccountRow, error) {
	return AccountRow{}, errSkeleton
}

// Lookup returns the account the first of the candidates leads to that leads
// anywhere, or ErrNotFound.
func (a *Accounts) Lookup(ctx context.Context, candidates []domain.Candidate) (AccountRow, error) {
	return AccountRow{}, errSkeleton
}

// Position is how far the view is, from memory.
func (a *Accounts) Position() eventstore.Position { return 0 }

// Lag is how many events of the log the view has not applied, as far as it
// knows, from memory.
func (a *Accounts) Lag() int64 { return 0 }

// All yields all accounts in the order of their subs as they were at one
// position. Range over rows or cancel ctx, else a connection stays taken.
func (a *Accounts) All(ctx context.Context) (at eventstore.Position, total int64, rows iter.Seq2[AccountRow, error], err error) {
	return 0, 0, nil, errSkeleton
}
