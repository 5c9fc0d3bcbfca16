package seal

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"accountledger/eventstore"
)

// claimSecret is the name of the secret that holds the HMAC key for claims.
// Callers can neither read nor change it.
const claimSecret = "al1/claim"

// Claim returns owner's claim of an identifier. Its key is the first 16 bytes
// of HMAC-SHA256(claim key, kind | 0x00 | value) (RFC 2104), so the store never
// holds the value, and the store alone does not allow testing guesses of it.
// Half of the digest, the minimum in RFC 2104, section 5, halves the size of
// the store's only randomly ordered index; the probability of a collision
// among 10^9 identifiers is 10^-21. The caller must normalize value; kind must
// not contain zero bytes.
func (k *Keys) Claim(kind, value, owner string) eventstore.Claim {
	mac := hmac.New(sha256.New, k.claim)
	mac.Write([]byte(kind))
	mac.Write([]byte{0})
	mac.Write([]byte(value))
	return eventstore.Claim{Kind: kind, Key: string(mac.Sum(nil)[:16]), Owner: owner}
}

// PutSecret stores value under name; it is durable when PutSecret returns nil.
// An earlier value is replaced and overwritten on disk. PutSecret fails with
// ErrReadOnly in a reader. If it returns ErrBusy, the new value is stored, but
// the earlier one may still be on disk.
func (k *Keys) PutSecret(ctx context.Context, name string, value []byte) error {
	if err := k.checkWritable(name); err != nil {
		return err
	}
	tx, err := k.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("seal: put secret %s: %w", name, err)
	}
	defer tx.Rollback()
	old, err := tx.ExecContext(ctx, `DELETE FROM secrets WHERE name = ?`, name)
	if err != nil {
		return fmt.Errorf("seal: put secret %s: %w", name, err)
	}
	replaced, err := old.RowsAffected()
	if err != nil {
		return fmt.Errorf("seal: put secret %s: %w", name, err)
	}
	if err := k.putSecret(ctx, tx, name, value); err != nil {
		return fmt.Errorf("seal: put secret %s: %w", name, err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("seal: put secret %s: %w", name, err)
	}
	if replaced == 0 {
		return nil
	}
	return k.truncateWAL(ctx)
}

func (k *Keys) putSecret(ctx context.Context, tx *sql.Tx, name string, value []byte) error {
	wrapped := k.wrap.wrap(secretAAD(name, k.wrap.epoch), value)
	_, err := tx.ExecContext(ctx, `INSERT INTO secrets (name, epoch, wrapped) VALUES (?, ?, ?)`, name, k.wrap.epoch, wrapped)
	return err
}

// Secret returns the value stored under name, or ErrNoSecret.
func (k *Keys) Secret(ctx context.Context, name string) ([]byte, error) {
	if name == claimSecret {
		return nil, ErrNoSecret
	}
	return k.secret(ctx, name)
}

func (k *Keys) secret(ctx context.Context, name string) ([]byte, error) {
	var epoch uint32
	var wrapped []byte
	switch err := k.read.QueryRowContext(ctx, `SELECT epoch, wrapped FROM secrets WHERE name = ?`, name).Scan(&epoch, &wrapped); {
	case errors.Is(err, sql.ErrNoRows):
		return nil, ErrNoSecret
	case err != nil:
		return nil, fmt.Errorf("seal: read secret %s: %w", name, err)
	}
	value, err := k.wrap.unwrap(secretAAD(name, epoch), wrapped)
	if err != nil {
		return nil, fmt.Errorf("seal: secret %s is damaged or belongs to another name or epoch", name)
	}
	return value, nil
}

// DeleteSecret deletes the secret name and overwrites it on disk. It succeeds
// if there is none. It fails with ErrReadOnly in a reader. After ErrBusy, the
// secret is deleted, but may still be on disk; call DeleteSecret again.
func (k *Keys) DeleteSecret(ctx context.Context, name string) error {
	if err := k.checkWritable(name); err != nil {
		return err
	}
	if _, err := k.write.ExecContext(ctx, `DELETE FROM secrets WHERE name = ?`, name); err != nil {
		return fmt.Errorf("seal: delete secret %s: %w", name, err)
	}
	return k.truncateWAL(ctx)
}

func (k *Keys) checkWritable(name string) error {
	switch {
	case k.write == nil:
		return ErrReadOnly
	case name == "" || name == claimSecret:
		return fmt.Errorf("seal: %q is not a valid secret name", name)
	}
	return nil
}

// truncateWAL truncates the write-ahead log, which may contain deleted data in
// older versions of pages, and checks that it is empty. In the file itself,
// secure_delete has overwritten the data. It fails with ErrBusy if a reader
// holds old pages.
func (k *Keys) truncateWAL(ctx context.Context) error {
	// Hold the only write connection until the end. Otherwise the next batch
	// of keys could be written between the checkpoint and the check.
	conn, err := k.write.Conn(ctx)
	if err != nil {
		return fmt.Errorf("seal: truncate the write-ahead log: %w", err)
	}
	defer conn.Close()
	var busy, pages, moved int
	if err := conn.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &pages, &moved); err != nil {
		return fmt.Errorf("seal: truncate the write-ahead log: %w", err)
	}
	if busy != 0 {
		return ErrBusy
	}
	switch wal, err := os.Stat(k.path + "-wal"); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("seal: truncate the write-ahead log: %w", err)
	case wal.Size() != 0:
		return ErrBusy // another process has written in the meantime
	}
	return nil
}
