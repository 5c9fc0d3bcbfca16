package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"accountledger/eventstore"
	"accountledger/projections"
	"accountledger/projections/webhooks"
)

// scrapeTimeout limits the duration of a scrape.
const scrapeTimeout = 5 * time.Second

// gauges is a prometheus.Collector that reads the state of the ledger at each
// scrape.
type gauges struct {
	ledger  *ledger
	metrics *metrics
	first   eventstore.Position // the log's head at the start
	descs   map[string]*prometheus.Desc

	mu       sync.Mutex                        // held during a scrape; guards what follows
	recorded map[eventstore.Position]time.Time // times of the events whose age the last scrape reported
}

// collected are the metrics of gauges.
var collected = []string{
	"accountledger_ready", "accountledger_account_cache_requests_total", "accountledger_account_cache_accounts",
	"accountledger_log_position", "accountledger_file_size_bytes", "accountledger_disk_free_bytes",
	"accountledger_view_position", "accountledger_view_lag_events", "accountledger_view_lag_seconds", "accountledger_view_parked_streams",
	"accountledger_erasure_oldest_age_seconds", "accountledger_schedule_lag_seconds",
	"accountledger_webhook_state", "accountledger_delivery_backlog_events", "accountledger_delivery_oldest_age_seconds",
	"accountledger_delivery_in_flight_requests", "accountledger_delivery_lanes", "accountledger_delivery_blocked_lanes",
	"accountledger_delivery_dead_letters", "accountledger_delivery_breaker_open", "accountledger_delivery_duplicates_bound_events",
}

// watch adds the gauges of l to m. l must stay open as long as m is scraped.
func (m *metrics) watch(ctx context.Context, l *ledger) error {
	first, err := l.log.Head(ctx)
	if err != nil {
		return err
	}
	g := &gauges{ledger: l, metrics: m, first: first, descs: map[string]*prometheus.Desc{}}
	for _, name := range collected {
		row := rowOf(name)
		g.descs[name] = prometheus.NewDesc(row.name, row.meaning, row.labels, nil)
	}
	return m.registry.Register(g)
}

// Describe implements prometheus.Collector.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range g.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	g.mu.Lock()
	defer g.mu.Unlock()
	s := &scrape{gauges: g, ctx: ctx, ch: ch, recorded: map[eventstore.Position]time.Time{}}
	for _, part := range []func() error{s.log, s.files, s.views, s.erasures, s.schedules, s.deliveries} {
		if err := part(); err != nil {
			ch <- prometheus.NewInvalidMetric(g.descs["accountledger_ready"], err)
		}
	}
	g.recorded = s.recorded
}

// scrape is one run of Collect.
type scrape struct {
	*gauges
	ctx      context.Context
	ch       chan<- prometheus.Metric
	recorded map[eventstore.Position]time.Time
}

func (s *scrape) report(name string, value float64, labels ...string) {
	kind := prometheus.GaugeValue
	if rowOf(name).kind == counter {
		kind = prometheus.CounterValue
	}
	s.ch <- prometheus.MustNewConstMetric(s.descs[name], kind, value, labels...)
}

func (s *scrape) log() error {
	head, err := s.ledger.log.Head(s.ctx)
	if err != nil {
		return err
	}
	s.report("accountledger_log_position", float64(head))
	s.report("accountledger_ready", number(s.ledger.views.Accounts().Position() >= s.first))
	cache := s.ledger.ledger.CacheStats()
	s.report("accountledger_account_cache_requests_total", float64(cache.Hits), "hit")
	s.report("accountledger_account_cache_requests_total", float64(cache.Misses), "miss")
	s.report("accountledger_account_cache_accounts", float64(cache.Accounts))
	return nil
}

func (s *scrape) files() error {
	for _, name := range []string{logFile, keysFile, viewsFile, deliveryFile} {
		var size int64
		for _, suffix := range []string{"", "-wal"} {
			info, err := os.Stat(s.ledger.dir.path(name + suffix))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("size of %s: %w", name, err)
			}
			size += info.Size()
		}
		s.report("accountledger_file_size_bytes", float64(size), name)
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(string(s.ledger.dir), &disk); err != nil {
		return fmt.Errorf("free disk space: %w", err)
	}
	s.report("accountledger_disk_free_bytes", float64(disk.Bavail)*float64(disk.Bsize))
	return nil
}

