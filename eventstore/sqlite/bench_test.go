package sqlite_test

import (
	"context"
	"crypto/sha256"
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

// creation is the commit of a new account: an event of 200 clear and 300
// sealed bytes, and a claim.
func creation(n int64) eventstore.Commit {
	// Names and keys as the domain makes them: random, so that their indexes
	// are met all over.
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

// key is a fresh key for the log that all tests use.
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
			s := open(b, sqlite.Config{Dir: b.TempDir(), Signer: signer})
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
