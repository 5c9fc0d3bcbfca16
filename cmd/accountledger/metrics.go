package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"accountledger/domain"
	"accountledger/httpapi"
	"accountledger/projections/scheduler"
	"accountledger/projections/webhooks"
)

// metric is a row of metricTable.
type metric struct {
	name    string
	kind    string // counter, gauge or histogram
	labels  []string
	meaning string // a sentence
	buckets []float64
}

const (
	counter   = "counter"
	gauge     = "gauge"
	histogram = "histogram"
)

// Bounds of the histograms, in seconds: of what happens in this process, of
// what waits for others, which may be down for days, and counts.
var (
	quick = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
	slow  = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 300, 3600, 86400}
	many  = []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}
)

// metricTable is every metric of the ledger's own; docs, dashboard and alert
// rules are held to it. Label values are few and none is a client's or about
// an account: a webhook's id is the largest set.
var metricTable = []metric{
	{"accountledger_build_info", gauge, []string{"version", "go"}, "Always 1; what is running.", nil},
	{"accountledger_ready", gauge, nil, "1 once queries answer what was in the log at the start, as /readyz says it.", nil},

	{"accountledger_http_requests_total", counter, []string{"method", "route", "code"}, "Requests answered, by the pattern of their path and the status.", nil},
	{"accountledger_http_request_duration_seconds", histogram, []string{"method", "route"}, "How long requests took; a stream or a long poll, until its end.", quick},
	{"accountledger_http_requests_in_flight", gauge, nil, "Requests being answered.", nil},
	{"accountledger_access_refused_total", counter, []string{"reason"}, "Requests whose caller was not let in.", nil},

	{"accountledger_commands_total", counter, []string{"command", "outcome"}, "Commands, and what came of them: changed, unchanged, canceled, failed, or the code of a refusal.", nil},
	{"accountledger_command_duration_seconds", histogram, []string{"command"}, "How long commands took, with all their waiting.", quick},
	{"accountledger_account_cache_requests_total", counter, []string{"result"}, "Look-ups in the cache of folded accounts: hit or miss.", nil},
	{"accountledger_account_cache_accounts", gauge, nil, "Accounts in that cache.", nil},

	{"accountledger_log_position", gauge, nil, "Position of the last event of the log.", nil},
	{"accountledger_log_appends_total", counter, []string{"outcome"}, "Appends: done, refused for a conflict or a claim, or failed.", nil},
	{"accountledger_log_commit_duration_seconds", histogram, nil, "How long transactions of the log took, until they were durable.", quick},
	{"accountledger_log_commit_wait_seconds", histogram, nil, "How long the first append of a transaction waited for the one before.", quick},
	{"accountledger_log_commit_appends", histogram, nil, "Appends that shared a transaction.", many},
	{"accountledger_log_commit_events", histogram, nil, "Events of a transaction.", many},
	{"accountledger_file_size_bytes", gauge, []string{"file"}, "Size of a file of the data directory, with its write-ahead log.", nil},
	{"accountledger_disk_free_bytes", gauge, nil, "Space that is left where the data directory is.", nil},

	{"accountledger_view_position", gauge, []string{"view"}, "Position of the last event a view has applied.", nil},
	{"accountledger_view_lag_events", gauge, []string{"view"}, "Events of the log that a view has not applied.", nil},
	{"accountledger_view_lag_seconds", gauge, []string{"view"}, "Age of the oldest event that a view has not applied; 0 if there is none.", nil},
	{"accountledger_view_parked_streams", gauge, []string{"view"}, "Streams that wait because an event of theirs could not be applied.", nil},
	{"accountledger_erasure_oldest_age_seconds", gauge, nil, "Age of the oldest erasure that is not completed; 0 if there is none.", nil},

	{"accountledger_schedules_total", counter, []string{"outcome"}, "Schedules whose turn came: executed, vain or failed.", nil},
	{"accountledger_schedule_delay_seconds", histogram, nil, "How long after their due time schedules were executed.", slow},
	{"accountledger_schedule_lag_seconds", gauge, nil, "How long the earliest planned schedule is overdue; 0 if none is.", nil},

	{"accountledger_webhook_state", gauge, []string{"webhook", "state"}, "Always 1; the state a webhook is in.", nil},
	{"accountledger_delivery_backlog_events", gauge, []string{"webhook"}, "Events of the log that are not settled for a webhook, wanted by it or not.", nil},
	{"accountledger_delivery_oldest_age_seconds", gauge, []string{"webhook"}, "Age of the oldest event that is not settled, or that an account's lane waits with; 0 if there is none.", nil},
	{"accountledger_delivery_in_flight_requests", gauge, []string{"webhook"}, "Requests under way.", nil},
	{"accountledger_delivery_lanes", gauge, []string{"webhook"}, "Accounts that wait because their next event was refused.", nil},
	{"accountledger_delivery_blocked_lanes", gauge, []string{"webhook"}, "Accounts whose next event was given up and must not be skipped.", nil},
	{"accountledger_delivery_dead_letters", gauge, []string{"webhook"}, "Events given up.", nil},
	{"accountledger_delivery_breaker_open", gauge, []string{"webhook"}, "1 while the receiver is left alone after failures.", nil},
	{"accountledger_delivery_duplicates_bound_events", gauge, []string{"webhook"}, "Events that would be sent once more after a crash now, at most.", nil},
	{"accountledger_delivery_attempts_total", counter, []string{"webhook", "outcome"}, "Attempts to deliver an event: delivered; refused or aborted, which is about the event; unavailable or disabled, about the receiver; internal, a fault of the ledger.", nil},
	{"accountledger_delivery_latency_seconds", histogram, []string{"webhook"}, "Time from an event's recording until the receiver has taken it, in its turn.", slow},
}

