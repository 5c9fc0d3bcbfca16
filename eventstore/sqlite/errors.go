package sqlite

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/mattn/go-sqlite3"
)

// Errors about a log's file or directory. Returned errors wrap them.
var (
	ErrLocked   = errors.New("sqlite: the data directory is in use by another process")
	ErrForeign  = errors.New("sqlite: not the log of this ledger")             // a file of another program or of another ledger
	ErrNewer    = errors.New("sqlite: the log was written by a newer version") // whose rows this version might misinterpret
	ErrCorrupt  = errors.New("sqlite: the log is damaged")
	ErrDiskFull = errors.New("sqlite: the disk is full")
	ErrReadOnly = errors.New("sqlite: the log cannot be written")
)

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
