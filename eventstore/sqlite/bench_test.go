package sqlite_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"

	"accountledger/eventstore"
	"accountledger/eventstore/sqlite"
	"accountledger/eventstore/tlog"
)

// creation returns a commit like that of a new account: an event with 200 clear
// and 300 sealed bytes, and a claim.
func creation(n int64) eventstore.Commit {
	// Stream names and claim keys are random, as in the domain, so that they
	// are inserted at random places of their indexes.
	name := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n)))
	key := sha256.Sum256(name[:])
	stream := fmt.Sprintf("account-%x", name[:16])
	return eventstore.Commit{
		Writes: []eventstore.Write{{Stream: stream, Expected: eventstore.NoStream, Events: []eventstore.Event{{
			ID: uuid.Must(uuid.NewV7()), Type: "account.created.v1", Actor: "user:0198c7f2", Clear: make([]byte, 200),
			KeyID: name, Sealed: make([]byte, 300),
		}}}},
		Claim: []eventstore.Claim{{Kind: "email", Key: string(key[:]), Owner: stream}},
	}
}

// vouch is a MAC under the key of these tests.
func vouch(message []byte) (mac [32]byte) {
	h := hmac.New(sha256.New, []byte("the key of these tests"))
	h.Write(message)
	h.Sum(mac[:0])
	return mac
}

func open(tb testing.TB, c sqlite.Config) *sqlite.Store {
	tb.Helper()
	s, err := sqlite.Open(tb.Context(), c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func newSigner(tb testing.TB) (note.Signer, note.Verifier) {
	tb.Helper()
	signer, verifier, err := key()
	if err != nil {
		tb.Fatal(err)
	}
	return signer, verifier
}

// key generates a key with the origin that all tests use.
func key() (note.Signer, note.Verifier, error) {
	skey, vkey, err := tlog.GenerateKey("accountledger/test")
	if err != nil {
		return nil, nil, err
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		return nil, nil, err
	}
	verifier, err := note.NewVerifier(vkey)
	return signer, verifier, err
}

func BenchmarkAppend(b *testing.B) {
	for _, clients := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("%dclients", clients), func(b *testing.B) {
			signer, _ := newSigner(b)
			s := open(b, sqlite.Config{Dir: b.TempDir(), Signer: signer, Vouch: vouch})
			var transactions int
			s.OnCommit(func() bool { transactions++; return false })
			commits := make([]eventstore.Commit, b.N)
			for i := range commits {
				commits[i] = creation(int64(i))
			}
			b.ReportAllocs()
			b.ResetTimer()
			var next atomic.Int64
			var group sync.WaitGroup
			begin := time.Now()
			for range clients {
				group.Go(func() {
					for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
						if _, err := s.Append(context.Background(), commits[i]); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			group.Wait()
			b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "commits/s")
			b.ReportMetric(float64(b.N)/float64(transactions), "commits/tx")
		})
	}
}

// BenchmarkLimit measures the machine's limit, for comparison with
// BenchmarkAppend: it only makes rows of the same size durable for 64 clients,
// many per transaction.
func BenchmarkLimit(b *testing.B) {
	db, err := sql.Open("sqlite3", "file:"+b.TempDir()+"/limit.db?_journal_mode=WAL&_synchronous=FULL&_txlock=immediate&_cache_size=-16384")
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("CREATE TABLE t (position INTEGER PRIMARY KEY, bytes BLOB) STRICT"); err != nil {
		b.Fatal(err)
	}
	queue := make(chan chan error, 64)
	go func() {
		bytes, position := make([]byte, 500), 0
		for first := range queue {
			waiting := []chan error{first}
			for len(queue) > 0 {
				waiting = append(waiting, <-queue)
			}
			err := func() error {
				tx, err := db.Begin()
				if err != nil {
					return err
				}
				defer tx.Rollback()
				insert, err := tx.Prepare("INSERT INTO t VALUES (?, ?)")
				if err != nil {
					return err
				}
				for range waiting {
					position++
					if _, err := insert.Exec(position, bytes); err != nil {
						return err
					}
				}
				return tx.Commit()
			}()
			for _, done := range waiting {
				done <- err
			}
		}
	}()
	var next atomic.Int64
	var group sync.WaitGroup
	begin := time.Now()
	for range 64 {
		group.Go(func() {
			done := make(chan error)
			for next.Add(1) <= int64(b.N) {
				queue <- done
				if err := <-done; err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	close(queue)
	b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "commits/s")
}

// filled returns a log of about 50,000 events in streams of five.
func filled(b *testing.B) (s *sqlite.Store, verifier note.Verifier, size eventstore.Position) {
	signer, verifier := newSigner(b)
	s = open(b, sqlite.Config{Dir: b.TempDir(), Signer: signer, Vouch: vouch})
	for n := int64(0); n < 50_000; {
		var c eventstore.Commit
		for range 500 {
			one := creation(n)
			// Add four events to each stream.
			for range 4 {
				e := one.Writes[0].Events[0]
				e.ID = uuid.Must(uuid.NewV7())
				one.Writes[0].Events = append(one.Writes[0].Events, e)
			}
			c.Writes = append(c.Writes, one.Writes...)
			c.Claim = append(c.Claim, one.Claim...)
			if n += 5; len(c.Writes) == 200 {
				break
			}
		}
		r, err := s.Append(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		size = r.Last
	}
	return s, verifier, size
}

func BenchmarkSubscribe(b *testing.B) {
	s, _, size := filled(b)
	for _, events := range []eventstore.Position{2000, size} {
		name := map[bool]string{true: "file", false: "memory"}[events == size]
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for page, err := range s.Subscribe(b.Context(), size-events) {
					if err != nil {
						b.Fatal(err)
					}
					if page[len(page)-1].Position == size {
						break
					}
				}
			}
			b.ReportMetric(float64(b.N)*float64(events)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	s, verifier, size := filled(b)
	b.ReportAllocs()
	for b.Loop() {
		report, err := s.Verify(b.Context(), sqlite.Trust{Verifiers: []note.Verifier{verifier}, Erasures: []string{erasure}, ErasedKey: erasedKey}, nil)
		if err != nil || !report.OK() {
			b.Fatalf("%+v, %v", report, err)
		}
	}
	b.ReportMetric(float64(b.N)*float64(size)/b.Elapsed().Seconds(), "events/s")
}
