package eventstoretest

import (
	"bytes"

	"accountledger/eventstore"
)

// erase checks that Erase removes the sealed parts under one key from the given
// streams and nothing else, that it is idempotent, and that its effect remains
// after reopening.
func erase(e *env) {
	dir := e.TempDir()
	s, close := e.open(dir)
	key, other := eventstore.KeyID{1}, eventstore.KeyID{2}
	seal := func(stream string, revision eventstore.Revision, key eventstore.KeyID) {
		c := write(stream, revision, 1)
		ev := &c.Writes[0].Events[0]
		ev.KeyID, ev.Sealed = key, []byte("ciphertext under "+string(rune('0'+key[0])))
		e.append(s, c)
	}
	seal("account-1", eventstore.NoStream, key)
	seal("account-1", 0, other)
	seal("account-1", 1, key)
	seal("account-2", eventstore.NoStream, key)
	seal("account-3", eventstore.NoStream, key)
	e.append(s, write("account-1", 2, 1))
	before := e.stream(s, "account-1", 0)
	check := func(s eventstore.Store) {
		e.Helper()
		after := e.stream(s, "account-1", 0)
		if len(after) != len(before) {
			e.Fatalf("%d events after erasing, %d before", len(after), len(before))
		}
		for i, rec := range after {
			gone := rec.KeyID == key
			want := before[i]
			if gone {
				want.Sealed = nil
			}
			if rec.Erased() != gone || rec.ID != want.ID || rec.KeyID != want.KeyID || !bytes.Equal(rec.Sealed, want.Sealed) || !bytes.Equal(rec.Clear, want.Clear) {
				e.Errorf("revision %d after erasing is %+v, want %+v", i, rec, want)
			}
		}
		if !e.stream(s, "account-2", 0)[0].Erased() || e.stream(s, "account-3", 0)[0].Erased() {
			e.Errorf("Erase did not erase account-2, or erased account-3, which was not given")
		}
	}
	for range 2 {
		if err := s.Erase(e.ctx(), key, "account-1", "account-2", "account-none"); err != nil {
			e.Fatalf("Erase = %v", err)
		}
		check(s)
	}
	// The log accepts further appends.
	seal("account-3", 0, key)
	for _, rec := range e.log(s, 0) {
		if gone := rec.KeyID == key && rec.Stream != "account-3"; rec.Erased() != gone {
			e.Errorf("Erased at position %d = %t, want %t", rec.Position, rec.Erased(), gone)
		}
	}
	close()
	s, _ = e.open(dir)
	check(s)
}
