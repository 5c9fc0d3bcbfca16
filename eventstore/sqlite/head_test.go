package sqlite_test

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"accountledger/eventstore"
	"accountledger/eventstore/sqlite"
)

// TestOpenCompares changes a closed log in ways that leave every event as it was,
// or beyond what the tree covers. Open, or Prove soon after it, must notice.
func TestOpenCompares(t *testing.T) {
	t.Parallel()
	const onlyIndexed = `DROP INDEX events_stream;
		CREATE UNIQUE INDEX events_stream ON events (stream, revision) WHERE position NOT IN (%s);
		PRAGMA writable_schema = ON;
		UPDATE sqlite_schema SET sql = 'CREATE UNIQUE INDEX events_stream ON events (stream, revision)' WHERE name = 'events_stream';
		PRAGMA writable_schema = OFF`
	for _, tt := range []struct {
		name, change string
		says         string
	}{
		{"nothing", `SELECT 1`, ""},
		{"a foreign trigger", `CREATE TRIGGER z BEFORE INSERT ON claims BEGIN SELECT RAISE(IGNORE); END`, "trigger"},
		{"a foreign view", `CREATE VIEW z AS SELECT * FROM events`, "trigger"},
		{"a trigger of ours is changed", `DROP TRIGGER sealed_update; CREATE TRIGGER sealed_update BEFORE UPDATE ON sealed BEGIN SELECT 1; END`, "trigger"},
		{"a missing index", `DROP INDEX events_stream`, "lacks the index events_stream"},
		{"an index without the last event of a watched stream", fmt.Sprintf(onlyIndexed, "20"), "hidden"},
		{"an index without an event of another stream", fmt.Sprintf(onlyIndexed, "10"), "the index of the streams has 19 of 20 events"},
		{"an event before the first", `INSERT INTO events SELECT -1, stream, revision + 1, time, id, type, actor, clear, prev, kid, sealed_hash, zeroblob(32) FROM events WHERE position = 10`, "first event"},
		{"an event after the last", `INSERT INTO events SELECT 21, stream, revision + 1, time, id, type, actor, clear, leaf_hash, kid, sealed_hash, zeroblob(32) FROM events WHERE position = 20`, "added after 20"},
		{"a claim that waits instead of being held", `INSERT INTO waiting SELECT kind, key, 1, stream FROM claims; DELETE FROM claims`, "claims"},
		{"claims by other rules", `UPDATE meta SET claims_version = claims_version + 1`, "sealed head"},
		{"a highest slot", `UPDATE head SET slot = slot + 1`, "sealed head"},
		{"no sealed head", `DELETE FROM head`, "sealed head"},
		{"the stream of a watched event", `DROP TRIGGER streams_update; UPDATE streams SET name = 'x' WHERE name = 'keys'`, "event 20 was changed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			signer, _ := newSigner(t)
			config := sqlite.Config{Dir: t.TempDir(), Signer: signer, Vouch: vouch, Watch: []string{"keys"}}
			s := open(t, config)
			c := commit("a", eventstore.NoStream, 10)
			c.Claim = []eventstore.Claim{{Kind: "email", Key: "k", Owner: "a"}}
			for _, c := range []eventstore.Commit{c, commit("keys", eventstore.NoStream, 10)} {
				if _, err := s.Append(t.Context(), c); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			db, err := sql.Open("sqlite3", filepath.Join(config.Dir, "log.db"))
			if err != nil {
				t.Fatal(err)
			}
			db.SetMaxOpenConns(1)
			_, err = db.Exec(tt.change)
			if err := errors.Join(err, db.Close()); err != nil {
				t.Fatal(err)
			}
			s, err = sqlite.Open(t.Context(), config)
			if err == nil {
				head, _ := s.Head(t.Context())
				err = errors.Join(s.Prove(t.Context(), head, nil), s.CheckClaims(t.Context()))
				s.Close()
			}
			if (err == nil) != (tt.says == "") || err != nil && (!errors.Is(err, eventstore.ErrTampered) || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("Open and Prove = %v, want ErrTampered and %q", err, tt.says)
			}
		})
	}
}

