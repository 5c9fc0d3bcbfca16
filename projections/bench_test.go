package projections

import (
	"database/sql"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/eventstore/seal"
	"accountledger/projections/projectionstest"
)

// BenchmarkRebuild measures events per second. ACCOUNTLEDGER_BENCH_EVENTS sets
// the number of events in the log.
func BenchmarkRebuild(b *testing.B) {
	events := 100_000
	if s := os.Getenv("ACCOUNTLEDGER_BENCH_EVENTS"); s != "" {
		var err error
		if events, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	for _, h := range []projectionstest.History{
		{Accounts: events / 10, Events: events},
		{Accounts: events / 10, Events: events, Interleaved: true},
		{Accounts: events, Events: events},
	} {
		b.Run(fmt.Sprintf("events=%d/accounts=%d/interleaved=%t", h.Events, h.Accounts, h.Interleaved), func(b *testing.B) {
			f := newFixture(b)
			h.Write(b, f.log, f.keys)
			f.keys.Close() // bench opens it again with an empty cache
			b.Run("rebuild", func(b *testing.B) {
				for range b.N {
					f.bench(b, h.Events, func(v *Views, head eventstore.Position) error {
						return v.Rebuild(b.Context(), AccountsView, nil)
					})
				}
			})
			b.Run("limit", func(b *testing.B) { limit(b, h) })
			b.Run("catchup", func(b *testing.B) {
				for range b.N {
					f.bench(b, h.Events, func(v *Views, head eventstore.Position) error {
						return v.all[0].live.catchUp(b.Context(), head)
					})
				}
			})
		})
	}
}

// limit measures a lower bound for comparison with a rebuild: a program that
// reads the same events, unsealed, page by page from a table in a goroutine,
// decodes each, folds them in a map and at the end writes each account's row
// once, without any other index. Its memory grows with the number of accounts.
func limit(b *testing.B, h projectionstest.History) {
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(b.TempDir(), "limit.db")+"?_journal_mode=WAL&_synchronous=NORMAL&_txlock=immediate&_cache_size=-16384")
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	exec := func(tx *sql.Tx, query string, args ...any) {
		if _, err := tx.Exec(query, args...); err != nil {
			b.Fatal(err)
		}
	}
	within := func(f func(tx *sql.Tx)) {
		tx, err := db.Begin()
		if err != nil {
			b.Fatal(err)
		}
		defer tx.Rollback()
		f(tx)
		if err := tx.Commit(); err != nil {
			b.Fatal(err)
		}
	}
	within(func(tx *sql.Tx) {
		exec(tx, "CREATE TABLE log (position INTEGER PRIMARY KEY, stream TEXT NOT NULL, bytes BLOB NOT NULL) STRICT")
		per := h.Events / h.Accounts
		for n := range per * h.Accounts {
			i, revision := n/per, n%per
			if h.Interleaved {
				i, revision = n%h.Accounts, n/h.Accounts
			}
			_, clear, personal := projectionstest.Body(i, revision)
			clear = append(clear[:len(clear)-1], `,"personal":`...)
			exec(tx, "INSERT INTO log (stream, bytes) VALUES (?, ?)", fmt.Sprintf("account-%032d", i), append(append(clear, personal...), '}'))
		}
	})
	b.ResetTimer()
	before := cpu(b)
	for n := range b.N {
		accounts, order := foldPlain(b, db)
		within(func(tx *sql.Tx) {
			exec(tx, fmt.Sprintf("CREATE TABLE accounts_%d (id INTEGER PRIMARY KEY, json BLOB NOT NULL) STRICT", n))
			insert, err := tx.Prepare(fmt.Sprintf("INSERT INTO accounts_%d (json) VALUES (?)", n))
			if err != nil {
				b.Fatal(err)
			}
			for _, stream := range order {
				document, err := json.Marshal(accounts[stream])
				if err == nil {
					_, err = insert.Exec(document)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.StopTimer()
	b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(h.Events*b.N), "cpu-ns/event")
	b.ReportMetric(float64(h.Events)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// plainAccount is the account that limit folds: the members of the events' data.
type plainAccount struct {
	Clear    map[string]jsontext.Value `json:"clear"`
	Personal map[string]jsontext.Value `json:"personal"`
	Last     domain.Metadata           `json:"last"`
}

// foldPlain folds limit's log; later members replace earlier ones.
func foldPlain(b *testing.B, db *sql.DB) (accounts map[string]*plainAccount, order []string) {
	type row struct {
		stream string
		bytes  []byte
	}
	pages := make(chan []row, 2)
	go func() {
		defer close(pages)
		for last, full := 0, true; full; {
			var page []row
			rows, err := db.Query("SELECT position, stream, bytes FROM log WHERE position > ? ORDER BY position LIMIT 512", last)
			if err != nil {
				b.Error(err)
				return
			}
			for rows.Next() {
				var r row
				if err := rows.Scan(&last, &r.stream, &r.bytes); err != nil {
					b.Error(err)
				}
				page = append(page, r)
			}
			if err := rows.Close(); err != nil {
				b.Error(err)
			}
			full = len(page) == 512
			pages <- page
		}
	}()
	accounts = map[string]*plainAccount{}
	for page := range pages {
		for _, r := range page {
			var e struct {
				Meta     domain.Metadata           `json:"meta"`
				Data     map[string]jsontext.Value `json:"data"`
				Personal struct {
					Data map[string]jsontext.Value `json:"data"`
				} `json:"personal"`
			}
			if err := json.Unmarshal(r.bytes, &e); err != nil {
				b.Fatal(err)
			}
			a := accounts[r.stream]
			if a == nil {
				accounts[r.stream] = &plainAccount{e.Data, e.Personal.Data, e.Meta}
				order = append(order, r.stream)
				continue
			}
			maps.Copy(a.Clear, e.Data)
			maps.Copy(a.Personal, e.Personal.Data)
			a.Last = e.Meta
		}
	}
	return accounts, order
}

func (f *fixture) bench(b *testing.B, events int, work func(*Views, eventstore.Position) error) {
	b.StopTimer()
	keys, err := seal.Open(b.Context(), seal.Config{Path: filepath.Join(f.dir, "keys.db"), Master: f.master})
	if err != nil {
		b.Fatal(err)
	}
	defer keys.Close()
	v, err := Open(b.Context(), Config{Path: filepath.Join(b.TempDir(), "views.db"), Log: f.log, Codec: domain.Codec{Keys: keys}})
	if err != nil {
		b.Fatal(err)
	}
	defer v.Close()
	head, err := f.log.Head(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	debug.FreeOSMemory()
	// Reset the process's peak memory, so that it does not include writing the
	// log. Kernels without this feature report the peak of both.
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
	before := cpu(b)
	b.StartTimer()
	if err := work(v, head); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(events), "cpu-ns/event")
	b.ReportMetric(float64(events)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(peakMiB(b), "peak-MiB")
	b.StartTimer()
}

// cpu returns the CPU time the process has used, which is comparable even on a
// busy machine.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// peakMiB returns the process's peak memory since bench reset it.
func peakMiB(b *testing.B) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return kib / 1024
}

// BenchmarkGet measures point reads from all cores.
func BenchmarkGet(b *testing.B) {
	f := newFixture(b)
	const accounts = 20_000
	projectionstest.History{Accounts: accounts, Events: accounts}.Write(b, f.log, f.keys)
	v := f.open(b)
	run(b, v)
	f.awaitHead(b, v)
	var subs []string
	_, _, rows, err := v.Accounts().All(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	for row, err := range rows {
		if err != nil {
			b.Fatal(err)
		}
		subs = append(subs, row.Sub)
	}
	b.Run("sub", func(b *testing.B) {
		b.SetParallelism(32)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, err := v.Accounts().Get(b.Context(), subs[rand.IntN(accounts)]); err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("email", func(b *testing.B) {
		b.SetParallelism(32)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				c := []domain.Candidate{{Kind: domain.KindEmail, Key: fmt.Sprintf("person%d@example.org", rand.IntN(accounts))}}
				if _, err := v.Accounts().Lookup(b.Context(), c); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

// BenchmarkLive measures creations per second, each awaited in the account view.
func BenchmarkLive(b *testing.B) {
	f := newFixture(b)
	v := f.open(b)
	run(b, v)
	var n atomic.Int64
	b.SetParallelism(32)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			a := f.execute(b, domain.NewID().String(), domain.CreateAccount{Origin: domain.OriginCreated, CustomFields: map[string]jsontext.Value{"n": jsontext.Value("1")},
				Identities: []domain.NewIdentity{newIdentity(domain.ProviderSelf, "", domain.Profile{Email: fmt.Sprintf("%d@example.org", n.Add(1))})}})
			await(b, v, a.Position)
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creations/s")
}