func (s *scrape) views() error {
	all, err := s.ledger.views.Status(s.ctx)
	if err != nil {
		return err
	}
	for _, v := range all {
		s.report("accountledger_view_position", float64(v.Position), v.Name)
		s.report("accountledger_view_lag_events", float64(v.Lag), v.Name)
		s.report("accountledger_view_parked_streams", float64(len(v.Parked)), v.Name)
		var missing eventstore.Position
		if v.Lag > 0 {
			missing = v.Position + 1
		}
		if err := s.reportAge("accountledger_view_lag_seconds", missing, v.Name); err != nil {
			return err
		}
	}
	return nil
}

func (s *scrape) erasures() error {
	open, err := s.ledger.views.Erasures().Next(s.ctx, 0, 1)
	if err != nil {
		return err
	}
	var oldest eventstore.Position
	if len(open) > 0 {
		oldest = open[0].Position
	}
	return s.reportAge("accountledger_erasure_oldest_age_seconds", oldest)
}

func (s *scrape) schedules() error {
	next, err := s.ledger.views.Schedules().Next(s.ctx, projections.Due{}, 1)
	if err != nil {
		return err
	}
	var late time.Duration
	if len(next) > 0 {
		late = max(0, time.Since(next[0].Time))
	}
	s.report("accountledger_schedule_lag_seconds", late.Seconds())
	return nil
}

func (s *scrape) deliveries() error {
	// Read the ids with attempts before the existing webhooks: an id that does not
	// exist then belongs to a deleted webhook.
	deleted := map[string]bool{}
	for id := range s.metrics.attemptedHooks.Range {
		deleted[id.(string)] = true
	}
	all, err := s.ledger.hooks.Stats(s.ctx)
	if err != nil {
		return err
	}
	for _, f := range all {
		id := f.WebhookID
		delete(deleted, id)
		s.report("accountledger_webhook_state", 1, id, string(f.State))
		s.report("accountledger_delivery_backlog_events", float64(f.Backlog), id)
		s.report("accountledger_delivery_in_flight_requests", float64(f.InFlight), id)
		s.report("accountledger_delivery_lanes", float64(f.Lanes), id)
		s.report("accountledger_delivery_blocked_lanes", float64(f.Blocked), id)
		s.report("accountledger_delivery_dead_letters", float64(f.DeadLetters), id)
		s.report("accountledger_delivery_breaker_open", number(f.BreakerOpen), id)
		s.report("accountledger_delivery_duplicates_bound_events", float64(f.Duplicates), id)
		if err := s.reportAge("accountledger_delivery_oldest_age_seconds", f.Oldest, id); err != nil {
			return err
		}
		s.metrics.attemptedHooks.LoadOrStore(id, nil)
		for _, outcome := range webhooks.Outcomes() {
			s.metrics.attempts.WithLabelValues(id, outcome)
		}
	}
	for id := range deleted {
		s.metrics.attemptedHooks.Delete(id)
		s.metrics.attempts.DeletePartialMatch(prometheus.Labels{"webhook": id})
		s.metrics.latency.DeletePartialMatch(prometheus.Labels{"webhook": id})
	}
	return nil
}

// reportAge reports the age of the event at position p, or 0 if p is 0. It reads
// an event once, and remembers its time while scrapes report that event.
func (s *scrape) reportAge(name string, p eventstore.Position, labels ...string) error {
	if p == 0 {
		s.report(name, 0, labels...)
		return nil
	}
	at := cmp.Or(s.recorded[p], s.gauges.recorded[p])
	if at.IsZero() {
		for page, err := range s.ledger.log.Subscribe(s.ctx, p-1) {
			if err != nil {
				return fmt.Errorf("age of the event at position %d: %w", p, err)
			}
			at = page[0].Time
			break
		}
	}
	s.recorded[p] = at
	s.report(name, max(0, time.Since(at)).Seconds(), labels...)
	return nil
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
