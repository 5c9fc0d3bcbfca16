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

// adminKeyID is the id of the bootstrap key, which exists without any event.
// Anyone with write access to the key store can replace it, see NewAdminKey.
const adminKeyID = "admin"

// ErrNoAdminKey reports that the key store has lost the admin key.
var ErrNoAdminKey = errors.New("httpapi: keys.db has no admin key, although the ledger has had one; 'accountledger admin-key' creates one")

// Bootstrap creates the admin key of a new ledger and writes it to path, readable
// by its owner only. If the key exists, Bootstrap does nothing, even if the file
// is missing: NewAdminKey replaces a lost key deliberately. It does not replace a
// key that the key store has lost, because an attacker may have deleted it to get
// another one: it fails with ErrNoAdminKey.
func Bootstrap(ctx context.Context, keys *seal.Keys, path string) error {
	_, err := keys.Secret(ctx, credentialName(adminKeyID))
	if errors.Is(err, seal.ErrNoSecret) {
		if keys.State().Changes > 0 {
			return ErrNoAdminKey
		}
		return NewAdminKey(ctx, keys, path)
	}
	if err != nil {
		return fmt.Errorf("httpapi: look for the admin key: %w", err)
	}
	return nil
}

// NewAdminKey creates a new admin key, with every scope, and writes it to path.
// The previous one becomes invalid.
func NewAdminKey(ctx context.Context, keys *seal.Keys, path string) error {
	secret := newKeySecret()
	// Write the file first: after a crash, a key that is stored but not written
	// is lost; one that is written but not stored is replaced at the next start.
	if err := writePrivate(path, []byte(formatKey(adminKeyID, secret)+"\n")); err != nil {
		return fmt.Errorf("httpapi: write the admin key: %w", err)
	}
	a := authenticator{keys: keys, now: time.Now}
	if err := a.keep(ctx, adminKeyID, secret, scopeAdmin); err != nil {
		return err
	}
	return nil
}

// writePrivate writes data to path atomically, with mode 0600.
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
	return errors.Join(dir.Sync(), dir.Close()) // without it, a crash can undo the rename
}
