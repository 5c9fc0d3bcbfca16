package sqlite

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/mattn/go-sqlite3"
)

// What can be wrong with a log's file or its place, to be found with errors.Is.
var (
	ErrLocked   = errors.New("sqlite: the data directory is in use by another process")
	ErrForeign  = errors.New("sqlite: not the log of this ledger")             // another program's file, or another ledger's
	ErrNewer    = errors.New("sqlite: the log was written by a newer version") // which may mean by its rows what this one does not know
	ErrCorrupt  = errors.New("sqlite: the log is damaged")
	ErrDiskFull = errors.New("sqlite: the disk is full")
	ErrReadOnly = errors.New("sqlite: the log cannot be written")
)

// classify puts the error above that says what err means before it.
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
