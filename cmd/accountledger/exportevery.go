package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"accountledger/cmd/accountledger/cli"
	"accountledger/projections"
	"accountledger/projections/export"
)

// scheduledExports writes an export to a directory at an interval, for systems
// that fetch files. The name of a file has its position. A file appears only when
// it is complete. Only the newest files are kept.
type scheduledExports struct {
	views  *projections.Views
	dir    string
	every  time.Duration
	format export.Format
	keep   int
	logger *slog.Logger
}

// exportsOf returns the exports that c configures, or nil.
func exportsOf(c cli.Config, views *projections.Views, logger *slog.Logger) (*scheduledExports, error) {
	if c.ExportDir == "" {
		return nil, nil
	}
	if err := cli.OneOf("export-format", c.ExportFormat, formatNames()...); err != nil {
		return nil, err
	}
	if c.ExportEvery < time.Second || c.ExportKeep < 1 {
		return nil, cli.Usagef("export-every is %s and export-keep is %d; they must be at least 1s and 1", c.ExportEvery, c.ExportKeep)
	}
	return &scheduledExports{views, c.ExportDir, c.ExportEvery, export.Format(c.ExportFormat), c.ExportKeep, logger}, nil
}

// run exports until ctx is done. An export is due one interval after the time of
// the newest file, also after a restart. run logs a failed export and tries again
// after an interval.
func (x *scheduledExports) run(ctx context.Context) error {
	if err := os.MkdirAll(x.dir, 0o700); err != nil {
		return fmt.Errorf("exports: %w", err)
	}
	// A crash may have left an incomplete file, which contains personal data.
	if err := directory(x.dir).sweep(); err != nil {
		return fmt.Errorf("exports: %w", err)
	}
	for {
		wait, err := x.due()
		if err == nil && wait <= 0 {
			wait, err = x.every, x.export(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			x.logger.ErrorContext(ctx, "scheduled export failed", "err", err)
			wait = x.every
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// due returns the time until the next export.
func (x *scheduledExports) due() (time.Duration, error) {
	files, err := x.files()
	if err != nil || len(files) == 0 {
		return 0, err
	}
	info, err := os.Stat(files[len(files)-1])
	if err != nil {
		return 0, err
	}
	return min(x.every, time.Until(info.ModTime().Add(x.every))), nil
}

// export writes a file and removes the oldest ones. The name has the position,
// which is known only when the export has started.
func (x *scheduledExports) export(ctx context.Context) error {
	var written export.Summary
	var path string
	name := func(from, _ string) error {
		path = filepath.Join(x.dir, fmt.Sprintf("accounts-%020d.%s", written.Position, x.format))
		now := time.Now() // the clock that due uses; the file system's may differ
		return cmp.Or(os.Chtimes(from, now, now), os.Rename(from, path))
	}
	err := cli.WriteFile(filepath.Join(x.dir, "accounts"), 0o600, name, func(f *os.File) (err error) {
		written, err = export.Accounts(ctx, x.views, f, export.Options{Format: x.format})
		return err
	})
	if err != nil {
		return err
	}
	x.logger.InfoContext(ctx, "exported", "file", path, "position", written.Position, "accounts", written.Accounts)
	files, err := x.files()
	for _, old := range files[:max(0, len(files)-x.keep)] {
		if gone := os.Remove(old); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	return errors.Join(err, cli.SyncDir(x.dir))
}

// files returns the existing exports in any format, oldest first.
func (x *scheduledExports) files() ([]string, error) {
	digits := ""
	for range 20 {
		digits += "[0-9]"
	}
	files, err := filepath.Glob(filepath.Join(x.dir, "accounts-"+digits+".*"))
	slices.Sort(files)
	return files, err
}
