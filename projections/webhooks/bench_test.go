package webhooks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
	"accountledger/projections/projectionstest"
	"accountledger/projections/webhooks/transport"
	"accountledger/projections/webhooks/wire"
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

// discard is a receiver that only counts requests.
func discard(b *testing.B, n *atomic.Int64) *httptest.Server {
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		n.Add(1)
		rw.WriteHeader(http.StatusNoContent)
	}))
	b.Cleanup(server.Close)
	return server
}

// cpu returns the CPU time that this process has used.
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

// BenchmarkDeliver measures signed deliveries a second, including the receiver,
// and the bare requests as their limit: TARGETS P9.
func BenchmarkDeliver(b *testing.B) {
	const inFlight = 64
	b.Run("limit", func(b *testing.B) {
		var n atomic.Int64
		u, err := url.Parse(discard(b, &n).URL)
		if err != nil {
			b.Fatal(err)
		}
		client, err := transport.New(transport.Config{URL: u, Allow: loopback, InFlight: inFlight, Timeout: time.Minute, Now: time.Now})
		if err != nil {
			b.Fatal(err)
		}
		signer, err := wire.ParseSigner(v1Secret)
		if err != nil {
			b.Fatal(err)
		}
		e := wire.Envelope{URL: u, Signers: wire.Signers{signer}}
		c := wire.Content{ID: domain.NewID().String(), Type: "application/json", Body: make([]byte, 400)}
		b.SetParallelism(inFlight / 2)
		before := cpu()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				client.Post(func(now time.Time) *http.Request { return e.Request(c, now) })
			}
		})
		report(b, before)
	})
	for name, kind := range map[string]domain.WebhookKeyType{"pipeline": domain.KeyHMAC, "pipeline, v1a": domain.KeyEd25519} {
		b.Run(name, func(b *testing.B) {
			var n atomic.Int64
			server := discard(b, &n)
			w := newWorld(b, Config{InFlight: inFlight})
			w.backlog(b.N)
			c := creation(server.URL)
			c.KeyType = kind
			w.create("crm", c)
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
}

// Row 44: BenchmarkFailing measures signed deliveries a second if the receiver
// refuses the events of one account in a hundred, and if it refuses none. Only the
// failing accounts have lanes.
func BenchmarkFailing(b *testing.B) {
	for _, failing := range []int{0, 1} {
		b.Run(fmt.Sprintf("%d of 100 accounts", failing), func(b *testing.B) {
			var n atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				_, rest, _ := bytes.Cut(body, []byte(`"sub":"a`))
				account, _, _ := bytes.Cut(rest, []byte(`"`))
				if no, err2 := strconv.Atoi(string(account)); err != nil || err2 != nil || no%100 < failing {
					rw.WriteHeader(http.StatusInternalServerError)
					return
				}
				n.Add(1)
				rw.WriteHeader(http.StatusNoContent)
			}))
			b.Cleanup(server.Close)
			w := newWorld(b, Config{InFlight: 64})
			w.backlog(b.N)
			accounts := max(1, b.N/10)
			bad := min(failing, 1) * ((accounts + 99) / 100)
			due := int64(0)
			for i := range b.N {
				if i%accounts%100 >= failing {
					due++
				}
			}
			w.hook("crm", server.URL)
			before := cpu()
			b.ResetTimer()
			w.run()
			for n.Load() < due {
				time.Sleep(time.Millisecond)
			}
			b.StopTimer()
			report(b, before)
			w.until(func() bool { return w.get("crm").Lanes == bad })
			w.stop()
		})
	}
}

// BenchmarkLatency measures the time from commit to the receiver's handler, at
// 1,000 events a second (TARGETS P10), at 5,000, and at 1,000 while another
// endpoint hangs.
func BenchmarkLatency(b *testing.B) {
	b.Run("1000 a second", func(b *testing.B) { benchmarkLatency(b, 1, false) })
	b.Run("5000 a second", func(b *testing.B) { benchmarkLatency(b, 5, false) })
	b.Run("1000 a second beside one that hangs", func(b *testing.B) { benchmarkLatency(b, 1, true) })
}

