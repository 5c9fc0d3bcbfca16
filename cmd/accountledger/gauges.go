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

// scrapeTimeout is how long a scrape may look for its figures.
const scrapeTimeout = 5 * time.Second

// gauges are the figures that are found out when somebody asks: where
// everything stands. It is a prometheus.Collector.
type gauges struct {
	ledger  *ledger
	metrics *metrics
	first   eventstore.Position // of the log's end at the start
	descs   map[string]*prometheus.Desc

	mu       sync.Mutex                        // held by a scrape; guards what follows
	recorded map[eventstore.Position]time.Time // of events whose age the last scrape told
}

// lookedUp are the metrics that gauges finds out.
var lookedUp = []string{
	"accountledger_ready", "accountledger_account_cache_requests_total", "accountledger_account_cache_accounts",
	"accountledger_log_position", "accountledger_file_size_bytes", "accountledger_disk_free_bytes",
	"accountledger_view_position", "accountledger_view_lag_events", "accountledger_view_lag_seconds", "accountledger_view_parked_streams",
	"accountledger_erasure_oldest_age_seconds", "accountledger_schedule_lag_seconds",
	"accountledger_webhook_state", "accountledger_delivery_backlog_events", "accountledger_delivery_oldest_age_seconds",
	"accountledger_delivery_in_flight_requests", "accountledger_delivery_lanes", "accountledger_delivery_blocked_lanes",
	"accountledger_delivery_dead_letters", "accountledger_delivery_breaker_open", "accountledger_delivery_duplicates_bound_events",
}

// watch adds to m where l stands. l is open until m is asked no more.
func (m *metrics) watch(ctx context.Context, l *ledger) error {
	first, err := l.log.Head(ctx)
	if err != nil {
		return err
	}
	g := &gauges{ledger: l, metrics: m, first: first, descs: map[string]*prometheus.Desc{}}
	for _, name := range lookedUp {
		row := rowOf(name)
		g.descs[name] = prometheus.NewDesc(row.name, row.meaning, row.labels, nil)
	}
	return m.registry.Register(g)
}

// Describe is prometheus.Collector's.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range g.descs {
		ch <- d
	}
}

// Collect is prometheus.Collector's.
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

// scrape is one time that somebody asks.
type scrape struct {
	*gauges
	ctx      context.Context
	ch       chan<- prometheus.Metric
	recorded map[eventstore.Position]time.Time
}

func (s *scrape) tell(name string, value float64, labels ...string) {
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
	s.tell("accountledger_log_position", float64(head))
	s.tell("accountledger_ready", number(s.ledger.views.Accounts().Position() >= s.first))
	cache := s.ledger.ledger.CacheStats()
	s.tell("accountledger_account_cache_requests_total", float64(cache.Hits), "hit")
	s.tell("accountledger_account_cache_requests_total", float64(cache.Misses), "miss")
	s.tell("accountledger_account_cache_accounts", float64(cache.Accounts))
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
		s.tell("accountledger_file_size_bytes", float64(size), name)
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(string(s.ledger.dir), &disk); err != nil {
		return fmt.Errorf("space left: %w", err)
	}
	s.tell("accountledger_disk_free_bytes", float64(disk.Bavail)*float64(disk.Bsize))
	return nil
}

func (s *scrape) views() error {
	all, err := s.ledger.views.Status(s.ctx)
	if err != nil {
		return err
	}
	for _, v := range all {
		s.tell("accountledger_view_position", float64(v.Position), v.Name)
		s.tell("accountledger_view_lag_events", float64(v.Lag), v.Name)
		s.tell("accountledger_view_parked_streams", float64(len(v.Parked)), v.Name)
		var missing eventstore.Position
		if v.Lag > 0 {
			missing = v.Position + 1
		}
		if err := s.tellAge("accountledger_view_lag_seconds", missing, v.Name); err != nil {
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
	return s.tellAge("accountledger_erasure_oldest_age_seconds", oldest)
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
	s.tell("accountledger_schedule_lag_seconds", late.Seconds())
	return nil
}

func (s *scrape) deliveries() error {
	// Who was attempted before it is known who is there, and is not there, was
	// deleted.
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
		s.tell("accountledger_webhook_state", 1, id, string(f.State))
		s.tell("accountledger_delivery_backlog_events", float64(f.Backlog), id)
		s.tell("accountledger_delivery_in_flight_requests", float64(f.InFlight), id)
		s.tell("accountledger_delivery_lanes", float64(f.Lanes), id)
		s.tell("accountledger_delivery_blocked_lanes", float64(f.Blocked), id)
		s.tell("accountledger_delivery_dead_letters", float64(f.DeadLetters), id)
		s.tell("accountledger_delivery_breaker_open", number(f.BreakerOpen), id)
		s.tell("accountledger_delivery_duplicates_bound_events", float64(f.Duplicates), id)
		if err := s.tellAge("accountledger_delivery_oldest_age_seconds", f.Oldest, id); err != nil {
			return err
		}
		s.metrics.attemptedHooks.LoadOrStore(id, nil) // with nothing, so far
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

// tellAge tells how long ago the event at a position was recorded; 0 for no
// position. While something stands still its event is read once.
func (s *scrape) tellAge(name string, p eventstore.Position, labels ...string) error {
	if p == 0 {
		s.tell(name, 0, labels...)
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
	s.tell(name, max(0, time.Since(at)).Seconds(), labels...)
	return nil
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
