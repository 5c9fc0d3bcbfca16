package seal

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"sync"

	"accountledger/eventstore"
)

// The names of the secrets that hold the HMAC keys for claims and for Vouch.
// Callers can neither read nor change them.
const (
	claimSecret = "al1/claim"
	headSecret  = "al1/head"
)

func own(name string) bool { return name == claimSecret || name == headSecret }

// heads computes HMACs under the head key. It keeps keyed hashes for reuse,
// because making one costs more than a short message.
type heads struct{ pool sync.Pool }

func newHeads(key []byte) *heads {
	return &heads{sync.Pool{New: func() any { return hmac.New(sha256.New, key) }}}
}

// Vouch returns HMAC-SHA256(head key, message) (RFC 2104). With it a store marks
// the state of the log that it wrote, so that nobody without the master key can
// pass off another state as the ledger's. The store begins messages of different
// meaning with different labels. Vouch panics in a reader of a file that has no
// head key yet; see CanVouch.
func (k *Keys) Vouch(message []byte) [32]byte { return k.head.vouch(message) }

func (h *heads) vouch(message []byte) (sum [32]byte) {
	mac := h.pool.Get().(hash.Hash)
	mac.Reset()
	mac.Write(message)
	mac.Sum(sum[:0])
	h.pool.Put(mac)
	return sum
}

// CanVouch reports whether the file has a head key: an older version of this
// program did not create one.
func (k *Keys) CanVouch() bool { return k.head != nil }

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
	replaced, err := k.change(ctx, name, func(tx *sql.Tx) error { return k.putSecret(ctx, tx, name, value) })
	if err != nil {
		return fmt.Errorf("seal: put secret %s: %w", name, err)
	}
	if !replaced {
		return nil
	}
	return k.truncateWAL(ctx)
}

// change deletes the secret name, runs put, if not nil, and counts the change. It
// reports whether there was a value to delete.
func (k *Keys) change(ctx context.Context, name string, put func(*sql.Tx) error) (deleted bool, err error) {
	tx, err := k.write.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	result, err := tx.ExecContext(ctx, `DELETE FROM secrets WHERE name = ?`, name)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	if err != nil || n == 0 && put == nil {
		return false, err
	}
	if put != nil {
		if err := put(tx); err != nil {
			return false, err
		}
	}
	if _, err := tx.ExecContext(ctx, `UPDATE meta SET changes = changes + 1`); err != nil {
		return false, err
	}
	if err := sealSecrets(ctx, tx, k.head); err != nil {
		return false, err
	}
	if err := tx.Commit(); err != nil {
		return false, err
	}
	k.changes.Add(1) // last, so that no sealed head names a change that is not durable
	return n > 0, nil
}

// querier is a connection or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// secretsMAC returns the MAC over the number of changes and all secrets, so that a
// row of an older copy cannot be put back.
func secretsMAC(ctx context.Context, q querier, h *heads) ([]byte, error) {
	rows, err := q.QueryContext(ctx, `SELECT name, epoch, wrapped, (SELECT changes FROM meta) FROM secrets ORDER BY name`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	m := []byte("AL1/secrets\x00")
	for rows.Next() {
		var name string
		var epoch, changes uint64
		var wrapped []byte
		if err := rows.Scan(&name, &epoch, &wrapped, &changes); err != nil {
			return nil, err
		}
		m = binary.BigEndian.AppendUint64(m, changes)
		m = append(binary.BigEndian.AppendUint32(m, uint32(len(name))), name...)
		m = binary.BigEndian.AppendUint64(m, epoch)
		m = append(binary.BigEndian.AppendUint32(m, uint32(len(wrapped))), wrapped...)
	}
	mac := h.vouch(m)
	return mac[:], rows.Err()
}

// sealSecrets writes the MAC of the secrets as the transaction leaves them.
func sealSecrets(ctx context.Context, tx *sql.Tx, h *heads) error {
	mac, err := secretsMAC(ctx, tx, h)
	if err == nil {
		_, err = tx.ExecContext(ctx, `UPDATE meta SET secrets = ?`, mac)
	}
	return err
}

// checkSecrets fails with eventstore.ErrTampered unless the secrets are those that
// this ledger stored last.
func (k *Keys) checkSecrets(ctx context.Context) error {
	tx, err := k.read.BeginTx(ctx, nil) // a server may change them meanwhile
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var stored []byte
	if err := tx.QueryRowContext(ctx, `SELECT secrets FROM meta`).Scan(&stored); err != nil {
		return err
	}
	mac, err := secretsMAC(ctx, tx, k.head)
	if err == nil && !bytes.Equal(mac, stored) {
		err = fmt.Errorf("%w: the secrets in keys.db are not those that were stored last", eventstore.ErrTampered)
	}
	return err
}

func (k *Keys) putSecret(ctx context.Context, tx *sql.Tx, name string, value []byte) error {
	wrapped := k.wrap.wrap(secretAAD(name, k.wrap.epoch), value)
	_, err := tx.ExecContext(ctx, `INSERT INTO secrets (name, epoch, wrapped) VALUES (?, ?, ?)`, name, k.wrap.epoch, wrapped)
	return err
}

// Secret returns the value stored under name, or ErrNoSecret.
func (k *Keys) Secret(ctx context.Context, name string) ([]byte, error) {
	if own(name) {
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
	if _, err := k.change(ctx, name, nil); err != nil {
		return fmt.Errorf("seal: delete secret %s: %w", name, err)
	}
	return k.truncateWAL(ctx)
}

func (k *Keys) checkWritable(name string) error {
	switch {
	case k.write == nil:
		return ErrReadOnly
	case name == "" || own(name):
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