func benchmarkLatency(b *testing.B, perTick int, hanging bool) {
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
	if hanging {
		end := make(chan struct{})
		hangs := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end }))
		defer hangs.Close()
		defer close(end)
		w.hook("hangs", hangs.URL)
	}
	w.run()
	committed := map[string]time.Time{}
	b.ResetTimer()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for i := range b.N {
		if i%perTick == 0 {
			<-ticker.C
		}
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

// Row 51: BenchmarkBacklog measures the memory that a backlog takes: ten webhooks
// start at the beginning of a log in files. grown-MiB is the peak during the first
// deliveries above the memory before them. The receiver is another process. The
// accounts' keys are in memory already, as they are when views follow the log.
// ACCOUNTLEDGER_BENCH_EVENTS sets the size of the log.
func BenchmarkBacklog(b *testing.B) {
	events, err := strconv.Atoi(os.Getenv("ACCOUNTLEDGER_BENCH_EVENTS"))
	if err != nil {
		events = 100_000
	}
	const endpoints, deliveries = 10, 50_000
	url := discardElsewhere(b)
	for range b.N {
		b.StopTimer()
		dir := b.TempDir()
		keepSecrets(b, dir)
		log, keys, err := crashLog(b.Context(), dir)
		if err != nil {
			b.Fatal(err)
		}
		projectionstest.History{Events: events, Accounts: events / 10, Interleaved: true}.Write(b, log, keys)
		codec := domain.Codec{Keys: keys}
		hooks, err := Open(b.Context(), Config{Path: filepath.Join(dir, "delivery.db"), Log: log, Codec: codec, Keys: keys, Allow: loopback,
			Ledger: domain.NewLedger(domain.LedgerConfig{Log: log, Codec: codec})})
		if err != nil {
			b.Fatal(err)
		}
		for i := range endpoints {
			if _, _, _, err := hooks.Create(b.Context(), asAdmin, fmt.Sprint("e", i), creation(url)); err != nil {
				b.Fatal(err)
			}
		}
		followed := 0
		for page, err := range log.Subscribe(b.Context(), 0) {
			check(b, err)
			for _, rec := range page {
				_, err := codec.Decode(rec)
				check(b, err)
			}
			if followed += len(page); followed >= events {
				break
			}
		}
		debug.FreeOSMemory()
		before := resident(b, "VmRSS:")
		_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) // reset the peak
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error)
		b.StartTimer()
		go func() { done <- hooks.Run(ctx) }()
		made := int64(0)
		for made < deliveries {
			time.Sleep(10 * time.Millisecond)
			check(b, hooks.store.read.QueryRow(`SELECT sum(attempts) FROM cursor`).Scan(&made))
		}
		b.StopTimer()
		b.ReportMetric(resident(b, "VmHWM:")-before, "grown-MiB")
		b.ReportMetric(float64(made)*float64(b.N)/b.Elapsed().Seconds(), "deliveries/s")
		cancel()
		if err := errors.Join(<-done, hooks.Close(), log.Close(), keys.Close()); err != nil {
			b.Fatal(err)
		}
	}
}

// discardElsewhere starts discard in a separate process, which ends with b.
func discardElsewhere(b *testing.B) (url string) {
	cmd, heal, lines := start(b, receiverFile+"="+os.DevNull, receiverAddress+"=127.0.0.1:0")
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if !lines.Scan() {
		b.Fatalf("the receiver did not start: %v", lines.Err())
	}
	check(b, heal.Close())
	return "http://" + lines.Text()
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkIdle measures the memory of a thousand webhooks without events.
func BenchmarkIdle(b *testing.B) {
	for range b.N {
		w := newWorld(b, Config{})
		w.run()
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range 1000 {
			w.hook(fmt.Sprint("e", i), "https://crm.example/hook", "USER_DELETED")
		}
		w.account("ada")
		for i := range 1000 {
			w.settled(fmt.Sprint("e", i))
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse)/(1<<20), "MiB")
		w.stop()
	}
}

// resident returns a line of /proc/self/status in MiB, 0 if it is missing.
func resident(b *testing.B, line string) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), line)
	kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return kib / 1024
}
