package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// backupPages is the number of pages that Backup copies per step. It checks its
// context before each step.
const backupPages = 1024

// Backup copies the log, as it is at the time of the call, to a new file, even
// while a process appends to the log. It fails with fs.ErrExist if dest exists.
// The file gets the name dest once it is complete and durable. Backup calls
// progress, if not nil, after each step with numbers of pages of 4 KiB.
func (r *Reader) Backup(ctx context.Context, dest string, progress func(done, total int64)) error {
	if err := r.backup(ctx, dest, progress); err != nil {
		return fmt.Errorf("sqlite: back up to %s: %w", dest, err)
	}
	return nil
}

func (r *Reader) backup(ctx context.Context, dest string, progress func(done, total int64)) (err error) {
	// Overwrite what an interrupted backup left behind, but not a complete
	// backup.
	part := dest + ".part"
	if _, err := os.Lstat(dest); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, fs.ErrExist)
	}
	if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ctx, cancel := r.untilClosed(ctx)
	defer cancel(nil)
	err = r.use(ctx, func(c *readConn) error { return copyTo(ctx, part, c, progress) })
	if err == nil {
		err = syncFile(part)
	}
	if err == nil {
		err = os.Rename(part, dest)
	}
	if err == nil {
		return syncFile(filepath.Dir(dest)) // makes the new name durable
	}
	os.Remove(part)
	return err
}

// copyTo copies c's database page by page in one read transaction. Without the
// transaction, SQLite would restart the copy after every append.
func copyTo(ctx context.Context, dest string, c *readConn, progress func(done, total int64)) (err error) {
	if err := c.exec(ctx, "BEGIN"); err != nil {
		return err
	}
	defer func() {
		if e := c.exec(context.WithoutCancel(ctx), "ROLLBACK"); err == nil {
			err = e
		}
	}()
	version, err := c.scalar("PRAGMA user_version") // BEGIN alone does not start a read
	if err != nil {
		return err
	}
	to, err := dial(dest, "mode=rwc&_journal_mode=OFF&_synchronous=OFF")
	if err != nil {
		return err
	}
	defer to.close()
	b, err := to.db.Backup("main", c.db, "main")
	if err != nil {
		return classify(err)
	}
	defer b.Finish()
	for done := false; !done; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		before := b.Remaining()
		if done, err = b.Step(backupPages); err != nil {
			return classify(err)
		}
		if !done && b.Remaining() == before {
			// Another connection holds a lock that the copy needs.
			time.Sleep(10 * time.Millisecond)
		}
		if progress != nil {
			progress(int64(b.PageCount()-b.Remaining()), int64(b.PageCount()))
		}
	}
	if version == int64(1) {
		return nil
	}
	if err := b.Finish(); err != nil {
		return classify(err)
	}
	return to.exec(ctx, `UPDATE meta SET open = 0`) // the copy is complete without a -wal file
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
