package webhooks

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
)

// backlog appends n events of n/10 accounts.
func (w *world) backlog(n int) {
	w.t.Helper()
	accounts := max(1, n/10)
	for i := range n {
		if sub := fmt.Sprint("a", i%accounts); i < accounts {
			w.account(sub)
		} else {
			w.touch(sub, 1)
		}
	}
}

// discard is a receiver that counts.
func discard(b *testing.B, n *atomic.Int64) *httptest.Server {
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		n.Add(1)
		rw.WriteHeader(http.StatusNoContent)
	}))
	b.Cleanup(server.Close)
	return server
}

// cpu is the processor time this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func report(b *testing.B, before time.Duration) {
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "deliveries/s")
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// BenchmarkDeliver is signed deliveries a second, receiver included, and as
// its limit the bare requests: TARGETS P9.
func BenchmarkDeliver(b *testing.B) {
	const inFlight = 64
	b.Run("limit", func(b *testing.B) {
		var n atomic.Int64
		u, err := url.Parse(discard(b, &n).URL)
		if err != nil {
			b.Fatal(err)
		}
		target := target{url: u, transport: newTransport(newGuard(loopback, true), inFlight), timeout: time.Minute, now: time.Now,
			signers: anySigner(), private: func() bool { return true }}
		m, body := &message{event: domain.PublicEvent{ID: domain.NewID().String()}}, make([]byte, 400)
		b.SetParallelism(inFlight / 2)
		before := cpu()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				target.post(content{id: m.event.ID, kind: jsonType, body: body})
			}
		})
		report(b, before)
	})
	b.Run("pipeline", func(b *testing.B) {
		var n atomic.Int64
		server := discard(b, &n)
		w := newWorld(b, Config{InFlight: inFlight})
		w.backlog(b.N)
		w.hook("crm", server.URL)
		before := cpu()
		b.ResetTimer()
		w.run()
		for n.Load() < int64(b.N) {
			time.Sleep(time.Millisecond)
		}
		b.StopTimer()
		report(b, before)
		w.stop()
	})
}

// BenchmarkLatency is the time from commit to the receiver's handler at 1,000
// events a second: TARGETS P10.
func BenchmarkLatency(b *testing.B) {
	var mu sync.Mutex
	arrived := map[string]time.Time{}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		now := time.Now()
		var e envelope
		if err := json.UnmarshalRead(r.Body, &e); err != nil {
			b.Error(err)
		}
		rw.WriteHeader(http.StatusNoContent)
		mu.Lock()
		arrived[e.Sub] = now
		mu.Unlock()
	}))
	defer server.Close()
	w := newWorld(b, Config{})
	w.hook("crm", server.URL)
	w.run()
	committed := map[string]time.Time{}
	b.ResetTimer()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for i := range b.N {
		<-ticker.C
		sub := fmt.Sprint("a", i)
		w.execute(sub, domain.CreateAccount{Origin: domain.OriginCreated, Identities: []domain.NewIdentity{{
			IdentityID: domain.NewID().String(), Provider: domain.ProviderSelf, Profile: domain.Profile{GivenName: "Ada", Email: sub + "@example.com"}}}})
		committed[sub] = time.Now()
	}
	w.until(func() bool { mu.Lock(); defer mu.Unlock(); return len(arrived) == b.N })
	b.StopTimer()
	var took []time.Duration
	for sub, at := range committed {
		took = append(took, arrived[sub].Sub(at))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	w.stop()
}
