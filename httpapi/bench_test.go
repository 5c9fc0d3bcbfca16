package httpapi

import (
	"bufio"
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/labstack/echo/v4"

	"accountledger/domain"
)

// clients is the number of concurrent clients, each with a persistent connection.
const clients = 64

// atOnce calls f with 1 to n from all clients concurrently, until one call fails.
func atOnce(n int, f func(i int) error) error {
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for i := int(next.Add(1)); i <= n && failed.Load() == nil; i = int(next.Add(1)) {
				if err := f(i); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// load sends b.N requests from all clients over loopback and fails on any status
// but want. The load generator shares the machine's cores. cpu-us/req is the CPU
// time of client and server per request, independent of other load.
func load(b *testing.B, l *ledger, want int, request func(i int) *http.Request) {
	b.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: clients, MaxConnsPerHost: clients, DisableCompression: true}
	defer transport.CloseIdleConnections()
	before := cpuTime(b)
	b.ResetTimer()
	err := atOnce(b.N, func(i int) error {
		r := request(i)
		r.Header.Set("Authorization", "Bearer "+l.admin)
		res, err := transport.RoundTrip(r)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err == nil && res.StatusCode != want {
			err = fmt.Errorf("%d: %s", res.StatusCode, body)
		}
		return err
	})
	b.StopTimer()
	check(b, err)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-us/req")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	check(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func get(l *ledger, path string) *http.Request {
	r, err := http.NewRequest("GET", l.url+path, nil)
	if err != nil {
		panic(err)
	}
	return r
}

func creation(l *ledger, i int) *http.Request {
	r, err := http.NewRequest("POST", l.url+"/v1/accounts", strings.NewReader(account(fmt.Sprintf("ada.%d@example.com", i))))
	if err != nil {
		panic(err)
	}
	r.Header.Set("Content-Type", "application/json")
	return r
}

// fill adds accounts to the ledger directly, without HTTP.
func (l *ledger) fill(b *testing.B, n int) []string {
	b.Helper()
	subs := make([]string, n)
	check(b, atOnce(n, func(i int) error {
		subs[i-1] = domain.NewID().String()
		profile := domain.Profile{GivenName: "Ada", Email: fmt.Sprintf("ada.%d@example.com", i)}
		result, err := l.Ledger.Execute(b.Context(), domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "system", ID: "test"}}}, subs[i-1],
			domain.CreateAccount{Origin: domain.OriginCreated, Identities: []domain.NewIdentity{{IdentityID: domain.NewID().String(), Provider: domain.ProviderSelf, Profile: profile}}})
		if err != nil {
			return err
		}
		return l.Views.Await(b.Context(), "accounts", result.State.Position)
	}))
	return subs
}

// BenchmarkCreate creates accounts. Each is durable and visible to its creator
// when the response arrives.
func BenchmarkCreate(b *testing.B) {
	l := start(b)
	load(b, l, 201, func(i int) *http.Request { return creation(l, i) })
}

// BenchmarkCreateLimit is the upper bound for BenchmarkCreate: echo and, for
// each request, one row with about as many bytes as a creation's event, sealed
// part and view together. One goroutine commits the rows that have arrived in
// the meantime together. There are no keys, no tree and no claims, and the rows
// arrive in key order.
func BenchmarkCreateLimit(b *testing.B) {
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(b.TempDir(), "limit.db")+"?_journal_mode=WAL&_synchronous=FULL&_txlock=immediate&_cache_size=-16384")
	check(b, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	_, err = db.Exec("CREATE TABLE t (position INTEGER PRIMARY KEY, bytes BLOB NOT NULL) STRICT")
	check(b, err)
	type row struct {
		bytes []byte
		done  chan error
	}
	queue := make(chan row, clients)
	var writing sync.WaitGroup
	defer writing.Wait()
	defer close(queue)
	writing.Go(func() {
		var batch []row
		for first := range queue {
			batch = append(batch[:0], first)
			for more := true; more; {
				select {
				case r, open := <-queue:
					if more = open; open {
						batch = append(batch, r)
					}
				default:
					more = false
				}
			}
			err := func() error {
				tx, err := db.Begin()
				if err != nil {
					return err
				}
				defer tx.Rollback()
				insert, err := tx.Prepare("INSERT INTO t (bytes) VALUES (?)")
				if err != nil {
					return err
				}
				for _, r := range batch {
					if _, err := insert.Exec(r.bytes); err != nil {
						return err
					}
				}
				return tx.Commit()
			}()
			for _, r := range batch {
				r.done <- err
			}
		}
	})
	e := echo.New()
	e.POST("/v1/accounts", func(c echo.Context) error {
		body, err := io.ReadAll(c.Request().Body)
		if err != nil {
			return err
		}
		r := row{make([]byte, 1000), make(chan error, 1)}
		copy(r.bytes, body)
		queue <- r
		if err := <-r.done; err != nil {
			return err
		}
		return c.JSONBlob(http.StatusCreated, body)
	})
	l := &ledger{url: serveHandler(b, e)}
	load(b, l, 201, func(i int) *http.Request { return creation(l, i) })
}

