package sqlite

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/mattn/go-sqlite3"

	"accountledger/eventstore"
)

// Errors about a log's file or directory. Returned errors wrap them.
var (
	ErrLocked   = errors.New("sqlite: the data directory is in use by another process")
	ErrForeign  = errors.New("sqlite: not the log of this ledger")             // a file of another program or of another ledger
	ErrNewer    = errors.New("sqlite: the log was written by a newer version") // whose rows this version might misinterpret
	ErrCorrupt  = errors.New("sqlite: the log is damaged")
	ErrEmpty    = errors.New("sqlite: the log is missing or empty")
	ErrUnsealed = errors.New("sqlite: the log has no sealed head, and may not be given one")
	ErrNoWAL    = errors.New("sqlite: the log was not closed, and its -wal file is missing")
	ErrDiskFull = errors.New("sqlite: the disk is full")
	ErrReadOnly = errors.New("sqlite: the log cannot be written")
)

// KeysBehind reports that the key file is older than the log.
type KeysBehind struct {
	Sealed eventstore.KeyState // what the log has seen
	Found  eventstore.KeyState // what the key file has
}

func (e *KeysBehind) Error() string {
	if e.Found.Slot < e.Sealed.Slot {
		return fmt.Sprintf("sqlite: the key file ends at key %d, but the log has events under key %d", e.Found.Slot, e.Sealed.Slot)
	}
	return fmt.Sprintf("sqlite: the key file has seen %d changes of secrets, the log %d", e.Found.Changes, e.Sealed.Changes)
}

// RolledBack reports that the log is not the continuation of the last checkpoint
// that was signed.
type RolledBack struct {
	Signed int64 // size of that checkpoint
	Size   int64 // of the log
	Beside bool  // the log has at least that size, but another root there
}

func (e *RolledBack) Error() string {
	if e.Beside {
		return fmt.Sprintf("sqlite: the log's first %d events are not those that were signed last", e.Signed)
	}
	return fmt.Sprintf("sqlite: the log has %d events, but %d were signed", e.Size, e.Signed)
}

// noTree returns the error of restoring the tree, as ErrTampered unless the file
// could not be read.
func noTree(err error) error {
	if _, unread := errors.AsType[sqlite3.Error](err); unread {
		return err
	}
	return tampered("%v", err)
}

// classify wraps an SQLite error in the error above that describes its cause.
func classify(err error) error {
	se, ok := errors.AsType[sqlite3.Error](err)
	if !ok {
		return err
	}
	var meaning error
	switch {
	case se.Code == sqlite3.ErrFull || se.SystemErrno == syscall.ENOSPC || se.SystemErrno == syscall.EDQUOT:
		meaning = ErrDiskFull
	case se.Code == sqlite3.ErrReadonly || se.Code == sqlite3.ErrPerm ||
		se.SystemErrno == syscall.EACCES || se.SystemErrno == syscall.EROFS:
		meaning = ErrReadOnly
	case se.Code == sqlite3.ErrCorrupt:
		meaning = ErrCorrupt
	case se.Code == sqlite3.ErrNotADB:
		meaning = ErrForeign
	default:
		return err
	}
	return fmt.Errorf("%w: %w", meaning, err)
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}
