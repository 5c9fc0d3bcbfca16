package httpapi

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
)

// clients is how many call at once, each on a connection it keeps.
const clients = 64

// load sends b.N requests from all clients over loopback and fails on any
// answer but want. The load generator shares the machine's cores.
func load(b *testing.B, l *ledger, want int, request func(i int64) *http.Request) {
	b.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: clients, MaxConnsPerHost: clients, DisableCompression: true}
	defer transport.CloseIdleConnections()
	var next atomic.Int64
	var failed atomic.Pointer[string]
	var wg sync.WaitGroup
	b.ResetTimer()
	for range clients {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				r := request(i)
				r.Header.Set("Authorization", "Bearer "+l.admin)
				res, err := transport.RoundTrip(r)
				if err != nil {
					text := err.Error()
					failed.Store(&text)
					return
				}
				body, _ := io.ReadAll(res.Body)
				res.Body.Close()
				if res.StatusCode != want {
					text := fmt.Sprintf("%d: %s", res.StatusCode, body)
					failed.Store(&text)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	if text := failed.Load(); text != nil {
		b.Fatal(*text)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
}

// BenchmarkCreate creates accounts durably, each visible to its creator when
// it is answered.
func BenchmarkCreate(b *testing.B) {
	l := start(b)
	load(b, l, 201, func(i int64) *http.Request {
		r, _ := http.NewRequest("POST", l.url+"/v1/accounts", bytes.NewReader([]byte(account(fmt.Sprintf("ada.%d@example.com", i)))))
		r.Header.Set("Content-Type", "application/json")
		return r
	})
}

// BenchmarkGet reads accounts by sub.
func BenchmarkGet(b *testing.B) {
	l := start(b)
	var subs [1000]string
	for i := range subs {
		subs[i] = l.create(b, fmt.Sprintf("ada.%d@example.com", i))
	}
	load(b, l, 200, func(i int64) *http.Request {
		r, _ := http.NewRequest("GET", l.url+"/v1/accounts/"+subs[i%int64(len(subs))], nil)
		return r
	})
}

// BenchmarkHealth is the floor: net/http, echo and what is around every
// request, without a resource behind it.
func BenchmarkHealth(b *testing.B) {
	l := start(b)
	load(b, l, 200, func(int64) *http.Request {
		r, _ := http.NewRequest("GET", l.url+"/healthz", nil)
		return r
	})
}
