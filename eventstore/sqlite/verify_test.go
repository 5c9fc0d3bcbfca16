package sqlite_test

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"accountledger/eventstore"
	"accountledger/eventstore/sqlite"
	"accountledger/eventstore/tlog"
)

const erasure = "account.erased.v1"

// erasedKey reads the clear part as a key ID.
func erasedKey(_ string, clear []byte) (key eventstore.KeyID, ok bool) {
	return key, copy(key[:], clear) == len(key)
}

// fixture is a closed log of 700 events, which are two full tiles and a partial
// one, in twenty streams. Every second event is sealed, and there is a
// checkpoint after every hundred events.
type fixture struct {
	dir      string
	signer   note.Signer
	verifier note.Verifier
	anchors  map[int64][]byte // all checkpoints, by size
}

const (
	fixtureEvents = 700
	streams       = 20 // written round-robin: in its stream, event p+20 follows event p
)

func sealedEvent(typ string, seed int) eventstore.Event {
	e := eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: typ, Actor: "user:1", Clear: fmt.Appendf(nil, `{"n":%d}`, seed)}
	if seed%2 == 0 {
		e.KeyID, e.Sealed = sha256.Sum256(e.Clear), fmt.Appendf(nil, "sealed bytes of %d", seed)
	}
	return e
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{dir: t.TempDir(), anchors: map[int64][]byte{}}
	f.signer, f.verifier = newSigner(t)
	for n := 0; n < fixtureEvents; {
		clock := time.Date(2026, 1, 1, 0, n, 0, 0, time.UTC)
		// Close the log after every hundred events, which signs a checkpoint.
		s, err := sqlite.Open(t.Context(), sqlite.Config{
			Dir: f.dir, Signer: f.signer, Vouch: vouch, CheckpointInterval: time.Hour,
			Now: func() time.Time { clock = clock.Add(time.Millisecond); return clock },
		})
		if err != nil {
			t.Fatal(err)
		}
		for end := n + 100; n < end; {
			var c eventstore.Commit
			for range streams {
				c.Writes = append(c.Writes, eventstore.Write{
					Stream: fmt.Sprintf("account-%d", n%streams), Expected: eventstore.Revision(n/streams) - 1,
					Events: []eventstore.Event{sealedEvent("account.changed.v1", n)},
				})
				n++
			}
			if _, err := s.Append(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	f.query(t, "SELECT size, note FROM checkpoints", func(rows *sql.Rows) error {
		var size int64
		var msg []byte
		err := rows.Scan(&size, &msg)
		f.anchors[size] = msg
		return err
	})
	return f
}

// copy returns a fixture with a copy of the file.
func (f *fixture) copy(t *testing.T) *fixture {
	t.Helper()
	c := *f
	c.dir = t.TempDir()
	b, err := os.ReadFile(filepath.Join(f.dir, "log.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "log.db"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return &c
}

func (f *fixture) db(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(f.dir, "log.db"))
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	return db
}

func (f *fixture) query(t *testing.T, query string, scan func(*sql.Rows) error) {
	t.Helper()
	db := f.db(t)
	defer db.Close()
	rows, err := db.Query(query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			t.Fatal(err)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}

// tamper runs SQL on the file as an attacker with write access would: it drops
// the triggers first.
func (f *fixture) tamper(t *testing.T, statements ...string) {
	t.Helper()
	db := f.db(t)
	defer db.Close()
	var triggers []string
	f.query(t, "SELECT name FROM sqlite_schema WHERE type = 'trigger'", func(rows *sql.Rows) error {
		var name string
		err := rows.Scan(&name)
		triggers = append(triggers, "DROP TRIGGER "+name)
		return err
	})
	for _, s := range slices.Concat(triggers, statements) {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func (f *fixture) verify(t *testing.T, anchors ...[]byte) sqlite.Report {
	t.Helper()
	r, err := sqlite.OpenReader(t.Context(), f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	report, err := r.Verify(t.Context(), sqlite.Trust{Verifiers: []note.Verifier{f.verifier}, Erasures: []string{erasure}, ErasedKey: erasedKey, Anchors: anchors}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func names(faults []sqlite.Fault) []string {
	var s []string
	for _, f := range faults {
		s = append(s, f.String())
	}
	return s
}

func TestVerifySound(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	anchors := [][]byte{f.anchors[200], f.anchors[700], f.anchors[100]}
	var steps []int64
	r, err := sqlite.OpenReader(t.Context(), f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	report, err := r.Verify(t.Context(), sqlite.Trust{Verifiers: []note.Verifier{f.verifier}, Erasures: []string{erasure}, ErasedKey: erasedKey, Anchors: anchors}, func(done, total int64) {
		if total != fixtureEvents {
			t.Errorf("progress got a total of %d, want %d", total, fixtureEvents)
		}
		steps = append(steps, done)
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sqlite.Report{Events: 700, Checkpoints: 7 + 3, Covered: 700, Root: report.Root}, report); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]int64{0, 256, 512, 700}, steps); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	if problems, err := r.Check(t.Context()); err != nil || len(problems) > 0 {
		t.Errorf("Check = %q, %v, want no findings", problems, err)
	}
}

// TestVerifyNamesAlteredRow checks that Verify reports an event with any altered
// column. Event 123 is in a full tile, event 671 is not.
func TestVerifyNamesAlteredRow(t *testing.T) {
	t.Parallel()
	base := newFixture(t)
	for _, p := range []int{123, 671} {
		for column, value := range map[string]string{
			"id":          "randomblob(16)",
			"stream":      "1000",
			"revision":    "revision + 1000",
			"prev":        "zeroblob(32)",
			"time":        "time + 1",
			"type":        "type || 'x'",
			"actor":       "'user:2'",
			"clear":       "CAST('{}' AS BLOB)",
			"kid":         "randomblob(32)",
			"sealed_hash": "randomblob(32)",
			"leaf_hash":   "randomblob(32)",
		} {
			t.Run(fmt.Sprintf("%s@%d", column, p), func(t *testing.T) {
				t.Parallel()
				f := base.copy(t)
				f.tamper(t, "INSERT INTO streams VALUES (1000, 'account-x')",
					fmt.Sprintf("UPDATE events SET %s = %s WHERE position = %d", column, value, p))
				got := names(f.verify(t).Faults)
				if len(got) == 0 || got[0] != fmt.Sprintf("altered@%d", p) {
					t.Fatalf("faults %q, want altered@%d first", got, p)
				}
				// The chain check may also report this event and the next
				// one of its stream, but no other event.
				for _, fault := range got[1:] {
					if fault != fmt.Sprintf("chain@%d", p) && fault != fmt.Sprintf("chain@%d", p+streams) && column != "leaf_hash" {
						t.Errorf("Verify also reports %s", fault)
					}
				}
			})
		}
	}
}

func TestVerifyNames(t *testing.T) {
	t.Parallel()
	base := newFixture(t)
	// An attacker who recomputes hashes: the row, its leaf hash and, up to the
	// given level, the tiles above it.
	rewrite := func(p int64, tiles int) func(*testing.T, *fixture) {
		return func(t *testing.T, f *fixture) { f.rewrite(t, p, tiles) }
	}
	sql := func(statements ...string) func(*testing.T, *fixture) {
		return func(t *testing.T, f *fixture) { f.tamper(t, statements...) }
	}
	var lost []string
	for p := 651; p <= 700; p++ {
		lost = append(lost, fmt.Sprintf("missing@%d", p))
	}
	for _, tt := range []struct {
		name    string
		tamper  func(*testing.T, *fixture)
		want    []string
		anchors []int64
	}{
		{"sealed part altered", sql("UPDATE sealed SET bytes = CAST('sealed bytes of 123' AS BLOB) WHERE position = 123"), []string{"sealed-altered@123"}, nil},
		{"sealed part added to an event without one", sql("INSERT INTO sealed VALUES (124, x'00')"), []string{"sealed-altered@124"}, nil},
		{"events swapped", sql(
			"UPDATE events SET position = -1 WHERE position = 123", "UPDATE sealed SET position = -1 WHERE position = 123",
			"UPDATE events SET position = 123 WHERE position = 133", "UPDATE sealed SET position = 123 WHERE position = 133",
			"UPDATE events SET position = 133 WHERE position = -1", "UPDATE sealed SET position = 133 WHERE position = -1"),
			[]string{"altered@123", "altered@133"}, nil},
		{"event in a tile deleted", sql("DELETE FROM events WHERE position = 123"), []string{"chain@143", "missing@123"}, nil},
		{"event after the last tile deleted", sql("DELETE FROM events WHERE position = 671"), []string{"chain@691", "missing@671"}, nil},
		{"tile deleted with its events", sql("DELETE FROM events WHERE position BETWEEN 257 AND 512", "DELETE FROM tiles WHERE level = 0 AND n = 1"), nil, nil},
		{"last events deleted", sql("DELETE FROM events WHERE position > 650"), lost, nil},
		{"last events deleted with their checkpoints", sql("DELETE FROM events WHERE position > 650", "DELETE FROM checkpoints WHERE size > 650"), []string{}, nil},
		{"last events deleted with their checkpoints, anchor given", sql("DELETE FROM events WHERE position > 650", "DELETE FROM checkpoints WHERE size > 650"), []string{"truncated@650"}, []int64{700}},
		{"event in a tile and leaf hash rewritten", rewrite(123, 0), []string{"chain@123", "altered@123"}, nil},
		{"event after the last tile and leaf hash rewritten", rewrite(671, 0), []string{"chain@671", "root@700"}, nil},
		{"event rewritten with its tile", rewrite(123, 1), []string{"chain@123", "root@200", "tile-altered@1"}, nil},
		{"event rewritten with all tiles", rewrite(123, 2), []string{"chain@123", "root@200"}, nil},
		{"event rewritten with all tiles and a stolen key", rewrite(123, 3), []string{"chain@123"}, nil},
		{"event rewritten with all tiles and a stolen key, anchors given", rewrite(700, 3), []string{"root@700"}, []int64{100, 600, 700}},
		{"sealed part deleted", sql("DELETE FROM sealed WHERE position = 123"), []string{"unexplained-erasure@123"}, nil},
		{"tile of level 0 altered", sql("UPDATE tiles SET data = randomblob(8192) WHERE level = 0 AND n = 1"), []string{"tile-altered@257"}, nil},
		{"tile of level 0 deleted", sql("DELETE FROM tiles WHERE level = 0 AND n = 1"), []string{"tile-altered@257"}, nil},
		{"tile of level 0 truncated", sql("UPDATE tiles SET data = substr(data, 1, 8191) WHERE level = 0 AND n = 1"), []string{"tile-altered@257"}, nil},
		{"tile of level 1 altered", sql("UPDATE tiles SET data = CAST(substr(data, 1, 32) || randomblob(32) AS BLOB) WHERE level = 1"), []string{"tile-altered@257"}, nil},
		{"tile of level 1 deleted", sql("DELETE FROM tiles WHERE level = 1"), []string{"tile-altered@1"}, nil},
		{"checkpoint altered", sql("UPDATE checkpoints SET note = CAST(substr(note, 1, length(note) - 12) || 'AAAAAAAAAA' || substr(note, -2) AS BLOB) WHERE size = 300"), []string{"checkpoint-altered@300"}, nil},
		{"size of a checkpoint altered", sql("UPDATE checkpoints SET size = 310 WHERE size = 300"), []string{"checkpoint-altered@310"}, nil},
		{"time of a checkpoint altered", sql("UPDATE checkpoints SET time = time + 1 WHERE size = 300"), []string{"checkpoint-altered@300"}, nil},
		{"event at position 0", sql("UPDATE events SET position = 0 WHERE position = 1"), nil, nil},
		{"event at the largest integer", sql("UPDATE events SET position = 9223372036854775807 WHERE position = 700"), []string{"altered@9223372036854775807", "missing@700"}, nil},
		{"event far after the end", sql("UPDATE events SET position = 1099511627776 WHERE position = 700"), nil, nil},
		{"stream renamed", sql("UPDATE streams SET name = 'account-x' WHERE name = 'account-5'"), nil, nil},
		{"stream deleted", sql("DELETE FROM streams WHERE name = 'account-5'"), nil, nil},
		{"everything deleted", sql("DELETE FROM events", "DELETE FROM tiles"), nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := base.copy(t)
			tt.tamper(t, f)
			var anchors [][]byte
			for _, size := range tt.anchors {
				anchors = append(anchors, f.anchors[size])
			}
			report := f.verify(t, anchors...)
			got := names(report.Faults)
			if tt.want == nil {
				if report.OK() {
					t.Error("Verify found no fault")
				}
				t.Logf("Verify listed %d faults and counted %d more; the first: %q", len(got), report.Unlisted, got[:min(3, len(got))])
				return
			}
			slices.Sort(got)
			slices.Sort(tt.want)
			if diff := cmp.Diff(tt.want, append([]string{}, got...)); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

// rewrite replaces the clear part of an event and the hashes that depend on it:
// its leaf hash; with tiles >= 1, also its level-0 tile; with 2, also the level-1
// tile; with 3, also the checkpoints, signed with the stolen key.
func (f *fixture) rewrite(t *testing.T, p int64, tiles int) {
	t.Helper()
	var leaves []tlog.Hash
	f.query(t, `SELECT e.position, e.id, s.name, e.revision, e.time, e.type, e.actor, e.clear, e.prev, e.kid, e.sealed_hash, e.leaf_hash
		FROM events e JOIN streams s ON s.num = e.stream ORDER BY e.position`, func(rows *sql.Rows) error {
		var l tlog.Leaf
		var position int64
		var id, prev, kid, sealed, stored []byte
		err := rows.Scan(&position, &id, &l.Stream, &l.Revision, &l.Time, &l.Type, &l.Actor, &l.Clear, &prev, &kid, &sealed, &stored)
		copy(l.ID[:], id)
		copy(l.Prev[:], prev)
		copy(l.KeyID[:], kid)
		copy(l.SealedHash[:], sealed)
		if position == p {
			l.Clear = []byte("rewritten")
		}
		hash, e := l.Hash()
		if position != p && hash != tlog.Hash(stored) {
			t.Fatalf("event %d does not match its leaf hash", position)
		}
		leaves = append(leaves, hash)
		return errors.Join(err, e)
	})
	statements := []string{fmt.Sprintf("UPDATE events SET clear = CAST('rewritten' AS BLOB), leaf_hash = x'%x' WHERE position = %d", leaves[p-1][:], p)}
	var tree tlog.Tree
	for i, leaf := range leaves {
		for _, tile := range tree.Push(leaf) {
			if tile.Level < tiles {
				statements = append(statements, fmt.Sprintf("UPDATE tiles SET data = x'%x' WHERE level = %d AND n = %d", tile.Data, tile.Level, tile.N))
			}
		}
		size := int64(i + 1)
		if _, signed := f.anchors[size]; signed && tiles >= 3 {
			msg, err := tlog.Checkpoint{Origin: f.signer.Name(), Size: size, Root: tree.Root()}.Sign(f.signer)
			if err != nil {
				t.Fatal(err)
			}
			statements = append(statements, fmt.Sprintf("UPDATE checkpoints SET note = x'%x' WHERE size = %d", msg, size))
		}
	}
	f.tamper(t, statements...)
}

// TestVerifyUncoveredAndErased checks that Verify warns of events that no
// checkpoint covers, and that an erasure event explains missing sealed parts of
// earlier events but not of later ones.
func TestVerifyUncoveredAndErased(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.tamper(t, "DELETE FROM checkpoints WHERE size > 300")
	report := f.verify(t)
	if diff := cmp.Diff([]string{"uncovered@301"}, names(report.Warnings)); diff != "" || !report.OK() {
		t.Errorf("faults %q, warnings (-want +got):\n%s", names(report.Faults), diff)
	}

	s := open(t, sqlite.Config{Dir: f.dir, Signer: f.signer, Vouch: vouch})
	write := func(typ string, seed int) eventstore.Position {
		r, err := s.Append(t.Context(), eventstore.Commit{Writes: []eventstore.Write{{
			Stream: "account-erased", Expected: map[bool]eventstore.Revision{true: eventstore.NoStream, false: eventstore.Revision(seed - 1)}[seed == 0],
			Events: []eventstore.Event{sealedEvent(typ, seed)},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		return r.Last
	}
	write("account.changed.v1", 0)
	key := sealedEvent("", 0).KeyID
	if _, err := s.Append(t.Context(), eventstore.Commit{Writes: []eventstore.Write{{
		Stream: "account-of-the-key", Expected: eventstore.NoStream,
		Events: []eventstore.Event{{ID: [16]byte{77}, Type: erasure, Clear: key[:]}},
	}}}); err != nil {
		t.Fatal(err)
	}
	write("account.changed.v1", 1)
	after := write("account.changed.v1", 2)
	f.tamperLive(t, "DELETE FROM sealed WHERE position = 701")
	if got := names(f.verify(t).Faults); len(got) > 0 {
		t.Errorf("after an erasure, Verify reports %q, want no faults", got)
	}
	f.tamperLive(t, fmt.Sprintf("DELETE FROM sealed WHERE position = %d", after))
	if diff := cmp.Diff([]string{fmt.Sprintf("unexplained-erasure@%d", after)}, names(f.verify(t).Faults)); diff != "" {
		t.Error(diff)
	}
}

func (f *fixture) tamperLive(t *testing.T, statement string) {
	t.Helper()
	db := f.db(t)
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r, err := sqlite.OpenReader(t.Context(), f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Verify(t.Context(), sqlite.Trust{}, nil); err == nil {
		t.Error("Verify without a verifier succeeded")
	}
	if _, err := r.Verify(t.Context(), sqlite.Trust{Verifiers: []note.Verifier{f.verifier}, Anchors: [][]byte{[]byte("x")}}, nil); err == nil {
		t.Error("Verify with an invalid anchor succeeded")
	}
	// With another ledger's key, no checkpoint is valid.
	_, other := newSigner(t)
	report, err := r.Verify(t.Context(), sqlite.Trust{Verifiers: []note.Verifier{other}, Erasures: []string{erasure}, ErasedKey: erasedKey}, nil)
	if err != nil || len(report.Faults) != 7 || report.Checkpoints != 0 || report.Covered != 0 {
		t.Errorf("Verify with another key = %+v, %v, want 7 faults and no checkpoints", report, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = r.Verify(ctx, sqlite.Trust{Verifiers: []note.Verifier{f.verifier}}, func(int64, int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("canceled Verify = %v, want context.Canceled", err)
	}
}
