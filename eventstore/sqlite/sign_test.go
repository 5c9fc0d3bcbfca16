package sqlite_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"accountledger/eventstore"
	"accountledger/eventstore/sqlite"
)

// TestVerifyBeforeSign checks that the log refuses to sign a checkpoint if hashes
// in the file differ from those in memory, or have changed since the last
// checkpoint.
func TestVerifyBeforeSign(t *testing.T) {
	t.Parallel()
	const events = 600 // two full tiles and a partial one
	flip := func(table, column, where string) string {
		return fmt.Sprintf("DROP TRIGGER events_update; DROP TRIGGER tiles_update; UPDATE %s SET %s = zeroblob(length(%s)) WHERE %s", table, column, column, where)
	}
	for _, tt := range []struct {
		name, change string
		refused      bool
	}{
		{"nothing", "SELECT 1", false},
		{"a leaf that is not in a tile", flip("events", "leaf_hash", "position = 550"), true},
		{"the newest leaf", flip("events", "leaf_hash", "position = 620"), true},
		{"a tile above the leaves", flip("tiles", "data", "level = 1"), true},
		{"the last checkpoint", "UPDATE checkpoints SET note = CAST(replace(CAST(note AS TEXT), '=' || char(10) || char(10), 'A' || char(10) || char(10)) AS BLOB)", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := &fixture{dir: t.TempDir(), anchors: map[int64][]byte{}}
			f.signer, f.verifier = newSigner(t)
			fill := func(from, to int64) *sqlite.Store {
				t.Helper()
				s, err := sqlite.Open(t.Context(), sqlite.Config{Dir: f.dir, Signer: f.signer, Vouch: vouch, CheckpointInterval: time.Hour})
				if err != nil {
					t.Fatal(err)
				}
				for n := from; n < to; n++ {
					if _, err := s.Append(t.Context(), creation(n)); err != nil {
						t.Fatal(err)
					}
				}
				return s
			}
			if err := fill(0, events).Close(); err != nil { // signs
				t.Fatal(err)
			}
			s := fill(events, events+20)
			before := f.notes(t)
			if err := s.Exec(tt.change); err != nil {
				t.Fatal(err)
			}
			changed := f.notes(t)
			err := s.Close()
			if refused := errors.Is(err, eventstore.ErrTampered); refused != tt.refused || err != nil && !refused {
				t.Errorf("Close = %v, want ErrTampered: %t", err, tt.refused)
			}
			if after := f.notes(t); bytes.Equal(after, changed) != tt.refused {
				t.Errorf("a new checkpoint was signed: %t, want %t; checkpoints before:\n%s\nafter:\n%s", !bytes.Equal(after, changed), !tt.refused, before, after)
			}
		})
	}
}

// notes returns the stored checkpoints.
func (f *fixture) notes(t *testing.T) (all []byte) {
	t.Helper()
	db := f.db(t)
	defer db.Close()
	if err := db.QueryRow("SELECT CAST(group_concat(note, '') AS BLOB) FROM checkpoints").Scan(&all); err != nil {
		t.Fatal(err)
	}
	return all
}
