package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strconv"
	"strings"

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
func storeRefusal(c cli.Config, err error) (*refusal, bool) {
	count := func(n int64) string { return strconv.FormatInt(n, 10) }
	if e, ok := errors.AsType[*sqlite.KeysBehind](err); ok {
		return refuse(refuseKeysBehind, err, "data", c.Data, "why", strings.TrimPrefix(e.Error(), "sqlite: ")), true
	}
	if e, ok := errors.AsType[*sqlite.RolledBack](err); ok {
		return refuse(refuseSignedAhead, err, "file", c.LastSigned, "size", count(e.Signed)), true
	}
	if e, ok := errors.AsType[*sqlite.Unsealed](err); ok {
		name := refuseUnsealed
		if e.Clear {
			name = refuseUncovered
		}
		return refuse(name, err, "data", c.Data, "position", count(int64(e.Position)), "why", e.Reason), true
	}
	if errors.Is(err, sqlite.ErrUnsealed) {
		return refuse(refuseTampered, err, "data", c.Data, "why", " In detail: log.db has the format of an earlier version, but this ledger has sealed its log."), true
	}
	if errors.Is(err, sqlite.ErrEmpty) {
		return refuse(refuseNoEvents, err, "data", c.Data), true
	}
	if errors.Is(err, sqlite.ErrNoWAL) {
		return refuse(refuseNoWAL, err, "data", c.Data), true
	}
	if errors.Is(err, eventstore.ErrTampered) {
		_, why, _ := strings.Cut(err.Error(), eventstore.ErrTampered.Error()+": ")
		if why != "" {
			why = " In detail: " + why + "."
		}
		return refuse(refuseTampered, err, "data", c.Data, "why", why), true
	}
	return nil, false
}

// transaction describes a transaction of the store, which appends may share.
type transaction sqlite.Transaction

// appended describes an append: when it waited, ran and ended, and its outcome.
type appended sqlite.Appended

// storeHooks are called by a store that writes. Each may be nil.
type storeHooks struct {
	committed func(transaction)               // after each transaction
	appended  func(context.Context, appended) // after each append, with its caller's context
	failed    func(error)                     // once, if the log accepts no more appends
	trouble   func(error)                     // for each failure to sign a checkpoint
}

// ledgerLog is the log opened for writing.
type ledgerLog interface {
	eventstore.Store
	// Checkpoint returns the first checkpoint that covers a position.
	Checkpoint(ctx context.Context, p eventstore.Position) ([]byte, error)
	// CheckClaims fails with ErrTampered if the claims are not those that the log
	// sealed.
	CheckClaims(ctx context.Context) error
	// Sealed returns what the log had seen of keys.db when it was opened.
	Sealed() eventstore.KeyState
}

// openStore opens the log in the data directory of c for writing, and creates it
// unless existing is set. The checkpoints are signed by id's key, and last keeps
// the newest one; last may be nil. It returns errLocked if another process has the
// log open. newOrigin changes the log's origin to that of the key.
func openStore(ctx context.Context, c cli.Config, id identity, keys *seal.Keys, last *lastSigned, existing, newOrigin bool, logger *slog.Logger, hooks storeHooks) (ledgerLog, error) {
	kept, err := last.note()
	if err != nil {
		return nil, err
	}
	codec := domain.Codec{Keys: keys}
	config := sqlite.Config{
		Dir: c.Data, Ledger: ledgerID(id.signer.Name()), Signer: id.signer, NewOrigin: newOrigin,
		Watch: domain.DecidingStreams, Vouch: keys.Vouch, Keys: keys.State, Existing: existing, ClaimsVersion: domain.ClaimsVersion,
		LastSigned: kept, Failed: hooks.failed, AcceptMissingWAL: c.Accept.MissingWAL,
		Adopt: sqlite.Adoption{
			Trust: trusted(trust{verifiers: id.known}),
			Authentic: func(rec eventstore.Recorded) (bool, error) {
				x, err := codec.Decode(rec)
				return !x.Erased, err
			},
			AcceptUncovered: c.Accept.Uncovered,
			Bind:            func() error { return keys.Bind(ctx, ledgerID(id.signer.Name())) },
			Progress:        reporter(logger, "sealing the log of an earlier version"),
		},
	}
	if keys.LogSealed() {
		config.Adopt.Trust.Verifiers = nil
	}
	config.Trouble = hooks.trouble
	if last != nil {
		config.Publish = last.publish
	}
	if hooks.committed != nil {
		config.Observe = func(t sqlite.Transaction) { hooks.committed(transaction(t)) }
	}
	if hooks.appended != nil {
		config.Trace = func(ctx context.Context, a sqlite.Appended) { hooks.appended(ctx, appended(a)) }
	}
	s, err := sqlite.Open(ctx, config)
	if err != nil {
		return nil, err // not s: a nil *sqlite.Store is not a nil ledgerLog
	}
	return s, nil
}

// storeReader is the log opened for reading, also while a server writes it.
type storeReader interface {
	eventstore.StreamReader
	ReadStream(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error]
	Streams(ctx context.Context, prefix string) iter.Seq2[string, error]
	Claims(ctx context.Context) iter.Seq2[eventstore.Claim, error]
	ClaimsVersion(ctx context.Context) (int, error)
	Subscribe(ctx context.Context, after eventstore.Position) iter.Seq2[[]eventstore.Recorded, error]
	Head(ctx context.Context) (eventstore.Position, error)
	// Check returns what is wrong with the structure of the store's file.
	Check(ctx context.Context) ([]string, error)
	// Backup writes a copy to the new file dest.
	Backup(ctx context.Context, dest string, progress func(done, total int64)) error
	// checkHead compares the sealed head with the log, and reports whether it could:
	// the log of an older version has none. It fails with ErrTampered.
	// With compareKeys, it also compares what keys.db says about itself.
	checkHead(ctx context.Context, keys *seal.Keys, compareKeys bool) (bool, error)
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

func (r sqliteReader) checkHead(ctx context.Context, keys *seal.Keys, compareKeys bool) (bool, error) {
	if !keys.CanVouch() {
		return false, nil
	}
	var state func() (eventstore.KeyState, error)
	if compareKeys {
		state = func() (eventstore.KeyState, error) { return keys.Reload(ctx) }
	}
	err := r.CheckSealed(ctx, keys.Vouch, state)
	if errors.Is(err, errors.ErrUnsupported) {
		return false, nil
	}
	return err == nil, err
}

// trusted returns what the store's verification relies on.
func trusted(t trust) sqlite.Trust {
	return sqlite.Trust{Verifiers: t.verifiers, Anchors: t.anchors, Erasures: domain.StoredTypes(domain.AccountErased{}), ErasedKey: domain.ErasedKey}
}

func (r sqliteReader) verify(ctx context.Context, t trust, progress func(done, total int64)) (verified, error) {
	report, err := r.Verify(ctx, trusted(t), progress)
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
