package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"accountledger/eventstore/seal"
)

// adminKeyID is the id of the key that is there before any event. It is no
// event's: who can write the key store can replace it, see NewAdminKey.
const adminKeyID = "admin"

// Bootstrap makes the admin key when the ledger has none yet and writes it to
// path, readable by its owner only. Where there is one it does nothing, also
// when the file is gone: a lost key is replaced on purpose, by NewAdminKey.
func Bootstrap(ctx context.Context, keys *seal.Keys, path string) error {
	_, err := keys.Secret(ctx, credentialName(adminKeyID))
	if errors.Is(err, seal.ErrNoSecret) {
		return NewAdminKey(ctx, keys, path)
	}
	if err != nil {
		return fmt.Errorf("httpapi: look for the admin key: %w", err)
	}
	return nil
}

// NewAdminKey makes a new admin key, with every scope, and writes it to path.
// The one before is no longer valid.
func NewAdminKey(ctx context.Context, keys *seal.Keys, path string) error {
	secret := newKeySecret()
	// The file first: a key that is stored and was never written is lost,
	// one that was written and is not stored is replaced at the next start.
	if err := writePrivate(path, []byte(formatKey(adminKeyID, secret)+"\n")); err != nil {
		return fmt.Errorf("httpapi: write the admin key: %w", err)
	}
	a := authenticator{keys: keys, now: time.Now}
	if err := a.keep(ctx, adminKeyID, secret, scopeAdmin); err != nil {
		return err
	}
	return nil
}

// writePrivate puts data at path, whole or not at all, with mode 0600.
func writePrivate(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return &fs.PathError{Op: "write", Path: path, Err: errors.New("not a regular file")}
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close()) // or a crash takes the name back
}
