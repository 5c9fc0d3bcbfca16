package seal

import (
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"accountledger/eventstore"
)

// Context identifies the event whose personal part is sealed. It is
// authenticated (AAD): sealed bytes do not open with any other Context.
type Context struct {
	EventID  [16]byte
	Stream   string
	Revision eventstore.Revision
	Type     string
}

// aad encodes c as additional authenticated data. The length prefixes ensure
// that different contexts have different encodings.
func (c Context) aad() []byte {
	b := make([]byte, 0, len("AL1/aad")+len(c.EventID)+len(c.Stream)+len(c.Type)+16)
	b = append(b, "AL1/aad"...)
	b = append(b, c.EventID[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.Stream)))
	b = append(b, c.Stream...)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Revision))
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.Type)))
	return append(b, c.Type...)
}

// dataKey holds what is derived from an account's data key (DEK).
type dataKey struct {
	id  eventstore.KeyID // public
	enc []byte           // AES-256 key
}

// derive derives the key ID and the encryption key from a DEK with HKDF-SHA256
// (RFC 5869). The ID starts with the slot of the key's row. An ID of 32 bytes
// of commitment alone would need an index over random IDs, and maintaining it
// would be the most expensive part of creating a key. The slot is the row's
// integer primary key, so a new key is appended and a lookup is a point read.
// The remaining 192 bits of commitment are enough: finding two keys with the
// same ID takes 2^96 tries.
func derive(slot int64, dek []byte) (dataKey, error) {
	prk, err := hkdf.Extract(sha256.New, dek, nil)
	if err != nil {
		return dataKey{}, fmt.Errorf("seal: derive: %w", err)
	}
	kid, err := hkdf.Expand(sha256.New, prk, "al1/kid", sha256.Size)
	if err != nil {
		return dataKey{}, fmt.Errorf("seal: derive: %w", err)
	}
	enc, err := hkdf.Expand(sha256.New, prk, "al1/enc", 32)
	if err != nil {
		return dataKey{}, fmt.Errorf("seal: derive: %w", err)
	}
	key := dataKey{enc: enc}
	binary.BigEndian.PutUint64(key.id[:8], uint64(slot))
	copy(key.id[8:], kid)
	return key, nil
}

func randomKey() []byte {
	key := make([]byte, 32)
	rand.Read(key) // never fails, as documented
	return key
}

// Seal encrypts the personal part of the event c under the key id. The result
// is 28 bytes longer than plaintext. Seal fails with ErrErased and ErrKey as
// Open does.
func (k *Keys) Seal(id eventstore.KeyID, c Context, plaintext []byte) ([]byte, error) {
	aead, err := k.aead(id)
	if err != nil {
		return nil, err
	}
	// The nonce is random. A counter would restart after a backup is restored,
	// and reusing a nonce reveals plaintexts.
	return aead.Seal(nil, nil, plaintext, c.aad()), nil
}

// Open decrypts the result of Seal for the event c. It fails with ErrErased if
// the key was destroyed, with ErrKey if there is no key with this ID or its row
// does not hold the key that the ID commits to, and with ErrOpen if the bytes
// are damaged or belong to another event.
func (k *Keys) Open(id eventstore.KeyID, c Context, sealed []byte) ([]byte, error) {
	aead, err := k.aead(id)
	if err != nil {
		return nil, err
	}
	plaintext, err := aead.Open(nil, nil, sealed, c.aad())
	if err != nil {
		return nil, ErrOpen
	}
	return plaintext, nil
}

// aead returns the cipher of a key, from the cache or the file. The whole ID
// is the cache key, so an ID with the slot of a live key but another commitment
// never finds that key's cipher.
func (k *Keys) aead(id eventstore.KeyID) (cipher.AEAD, error) {
	if aead, ok := k.cache.GetIfPresent(id); ok {
		return aead, nil
	}
	k.fence.RLock()
	defer k.fence.RUnlock()
	slot, err := slotOf(id)
	if err != nil {
		return nil, err
	}
	key, err := k.key(slot)
	if err != nil {
		return nil, err
	}
	if key.id != id {
		return nil, fmt.Errorf("%w: slot %d holds another key", ErrKey, slot)
	}
	aead, err := newAEAD(key.enc)
	if err != nil {
		return nil, err
	}
	k.cache.Set(id, aead)
	return aead, nil
}

func slotOf(id eventstore.KeyID) (int64, error) {
	slot := id.Slot()
	if slot == 0 || slot > math.MaxInt64 {
		return 0, fmt.Errorf("%w: slot %d is out of range", ErrKey, slot)
	}
	return int64(slot), nil
}

