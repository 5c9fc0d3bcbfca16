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

// backupPages is how much a backup copies between two looks at its context.
const backupPages = 1024

// Backup copies the log as it is at the call to a new file, also while a
// process appends to it. The file appears under its name when it is complete
// and on the disk. progress is called now and then with pages of 4 KiB.
func (r *Reader) Backup(ctx context.Context, dest string, progress func(done, total int64)) error {
	if err := r.backup(ctx, dest, progress); err != nil {
		return fmt.Errorf("sqlite: back up to %s: %w", dest, err)
	}
	return nil
}

// Backup is Reader.Backup of the open log.
func (s *Store) Backup(ctx context.Context, dest string, progress func(done, total int64)) error {
	return s.files.Backup(ctx, dest, progress)
}

func (r *Reader) backup(ctx context.Context, dest string, progress func(done, total int64)) (err error) {
	// What an earlier backup left that was cut short may be overwritten, a
	// finished one may not.
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
		return syncFile(filepath.Dir(dest)) // the name, too, must survive a crash
	}
	os.Remove(part)
	return err
}

// copyTo copies c's database page by page. The transaction around it holds the
// log still for the copy; without it every append would start the copy anew.
func copyTo(ctx context.Context, dest string, c *readConn, progress func(done, total int64)) (err error) {
	if err := c.exec(ctx, "BEGIN"); err != nil {
		return err
	}
	defer func() {
		if e := c.exec(context.WithoutCancel(ctx), "ROLLBACK"); err == nil {
			err = e
		}
	}()
	if _, err := c.scalar("SELECT origin FROM meta"); err != nil { // BEGIN alone holds nothing yet
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
			// Somebody else holds a lock that a copy needs.
			time.Sleep(10 * time.Millisecond)
		}
		if progress != nil {
			progress(int64(b.PageCount()-b.Remaining()), int64(b.PageCount()))
		}
	}
	return nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