// rowOf is the table's row of a name. That there is none is a bug.
func rowOf(name string) metric {
	i := slices.IndexFunc(metricTable, func(m metric) bool { return m.name == name })
	if i < 0 {
		panic("metrics: no row for " + name)
	}
	return metricTable[i]
}

// metrics are the figures of a ledger. This is the one place that knows of
// Prometheus: the packages have hooks and figures of plain numbers, and here,
// where they are wired, those become metrics.
type metrics struct {
	registry *prometheus.Registry

	requests, refusals, commands, appends *prometheus.CounterVec
	attempts, executions                  *prometheus.CounterVec
	requestTime, commandTime, latency     *prometheus.HistogramVec
	commitTime, commitWait, commitAppends *prometheus.HistogramVec
	commitEvents, executionDelay          *prometheus.HistogramVec
	inFlight                              *prometheus.GaugeVec

	attemptedHooks sync.Map // ids of the webhooks that attempts and latency have
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	counters := func(name string) *prometheus.CounterVec {
		row := rowOf(name)
		return registered(m, prometheus.NewCounterVec(prometheus.CounterOpts{Name: row.name, Help: row.meaning}, row.labels))
	}
	gauges := func(name string) *prometheus.GaugeVec {
		row := rowOf(name)
		return registered(m, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: row.name, Help: row.meaning}, row.labels))
	}
	histograms := func(name string) *prometheus.HistogramVec {
		row := rowOf(name)
		return registered(m, prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: row.name, Help: row.meaning, Buckets: row.buckets}, row.labels))
	}
	m.requests = counters("accountledger_http_requests_total")
	m.requestTime = histograms("accountledger_http_request_duration_seconds")
	m.inFlight = gauges("accountledger_http_requests_in_flight")
	m.refusals = counters("accountledger_access_refused_total")
	m.commands = counters("accountledger_commands_total")
	m.commandTime = histograms("accountledger_command_duration_seconds")
	m.appends = counters("accountledger_log_appends_total")
	m.commitTime = histograms("accountledger_log_commit_duration_seconds")
	m.commitWait = histograms("accountledger_log_commit_wait_seconds")
	m.commitAppends = histograms("accountledger_log_commit_appends")
	m.commitEvents = histograms("accountledger_log_commit_events")
	m.executions = counters("accountledger_schedules_total")
	m.executionDelay = histograms("accountledger_schedule_delay_seconds")
	m.attempts = counters("accountledger_delivery_attempts_total")
	m.latency = histograms("accountledger_delivery_latency_seconds")

	// A counter that begins with its first event has no rate then.
	zero(m.refusals, httpapi.Refusals...)
	zero(m.appends, appendDone, appendRefused, appendFailed)
	zero(m.executions, scheduler.OutcomeExecuted, scheduler.OutcomeVain, scheduler.OutcomeFailed)
	m.inFlight.WithLabelValues().Set(0)
	gauges("accountledger_build_info").WithLabelValues(version(), runtime.Version()).Set(1)
	return m
}