// key returns the key in a slot, from a row that was read ahead if possible.
// The caller holds fence.
func (k *Keys) key(slot int64) (dataKey, error) {
	row, found, err := k.ahead.take(slot, k.readRows)
	switch {
	case err != nil:
		return dataKey{}, fmt.Errorf("seal: read keys: %w", err)
	case !found:
		return k.row(slot)
	}
	return k.open(row)
}

// row reads and unwraps the key in a slot.
func (k *Keys) row(slot int64) (dataKey, error) {
	row := wrappedKey{slot: slot}
	// A context that can be canceled would cost a goroutine per read.
	switch err := k.find.QueryRowContext(context.Background(), slot).Scan(&row.epoch, &row.wrapped); {
	case errors.Is(err, sql.ErrNoRows):
		return dataKey{}, fmt.Errorf("%w: slot %d is empty", ErrKey, slot)
	case err != nil:
		return dataKey{}, fmt.Errorf("seal: read key: %w", err)
	}
	return k.open(row)
}

// open unwraps the key in a row, or fails with ErrErased if it was destroyed.
func (k *Keys) open(row wrappedKey) (dataKey, error) {
	if len(row.wrapped) == 0 {
		return dataKey{}, ErrErased
	}
	return k.unwrapKey(row.slot, row.epoch, row.wrapped)
}

func (k *Keys) unwrapKey(slot int64, epoch uint32, wrapped []byte) (dataKey, error) {
	dek, err := k.wrap.unwrap(keyAAD(slot, epoch), wrapped)
	if err != nil {
		return dataKey{}, fmt.Errorf("%w: the row in slot %d is damaged or belongs to another slot or epoch", ErrKey, slot)
	}
	return derive(slot, dek)
}

// Destroy makes everything sealed under the key unreadable, in this log and in
// every copy of it. The key's row stays, empty, as a fence: Seal and Open with
// this ID fail with ErrErased from now on. When Destroy returns nil, SQLite has
// overwritten the wrapped key in the file, and Destroy has truncated the
// write-ahead log and checked that it is empty. Copies in backups and in disk
// blocks that the device has remapped remain; a new master key covers those.
//
// Destroy is idempotent; call it again after ErrBusy or a crash. It fails with
// ErrKey if the slot holds another key or none, as it may after an old keys.db
// was restored: the file then no longer contains the key.
func (k *Keys) Destroy(ctx context.Context, id eventstore.KeyID) error {
	if k.write == nil {
		return ErrReadOnly
	}
	slot, err := slotOf(id)
	if err != nil {
		return err
	}
	if err := k.emptyRow(ctx, slot, id); err != nil {
		return err
	}
	// A goroutine that read the row before it changed holds the lock until it
	// has cached the cipher. So wait for the lock, then remove the cipher.
	k.fence.Lock()
	k.ahead.clear()
	k.cache.Invalidate(id)
	k.fence.Unlock()
	return k.truncateWAL(ctx)
}

// emptyRow overwrites the row of the key id with an empty value.
func (k *Keys) emptyRow(ctx context.Context, slot int64, id eventstore.KeyID) error {
	tx, err := k.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("seal: destroy key: %w", err)
	}
	defer tx.Rollback()
	var epoch uint32
	var wrapped []byte
	switch err := tx.QueryRowContext(ctx, `SELECT epoch, wrapped FROM keys WHERE slot = ?`, slot).Scan(&epoch, &wrapped); {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("%w: slot %d is empty", ErrKey, slot)
	case err != nil:
		return fmt.Errorf("seal: destroy key: %w", err)
	case len(wrapped) == 0:
		return nil
	}
	// Empty a row that does not unwrap, too: the damage might be reversible.
	if key, err := k.unwrapKey(slot, epoch, wrapped); err == nil && key.id != id {
		return fmt.Errorf("%w: slot %d holds another key", ErrKey, slot)
	}
	for _, statement := range []string{`UPDATE keys SET wrapped = x'' WHERE slot = ?`, `UPDATE meta SET destroyed = destroyed + 1 WHERE ? > 0`} {
		result, err := tx.ExecContext(ctx, statement, slot)
		if err != nil {
			return fmt.Errorf("seal: destroy key: %w", err)
		}
		if n, err := result.RowsAffected(); err != nil || n != 1 {
			return errors.Join(fmt.Errorf("seal: destroy key: %w: a change of keys.db has no effect", eventstore.ErrTampered), err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("seal: destroy key: %w", err)
	}
	k.destroyed.Add(1)
	return nil
}
