package main

import (
	"context"
	"fmt"
	"iter"

	"golang.org/x/mod/sumdb/note"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/eventstore/sqlite"
)

// Only this file knows which store holds the log. The other files use the port,
// eventstore.Store, and for tools that only read, storeReader.

// errLocked reports that another process uses the data directory. The other errors
// report that its log cannot be used.
var (
	errLocked       = sqlite.ErrLocked
	errStoreForeign = sqlite.ErrForeign
	errStoreNewer   = sqlite.ErrNewer
	errStoreCorrupt = sqlite.ErrCorrupt
)

// storeRefusal returns the refusal in err, if the store refused to open its file.
func storeRefusal(err error) (*refusal, bool) { return nil, false }

// transaction describes a transaction of the store, which appends may share.
type transaction sqlite.Transaction

// appended describes an append: when it waited, ran and ended, and its outcome.
type appended sqlite.Appended

// storeHooks are called by a store that writes. Each may be nil.
type storeHooks struct {
	committed func(transaction)               // after each transaction
	appended  func(context.Context, appended) // after each append, with its caller's context
}

// openStore opens the log in the data directory of c for writing, and creates
// it if there is none. signer signs its checkpoints, which last also keeps; last
// may be nil. It returns errLocked if another process has the log open.
func openStore(ctx context.Context, c cli.Config, signer note.Signer, last *lastSigned, hooks storeHooks) (eventstore.Store, error) {
	config := sqlite.Config{Dir: c.Data, Signer: signer}
	if hooks.committed != nil {
		config.Observe = func(t sqlite.Transaction) { hooks.committed(transaction(t)) }
	}
	if hooks.appended != nil {
		config.Trace = func(ctx context.Context, a sqlite.Appended) { hooks.appended(ctx, appended(a)) }
	}
	s, err := sqlite.Open(ctx, config)
	if err != nil {
		return nil, err // not s: a nil *sqlite.Store is not a nil Store
	}
	return s, nil
}

// storeReader is the log opened for reading, also while a server writes it.
type storeReader interface {
	eventstore.StreamReader
	ReadStream(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error]
	Streams(ctx context.Context, prefix string) iter.Seq2[string, error]
	Subscribe(ctx context.Context, after eventstore.Position) iter.Seq2[[]eventstore.Recorded, error]
	Head(ctx context.Context) (eventstore.Position, error)
	// Check returns what is wrong with the structure of the store's file.
	Check(ctx context.Context) ([]string, error)
	// Backup writes a copy to the new file dest.
	Backup(ctx context.Context, dest string, progress func(done, total int64)) error
	// checkHead compares the sealed head with the log, and reports whether it could:
	// the log of an older version has none. It fails with ErrTampered.
	checkHead(ctx context.Context, keys *seal.Keys) (bool, error)
	// verify verifies the events against the checkpoints in the log and t.
	verify(ctx context.Context, t trust, progress func(done, total int64)) (verified, error)
	Close() error
}

// trust is what a verification relies on besides the log.
type trust struct {
	verifiers verifiers
	anchors   [][]byte // checkpoints that were kept elsewhere
}

// requireStore returns an error unless there is a log in the data directory of c.
func requireStore(c cli.Config) error {
	there, err := directory(c.Data).has(logFile)
	if err == nil && !there {
		err = fmt.Errorf("there is no ledger in %s", c.Data)
	}
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}

// openStoreReader opens the log in the data directory of c for reading.
func openStoreReader(ctx context.Context, c cli.Config) (storeReader, error) {
	r, err := sqlite.OpenReader(ctx, c.Data)
	if err != nil {
		return nil, err
	}
	return sqliteReader{r}, nil
}

type sqliteReader struct{ *sqlite.Reader }

func (r sqliteReader) checkHead(ctx context.Context, keys *seal.Keys) (bool, error) {
	return false, nil
}

func (r sqliteReader) verify(ctx context.Context, t trust, progress func(done, total int64)) (verified, error) {
	report, err := r.Verify(ctx, sqlite.Trust{Verifier: t.verifiers[0], Anchors: t.anchors, Erasures: domain.StoredTypes(domain.AccountErased{}), ErasedKey: domain.ErasedKey}, progress)
	if err != nil {
		return verified{}, err
	}
	return verified{
		OK: report.OK(), Origin: t.verifiers[0].Name(), Events: report.Events, Covered: report.Covered, Checkpoints: report.Checkpoints,
		Faults: found(report.Faults), Unlisted: report.Unlisted, Warnings: found(report.Warnings), SealedHead: headNotChecked, root: report.Root,
	}, nil
}

func found(faults []sqlite.Fault) []foundFault {
	var all []foundFault
	for _, f := range faults {
		all = append(all, foundFault{f.String(), string(f.Kind), f.Position, f.Detail})
	}
	return all
}