func registered[C prometheus.Collector](m *metrics, c C) C {
	m.registry.MustRegister(c)
	return c
}

func zero(c *prometheus.CounterVec, values ...string) {
	for _, v := range values {
		c.WithLabelValues(v)
	}
}

// handler answers scrapes.
func (m *metrics) handler(logger *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		// What cannot be found out is missing, and the rest is there.
		ErrorHandling: promhttp.ContinueOnError, Registry: m.registry,
		DisableCompression: true,
	})
}

// counted is next with its requests under way counted.
func (m *metrics) counted(next http.Handler) http.Handler {
	inFlight := m.inFlight.WithLabelValues()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inFlight.Inc()
		defer inFlight.Dec()
		next.ServeHTTP(w, r)
	})
}

func (m *metrics) answered(a httpapi.Answered) {
	m.requests.WithLabelValues(a.Method, a.Route, fmt.Sprint(a.Status)).Inc()
	m.requestTime.WithLabelValues(a.Method, a.Route).Observe(a.Duration.Seconds())
}

func (m *metrics) refused(reason string) { m.refusals.WithLabelValues(reason).Inc() }

func (m *metrics) executed(x domain.Executed) {
	m.commands.WithLabelValues(x.Command, x.Outcome).Inc()
	m.commandTime.WithLabelValues(x.Command).Observe(x.Duration.Seconds())
}

// What came of an append.
const (
	appendDone    = "done"
	appendRefused = "refused"
	appendFailed  = "failed"
)

func (m *metrics) committed(t transaction) {
	m.commitWait.WithLabelValues().Observe(t.Waited.Seconds())
	m.commitTime.WithLabelValues().Observe(t.Took.Seconds())
	m.commitAppends.WithLabelValues().Observe(float64(t.Appends))
	if t.Err != nil {
		m.appends.WithLabelValues(appendFailed).Add(float64(t.Appends))
		return
	}
	m.commitEvents.WithLabelValues().Observe(float64(t.Events))
	m.appends.WithLabelValues(appendDone).Add(float64(t.Appends - t.Refused))
	m.appends.WithLabelValues(appendRefused).Add(float64(t.Refused))
}

func (m *metrics) scheduled(x scheduler.Execution) {
	m.executions.WithLabelValues(x.Outcome).Inc()
	if x.Outcome == scheduler.OutcomeExecuted {
		m.executionDelay.WithLabelValues().Observe(x.Late.Seconds())
	}
}

func (m *metrics) attempted(a webhooks.Attempted) {
	m.attempts.WithLabelValues(a.WebhookID, a.Outcome).Inc()
	m.attemptedHooks.LoadOrStore(a.WebhookID, nil)
	if a.InTurn && a.Outcome == webhooks.OutcomeDelivered {
		m.latency.WithLabelValues(a.WebhookID).Observe(a.Age.Seconds())
	}
}
