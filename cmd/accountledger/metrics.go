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

// Bounds of the histograms: seconds of work in this process, seconds of work that
// waits for other systems, which may be down for days, and counts.
var (
	quick = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
	slow  = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 300, 3600, 86400}
	many  = []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}
)

// metricTable lists all metrics of the ledger. Tests compare docs, dashboard and
// alert rules with it. Labels have few values, none of them chosen by a client or
// about an account; the largest set are the ids of webhooks.
var metricTable = []metric{
	{"accountledger_build_info", gauge, []string{"version", "go"}, "Always 1; the labels identify the running version.", nil},
	{"accountledger_ready", gauge, nil, "1 if queries include all events that were in the log at the start, as in /readyz.", nil},

	{"accountledger_http_requests_total", counter, []string{"method", "route", "code"}, "Requests answered, by path pattern and status.", nil},
	{"accountledger_http_request_duration_seconds", histogram, []string{"method", "route"}, "Duration of requests; streams and long polls count until they end.", quick},
	{"accountledger_http_requests_in_flight", gauge, nil, "Requests in flight.", nil},
	{"accountledger_access_refused_total", counter, []string{"reason"}, "Requests whose caller was not admitted, by reason.", nil},

	{"accountledger_commands_total", counter, []string{"command", "outcome"}, "Commands by outcome: changed, unchanged, canceled, failed, or the code of the refusal.", nil},
	{"accountledger_command_duration_seconds", histogram, []string{"command"}, "Duration of commands, including waits.", quick},
	{"accountledger_account_cache_requests_total", counter, []string{"result"}, "Lookups in the account cache, by result: hit or miss.", nil},
	{"accountledger_account_cache_accounts", gauge, nil, "Accounts in the account cache.", nil},

	{"accountledger_log_position", gauge, nil, "Position of the last event in the log.", nil},
	{"accountledger_log_appends_total", counter, []string{"outcome"}, "Appends by outcome: done, refused because of a conflict or a claim, or failed.", nil},
	{"accountledger_log_commit_duration_seconds", histogram, nil, "Duration of the log's transactions, until they were durable.", quick},
	{"accountledger_log_commit_wait_seconds", histogram, nil, "Time the first append of a transaction waited in the queue.", quick},
	{"accountledger_log_commit_appends", histogram, nil, "Appends per transaction.", many},
	{"accountledger_log_commit_events", histogram, nil, "Events per transaction.", many},
	{"accountledger_file_size_bytes", gauge, []string{"file"}, "Size of a file of the data directory, including its write-ahead log.", nil},
	{"accountledger_disk_free_bytes", gauge, nil, "Free space on the file system of the data directory.", nil},

	{"accountledger_view_position", gauge, []string{"view"}, "Position of the last event that the view has applied.", nil},
	{"accountledger_view_lag_events", gauge, []string{"view"}, "Events in the log that the view has not applied.", nil},
	{"accountledger_view_lag_seconds", gauge, []string{"view"}, "Age of the oldest event that the view has not applied; 0 if there is none.", nil},
	{"accountledger_view_parked_streams", gauge, []string{"view"}, "Streams that wait because the view could not apply one of their events.", nil},
	{"accountledger_erasure_oldest_age_seconds", gauge, nil, "Age of the oldest erasure that is not completed; 0 if there is none.", nil},

	{"accountledger_schedules_total", counter, []string{"outcome"}, "Due schedules by outcome: executed, vain (had no effect) or failed.", nil},
	{"accountledger_schedule_delay_seconds", histogram, nil, "Delay between the due time of a schedule and its execution.", slow},
	{"accountledger_schedule_lag_seconds", gauge, nil, "Time since the earliest planned schedule was due; 0 if none is due.", nil},

	{"accountledger_webhook_state", gauge, []string{"webhook", "state"}, "Always 1; the label has the state of the webhook.", nil},
	{"accountledger_delivery_backlog_events", gauge, []string{"webhook"}, "Events in the log that are not settled for the webhook, including those it does not select.", nil},
	{"accountledger_delivery_oldest_age_seconds", gauge, []string{"webhook"}, "Age of the oldest event that is not settled or that holds up an account; 0 if there is none.", nil},
	{"accountledger_delivery_in_flight_requests", gauge, []string{"webhook"}, "Requests to the receiver in flight.", nil},
	{"accountledger_delivery_lanes", gauge, []string{"webhook"}, "Accounts that wait because the receiver refused their next event.", nil},
	{"accountledger_delivery_blocked_lanes", gauge, []string{"webhook"}, "Accounts that wait because their next event was given up and must not be skipped.", nil},
	{"accountledger_delivery_dead_letters", gauge, []string{"webhook"}, "Events given up.", nil},
	{"accountledger_delivery_breaker_open", gauge, []string{"webhook"}, "1 while the ledger pauses delivery after failures of the receiver.", nil},
	{"accountledger_delivery_duplicates_bound_events", gauge, []string{"webhook"}, "Upper bound of the events that would be delivered again after a crash now.", nil},
	{"accountledger_delivery_attempts_total", counter, []string{"webhook", "outcome"}, "Delivery attempts by outcome: delivered; refused or aborted, a problem of the event; unavailable or disabled, of the receiver; internal, of the ledger.", nil},
	{"accountledger_delivery_latency_seconds", histogram, []string{"webhook"}, "Time from the recording of an event to its delivery, without resends and replays.", slow},
}

// rowOf returns the row of a metric. It panics if there is none.
func rowOf(name string) metric {
	i := slices.IndexFunc(metricTable, func(m metric) bool { return m.name == name })
	if i < 0 {
		panic("metrics: no row for " + name)
	}
	return metricTable[i]
}

// metrics are the Prometheus metrics of a ledger. The other packages do not know
// Prometheus: they have hooks and statistics of plain numbers.
type metrics struct {
	registry *prometheus.Registry

	requests, refusals, commands, appends *prometheus.CounterVec
	attempts, executions                  *prometheus.CounterVec
	requestTime, commandTime, latency     *prometheus.HistogramVec
	commitTime, commitWait, commitAppends *prometheus.HistogramVec
	commitEvents, executionDelay          *prometheus.HistogramVec
	inFlight                              *prometheus.GaugeVec

	attemptedHooks sync.Map // ids of the webhooks in attempts and latency
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

	// A counter that does not exist before its first event has no rate for it.
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

// handler returns the handler of scrapes.
func (m *metrics) handler(logger *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		// If a source fails, report the other metrics.
		ErrorHandling: promhttp.ContinueOnError, Registry: m.registry,
		DisableCompression: true,
	})
}

// counted returns next with a count of its requests in flight.
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

// Outcomes of an append.
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
	if a.Scheduled && a.Outcome == webhooks.OutcomeDelivered {
		m.latency.WithLabelValues(a.WebhookID).Observe(a.Age.Seconds())
	}
}
