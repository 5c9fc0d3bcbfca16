package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"accountledger/eventstore"
)

// The tools read delivery.db with the functions below and not with package
// webhooks, whose Open takes over the endpoints from a running server.

// openDatabase opens an SQLite file read-only.
func openDatabase(path string) (*sql.DB, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err // SQLite's error does not name the missing file
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite3", "file:"+(&url.URL{Path: abs}).EscapedPath()+"?mode=ro&_busy_timeout=5000")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// checkDatabase checks the file for damage.
func checkDatabase(ctx context.Context, path string) error {
	db, err := openDatabase(path)
	if err != nil {
		return err
	}
	defer db.Close()
	var found string
	if err := db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&found); err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	if found != "ok" {
		return fmt.Errorf("check %s: %s", path, found)
	}
	return nil
}

// deliveryPosition returns the position of the last event that any webhook has
// settled.
func deliveryPosition(ctx context.Context, path string) (eventstore.Position, error) {
	db, err := openDatabase(path)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	var position eventstore.Position
	err = db.QueryRowContext(ctx, "SELECT max((SELECT coalesce(max(low), 0) FROM cursor), (SELECT coalesce(max(position), 0) FROM follow))").Scan(&position)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	return position, nil
}

// copyDatabase writes a consistent copy of the live file to dest, which must
// not exist.
func copyDatabase(ctx context.Context, path, dest string) error {
	db, err := openDatabase(path)
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "VACUUM INTO ?", dest); err != nil {
		return errors.Join(fmt.Errorf("copy %s: %w", path, err), os.Remove(dest))
	}
	return nil
}
