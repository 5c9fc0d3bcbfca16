package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"accountledger/cmd/accountledger/cli"
	"accountledger/projections/projectionstest"
)

// BenchmarkServe measures a server process on a large log: the time until it is
// ready and its peak memory, without views and after a kill; then the time of a
// field definition that checks all accounts, and of creations by 64 clients.
// ACCOUNTLEDGER_BENCH_EVENTS sets the number of events in the log; it has a tenth
// as many accounts.
func BenchmarkServe(b *testing.B) {
	h := projectionstest.History{Events: 100_000, Interleaved: true}
	if n, err := strconv.Atoi(os.Getenv("ACCOUNTLEDGER_BENCH_EVENTS")); err == nil {
		h.Events = n
	}
	h.Accounts = h.Events / 10
	data := filepath.Join(b.TempDir(), "data")
	l, err := openLedger(b.Context(), cli.Config{Data: data}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	h.Write(b, l.log, l.keys)
	if err := l.close(); err != nil {
		b.Fatal(err)
	}
	for _, state := range []string{"without views", "killed"} {
		b.Run(fmt.Sprintf("events=%d/%s", h.Events, state), func(b *testing.B) {
			for n := range b.N {
				if n > 0 && state == "without views" {
					b.StopTimer()
					removeViews(b, data)
					b.StartTimer()
				}
				start(b, data).kill()
			}
		})
	}
	b.Run(fmt.Sprintf("events=%d/definition", h.Events), func(b *testing.B) {
		p := start(b, data)
		defer p.kill()
		b.ResetTimer()
		for range b.N {
			// The definition is refused, because no account's number is a date; the
			// answer has their count.
			response, text, err := p.do(b.Context(), "PUT", "/v1/fields/employee_id", `{"dataType":"DATE"}`)
			if err != nil || response.StatusCode != http.StatusConflict || !strings.Contains(string(text), strconv.Itoa(h.Accounts)) {
				b.Fatalf("define: %v: %s", err, text)
			}
		}
		b.StopTimer()
		b.ReportMetric(float64(b.N*h.Accounts)/b.Elapsed().Seconds(), "accounts/s")
		b.ReportMetric(peak(b, p), "peak-MiB")
	})
	b.Run(fmt.Sprintf("events=%d/creations", h.Events), func(b *testing.B) {
		p := start(b, data)
		defer p.kill()
		b.ResetTimer()
		var clients sync.WaitGroup
		for c := range 64 {
			clients.Go(func() {
				for i := c; i < b.N; i += 64 {
					response, text, err := p.do(b.Context(), "POST", "/v1/accounts",
						fmt.Sprintf(`{"origin":"created","identities":[{"provider":"self","given_name":"Ada","email":"ada.%d.%d@example.com"}]}`, b.N, i))
					if err != nil || response.StatusCode != http.StatusCreated {
						b.Errorf("create: %v: %s", err, text)
						return
					}
				}
			})
		}
		clients.Wait()
		b.StopTimer()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
		b.ReportMetric(peak(b, p), "peak-MiB")
	})
}

// start starts a server on data and waits until it is ready.
func start(b *testing.B, data string) *process {
	b.Helper()
	p, stdout, err := spawn(data)
	if err != nil {
		b.Fatal(err)
	}
	if err := p.ready(stdout, data); err != nil {
		p.kill()
		b.Fatal(err)
	}
	for {
		response, text, err := p.do(b.Context(), "GET", "/readyz", "")
		switch {
		case err != nil:
			p.kill()
			b.Fatal(err)
		case response.StatusCode == http.StatusOK:
			b.ReportMetric(peak(b, p), "peak-MiB")
			return p
		case response.StatusCode != http.StatusServiceUnavailable:
			p.kill()
			b.Fatalf("/readyz = %s: %s", response.Status, text)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// removeViews deletes the views, so that the next server rebuilds them.
func removeViews(b *testing.B, data string) {
	b.Helper()
	files, err := filepath.Glob(filepath.Join(data, viewsFile+"*"))
	if err != nil || len(files) == 0 {
		b.Fatalf("views: %v, %v", files, err)
	}
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			b.Fatal(err)
		}
	}
}

// peak returns the peak memory of the process in MiB, or 0 if the kernel does not
// report it.
func peak(b *testing.B, p *process) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
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
