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

// claimSecret is where the HMAC key of claims lies among the secrets. It is no
// caller's to read or change.
const claimSecret = "al1/claim"

// Claim makes the claim of an identifier for an owner: its key is the first 16
// bytes of HMAC-SHA256(claim key, kind | 0x00 | value), so the store never
// holds the value, and who has the store alone cannot guess at it. Half of the
// digest (RFC 2104, section 5, allows no less) halves the store's one index
// in random order; a false collision among 10^9 identifiers has a chance of
// 10^-21. The value must be in its normal form, the kind free of zero bytes.
func (k *Keys) Claim(kind, value, owner string) eventstore.Claim {
	mac := hmac.New(sha256.New, k.claim)
	mac.Write([]byte(kind))
	mac.Write([]byte{0})
	mac.Write([]byte(value))
	return eventstore.Claim{Kind: kind, Key: string(mac.Sum(nil)[:16]), Owner: owner}
}

// PutSecret keeps value under name, durable when it returns, in the place of
// what was there. What was there is overwritten on disk.
func (k *Keys) PutSecret(ctx context.Context, name string, value []byte) error {
	if err := k.mayChange(name); err != nil {
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
	return k.scrub(ctx)
}

func (k *Keys) putSecret(ctx context.Context, tx *sql.Tx, name string, value []byte) error {
	wrapped := k.wrap.wrap(secretPlace(name, k.wrap.epoch), value)
	_, err := tx.ExecContext(ctx, `INSERT INTO secrets (name, epoch, wrapped) VALUES (?, ?, ?)`, name, k.wrap.epoch, wrapped)
	return err
}

// Secret is what PutSecret kept under name, or ErrNoSecret.
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
	value, err := k.wrap.unwrap(secretPlace(name, epoch), wrapped)
	if err != nil {
		return nil, fmt.Errorf("seal: secret %s is damaged or of another name or epoch", name)
	}
	return value, nil
}

// DeleteSecret forgets what is under name and overwrites it on disk, as
// Destroy does with a key. A name that is not there is fine.
func (k *Keys) DeleteSecret(ctx context.Context, name string) error {
	if err := k.mayChange(name); err != nil {
		return err
	}
	if _, err := k.write.ExecContext(ctx, `DELETE FROM secrets WHERE name = ?`, name); err != nil {
		return fmt.Errorf("seal: delete secret %s: %w", name, err)
	}
	return k.scrub(ctx)
}

func (k *Keys) mayChange(name string) error {
	switch {
	case k.write == nil:
		return ErrReadOnly
	case name == "" || name == claimSecret:
		return fmt.Errorf("seal: %q is not a name for a secret", name)
	}
	return nil
}

// scrub cuts the write-ahead log to nothing, for it holds pages as they were
// before the last change, and checks that it is gone. In the file itself
// secure_delete has overwritten them.
func (k *Keys) scrub(ctx context.Context) error {
	// Keep the one writing connection until the end, or the next batch of keys
	// comes between the checkpoint and the look at the log.
	conn, err := k.write.Conn(ctx)
	if err != nil {
		return fmt.Errorf("seal: cut the write-ahead log: %w", err)
	}
	defer conn.Close()
	var busy, pages, moved int
	if err := conn.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &pages, &moved); err != nil {
		return fmt.Errorf("seal: cut the write-ahead log: %w", err)
	}
	if busy != 0 {
		return ErrBusy
	}
	switch wal, err := os.Stat(k.path + "-wal"); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("seal: cut the write-ahead log: %w", err)
	case wal.Size() != 0:
		return ErrBusy // another process has written since
	}
	return nil
}
