package seal

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"accountledger/eventstore"
)

// TestDurableBeforeUse checks that every key that NewKey returned survives a
// crash at any later moment.
func TestDurableBeforeUse(t *testing.T) {
	t.Parallel()
	master := NewMaster()
	path := filepath.Join(t.TempDir(), "keys.db")
	k := openKeys(t, path, master)
	sealed := map[eventstore.KeyID][]byte{}
	for i := range 300 { // several batches
		id := newKey(t, k)
		sealed[id] = mustSeal(t, k, id, testContext, plain)
		if i%50 != 0 {
			continue
		}
		crashed := openKeys(t, copyFiles(t, path), master)
		for id, sealed := range sealed {
			if got, err := crashed.Open(id, testContext, sealed); err != nil || string(got) != plain {
				t.Fatalf("Open after a crash = %q, %v, want %q", got, err, plain)
			}
		}
		if err := crashed.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNewKeyIsUnique(t *testing.T) {
	t.Parallel()
	master := NewMaster()
	path := filepath.Join(t.TempDir(), "keys.db")
	seen := map[int64]bool{}
	for range 2 { // the second run must not reuse keys that the first abandoned
		k := openKeys(t, path, master)
		ids := make(chan eventstore.KeyID, 64*50)
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				for range 50 {
					id, err := k.NewKey(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					ids <- id
				}
			})
		}
		wg.Wait()
		close(ids)
		for id := range ids {
			if seen[slot(t, id)] {
				t.Fatalf("NewKey returned slot %d twice", slot(t, id))
			}
			seen[slot(t, id)] = true
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 2*64*50 {
		t.Errorf("NewKey returned %d keys, want %d", len(seen), 2*64*50)
	}
}

func TestNewKeyEnds(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	newKey(t, k)
	// Block the writer and empty the pool, so that the next caller has to wait.
	tx, err := k.write.Begin()
	if err != nil {
		t.Fatal(err)
	}
	k.pool.mu.Lock()
	k.pool.keys = nil
	k.pool.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error, 1)
	go func() {
		_, err := k.NewKey(ctx)
		waiting <- err
	}()
	cancel()
	wantErr(t, "NewKey with a canceled context", <-waiting, context.Canceled)
	tx.Rollback()
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = k.NewKey(t.Context())
	wantErr(t, "NewKey after Close", err, eventstore.ErrClosed)
}

// TestNewKeyReportsFailure checks that waiting callers get the error of a
// failed refill, and that the next call retries.
func TestNewKeyReportsFailure(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	if _, err := k.write.Exec(`CREATE TRIGGER full BEFORE INSERT ON keys BEGIN SELECT RAISE(ABORT, 'disk full'); END`); err != nil {
		t.Fatal(err)
	}
	if _, err := k.NewKey(t.Context()); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("NewKey = %v, want the error of the refill", err)
	}
	if _, err := k.write.Exec(`DROP TRIGGER full`); err != nil {
		t.Fatal(err)
	}
	newKey(t, k)
}

// BenchmarkNewKey includes a baseline: "limit" only writes rows of the same
// size in the same batches with the same durability.
func BenchmarkNewKey(b *testing.B) {
	b.Run("limit", func(b *testing.B) {
		k := newKeys(b)
		wrapped := make([]byte, 60)
		b.ResetTimer()
		for done := 0; done < b.N; done += 1024 {
			tx, err := k.write.Begin()
			if err != nil {
				b.Fatal(err)
			}
			insert, err := tx.Prepare(`INSERT INTO keys (slot, epoch, wrapped) VALUES (?, ?, ?)`)
			if err != nil {
				b.Fatal(err)
			}
			for i := range min(1024, b.N-done) {
				if _, err := insert.Exec(done+i+1, 1, wrapped); err != nil {
					b.Fatal(err)
				}
			}
			if err := tx.Commit(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "keys/s")
	})
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			k := newKeys(b)
			var wg sync.WaitGroup
			work := make(chan struct{}, b.N)
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			b.ResetTimer()
			for range callers {
				wg.Go(func() {
					for range work {
						if _, err := k.NewKey(b.Context()); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "keys/s")
		})
	}
}
