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

// Context is the event whose personal part is sealed. Sealed bytes open in
// this place only: not in another event, stream, revision or type.
type Context struct {
	EventID  [16]byte
	Stream   string
	Revision eventstore.Revision
	Type     string
}

// aad is the place in bytes. The lengths before the strings keep two different
// places from having the same bytes.
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

// dataKey is what is derived from an account's data key: its public name and
// the key that encrypts.
type dataKey struct {
	id  eventstore.KeyID
	enc []byte
}

// derive makes the KeyID begin with the slot of the key's row. 32 bytes of
// commitment, the obvious choice, would need an index over random ids, whose
// upkeep is the most expensive part of making a key; the slot is the row's
// integer key, so keys are found by an ordered point read and made by
// appending. The 192 bits of commitment left are beyond any search for two
// keys of one id: that is 2^96 tries.
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
	rand.Read(key) // never fails, see its documentation
	return key
}

// Seal encrypts the personal part of the event c under the key id. It is 28
// bytes longer than plaintext. ErrErased and ErrKey as for Open.
func (k *Keys) Seal(id eventstore.KeyID, c Context, plaintext []byte) ([]byte, error) {
	aead, err := k.aead(id)
	if err != nil {
		return nil, err
	}
	// The nonce is random, not counted: a counter would start over after a
	// backup is restored, and a nonce used twice gives the plaintexts away.
	return aead.Seal(nil, nil, plaintext, c.aad()), nil
}

// Open decrypts what Seal made for c. It refuses with ErrErased when the key
// was destroyed, with ErrKey when there is no key of this id or its row does
// not hold the key the id commits to, and with ErrOpen when the bytes are
// damaged or another event's.
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

// aead is the cipher of a key, from memory or the file. The cache goes by the
// whole id: an id with a live key's slot and another commitment never meets
// that key's cipher.
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
		return nil, fmt.Errorf("%w: slot %d holds another", ErrKey, slot)
	}
	aead, err := newAEAD(key.enc)
	if err != nil {
		return nil, err
	}
	k.cache.Set(id, aead)
	return aead, nil
}

func slotOf(id eventstore.KeyID) (int64, error) {
	slot := binary.BigEndian.Uint64(id[:8])
	if slot == 0 || slot > math.MaxInt64 {
		return 0, fmt.Errorf("%w: slot %d", ErrKey, slot)
	}
	return int64(slot), nil
}

// key is the key in a slot, whose row may have been read in advance. The fence
// is held.
func (k *Keys) key(slot int64) (dataKey, error) {
	row, found, err := k.ahead.take(slot, k.readRows)
	switch {
	case err != nil:
		return dataKey{}, fmt.Errorf("seal: find keys: %w", err)
	case !found:
		return k.row(slot)
	}
	return k.open(row)
}

// row reads and unwraps the key in a slot.
func (k *Keys) row(slot int64) (dataKey, error) {
	row := wrappedKey{slot: slot}
	// Without a context that can end: it would cost a goroutine a read.
	switch err := k.find.QueryRowContext(context.Background(), slot).Scan(&row.epoch, &row.wrapped); {
	case errors.Is(err, sql.ErrNoRows):
		return dataKey{}, fmt.Errorf("%w: slot %d is empty", ErrKey, slot)
	case err != nil:
		return dataKey{}, fmt.Errorf("seal: find key: %w", err)
	}
	return k.open(row)
}

// open unwraps the key of a row, unless it was destroyed.
func (k *Keys) open(row wrappedKey) (dataKey, error) {
	if len(row.wrapped) == 0 {
		return dataKey{}, ErrErased
	}
	return k.unwrapKey(row.slot, row.epoch, row.wrapped)
}

func (k *Keys) unwrapKey(slot int64, epoch uint32, wrapped []byte) (dataKey, error) {
	dek, err := k.wrap.unwrap(keyPlace(slot, epoch), wrapped)
	if err != nil {
		return dataKey{}, fmt.Errorf("%w: the row of slot %d is damaged or of another slot or epoch", ErrKey, slot)
	}
	return derive(slot, dek)
}

// Destroy makes everything sealed under the key unreadable, in this log and
// every copy of it. The key's row stays as a fence: sealing and opening under
// it fail with ErrErased from now on. When Destroy returns nil, the wrapped
// key is in neither the file nor its write-ahead log: its bytes are
// overwritten, the log is cut to nothing, and both were checked. It says
// nothing about backups, nor about blocks the disk itself has remapped; for
// those there is a new master key.
//
// Destroying again is fine, and how to go on after ErrBusy or a crash. ErrKey
// if the slot holds another key or none, as after an old keys.db was restored:
// this key is in it no more.
func (k *Keys) Destroy(ctx context.Context, id eventstore.KeyID) error {
	if k.write == nil {
		return ErrReadOnly
	}
	slot, err := slotOf(id)
	if err != nil {
		return err
	}
	if err := k.fenceOff(ctx, slot, id); err != nil {
		return err
	}
	// Whoever read the row before it changed holds the lock until the cipher
	// is in the cache. So wait for the lock, then drop it.
	k.fence.Lock()
	k.ahead.forget()
	k.cache.Invalidate(id)
	k.fence.Unlock()
	return k.scrub(ctx)
}

// fenceOff empties the row of the key id.
func (k *Keys) fenceOff(ctx context.Context, slot int64, id eventstore.KeyID) error {
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
	// A row that does not unwrap is destroyed too: damage can be undone.
	if key, err := k.unwrapKey(slot, epoch, wrapped); err == nil && key.id != id {
		return fmt.Errorf("%w: slot %d holds another", ErrKey, slot)
	}
	if _, err := tx.ExecContext(ctx, `UPDATE keys SET wrapped = x'' WHERE slot = ?`, slot); err != nil {
		return fmt.Errorf("seal: destroy key: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("seal: destroy key: %w", err)
	}
	return nil
}