// BenchmarkGet reads accounts by sub.
func BenchmarkGet(b *testing.B) {
	l := start(b)
	subs := l.fill(b, 1000)
	load(b, l, 200, func(i int) *http.Request { return get(l, "/v1/accounts/"+subs[i%len(subs)]) })
}

// BenchmarkGetLimit is the upper bound for BenchmarkGet: echo and the same read
// of the view.
func BenchmarkGetLimit(b *testing.B) {
	l := start(b)
	subs := l.fill(b, 1000)
	e := echo.New()
	e.GET("/v1/accounts/:sub", func(c echo.Context) error {
		row, err := l.Views.Accounts().Get(c.Request().Context(), c.Param("sub"))
		if err != nil {
			return err
		}
		return c.JSONBlob(http.StatusOK, row.JSON)
	})
	l.url = serveHandler(b, e)
	load(b, l, 200, func(i int) *http.Request { return get(l, "/v1/accounts/"+subs[i%len(subs)]) })
}

// BenchmarkWake measures the time from a commit until a waiting reader of the
// feed has received it, with server-sent events and with long polling.
func BenchmarkWake(b *testing.B) {
	for name, read := range map[string]func(b *testing.B, l *ledger, arrived func()){"stream": readStream, "long poll": readPolls} {
		b.Run(name, func(b *testing.B) {
			l := start(b)
			times := make(chan time.Time, 1)
			go read(b, l, func() { times <- time.Now() })
			var took []time.Duration
			for i := range b.N {
				time.Sleep(5 * time.Millisecond) // until the reader waits again
				_, err := l.Ledger.Execute(b.Context(), domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "system", ID: "test"}}}, domain.NewID().String(),
					domain.CreateAccount{Origin: domain.OriginCreated, Identities: []domain.NewIdentity{{IdentityID: domain.NewID().String(), Provider: domain.ProviderSelf,
						Profile: domain.Profile{Email: fmt.Sprintf("ada.%d@example.com", i)}}}})
				check(b, err)
				committed := time.Now()
				took = append(took, max(0, (<-times).Sub(committed)))
			}
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
		})
	}
}

// readStream calls arrived for each new account in a stream, until the test
// ends.
func readStream(b *testing.B, l *ledger, arrived func()) {
	r := get(l, "/v1/events?types=USER_CREATED").WithContext(b.Context())
	r.Header.Set("Authorization", "Bearer "+l.admin)
	r.Header.Set("Accept", "text/event-stream")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return
	}
	defer response.Body.Close()
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "data:") && strings.Contains(lines.Text(), "USER_CREATED") {
			arrived()
		}
	}
}

// readPolls is readStream with long polling.
func readPolls(b *testing.B, l *ledger, arrived func()) {
	for next := "0"; b.Context().Err() == nil; {
		r := get(l, "/v1/events?types=USER_CREATED&wait=30&after="+next).WithContext(b.Context())
		r.Header.Set("Authorization", "Bearer "+l.admin)
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			return
		}
		var page struct {
			Events []struct {
				ID string `json:"id"`
			} `json:"events"`
			Next string `json:"next"`
		}
		err = json.UnmarshalRead(response.Body, &page)
		response.Body.Close()
		if err != nil {
			return
		}
		for range page.Events {
			arrived()
		}
		next = page.Next
	}
}