// TestOpenFits checks what Open compares with files beside the log.
func TestOpenFits(t *testing.T) {
	t.Parallel()
	signer, _ := newSigner(t)
	state := eventstore.KeyState{Slot: 1 << 62, Changes: 3}
	config := sqlite.Config{Dir: t.TempDir(), Signer: signer, Vouch: vouch, Keys: func() eventstore.KeyState { return state }}
	s := open(t, config)
	if _, err := s.Append(t.Context(), commit("a", eventstore.NoStream, 10)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := sqlite.OpenReader(t.Context(), config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	note, err := r.Checkpoint(t.Context(), 10)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	refused := func(c sqlite.Config, want any) {
		t.Helper()
		s, err := sqlite.Open(t.Context(), c)
		if err == nil {
			s.Close()
		}
		if err == nil || !errors.As(err, want) {
			t.Errorf("Open = %v, want a %T", err, want)
		}
	}
	state.Changes = 2
	refused(config, new(*sqlite.KeysBehind))
	state.Changes = 4
	other := config
	other.Dir = t.TempDir()
	other.LastSigned = note
	refused(other, new(*sqlite.RolledBack)) // a new log in its place
	other.LastSigned = nil
	s = open(t, other)
	if _, err := s.Append(t.Context(), commit("a", eventstore.NoStream, 11)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	other.LastSigned = note
	var beside *sqlite.RolledBack
	refused(other, &beside)
	if beside == nil || !beside.Beside {
		t.Errorf("another log is refused as %+v, want one beside what was signed", beside)
	}
	config.LastSigned = note
	open(t, config).Close()
}

// TestMissingWAL copies a log that is open without its -wal file.
func TestMissingWAL(t *testing.T) {
	t.Parallel()
	signer, _ := newSigner(t)
	config := sqlite.Config{Dir: t.TempDir(), Signer: signer, Vouch: vouch}
	s := open(t, config)
	if _, err := s.Append(t.Context(), commit("a", eventstore.NoStream, 10)); err != nil {
		t.Fatal(err)
	}
	copied := config
	copied.Dir = t.TempDir()
	copyFile(t, filepath.Join(config.Dir, "log.db"), filepath.Join(copied.Dir, "log.db"))
	if _, err := sqlite.Open(t.Context(), copied); !errors.Is(err, sqlite.ErrNoWAL) {
		t.Errorf("Open = %v, want ErrNoWAL", err)
	}
	if _, err := sqlite.OpenReader(t.Context(), copied.Dir); !errors.Is(err, sqlite.ErrNoWAL) {
		t.Errorf("OpenReader = %v, want ErrNoWAL", err)
	}
	whole := config
	whole.Dir = t.TempDir()
	for _, name := range []string{"log.db", "log.db-wal"} {
		copyFile(t, filepath.Join(config.Dir, name), filepath.Join(whole.Dir, name))
	}
	s.Close()
	w := open(t, whole)
	if head, err := w.Head(t.Context()); head != 10 || err != nil {
		t.Errorf("with its -wal, the copy has %d events, %v", head, err)
	}
	copied.AcceptMissingWAL = true
	open(t, copied).Close()
}

// TestPublishFails makes it impossible to keep checkpoints elsewhere. The log must
// say so, sign nothing meanwhile, close, and sign later.
func TestPublishFails(t *testing.T) {
	t.Parallel()
	signer, _ := newSigner(t)
	trouble := make(chan error, 100)
	config := sqlite.Config{Dir: t.TempDir(), Signer: signer, Vouch: vouch, CheckpointInterval: 10 * time.Millisecond, Trouble: func(err error) { trouble <- err }}
	var fail atomic.Bool
	fail.Store(true)
	config.Publish = func([]byte) error {
		if fail.Load() {
			return errors.New("the medium is not there")
		}
		return nil
	}
	s := open(t, config)
	if _, err := s.Append(t.Context(), commit("a", eventstore.NoStream, 10)); err != nil {
		t.Fatal(err)
	}
	if err := <-trouble; !strings.Contains(err.Error(), "the medium is not there") {
		t.Errorf("Trouble got %v", err)
	}
	if err := s.Close(); err == nil {
		t.Error("Close succeeds, but nothing was signed")
	}
	fail.Store(false)
	s = open(t, config)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := sqlite.OpenReader(t.Context(), config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if note, err := r.Checkpoint(t.Context(), 10); note == nil || err != nil {
		t.Errorf("the log was not signed later: %v", err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
