package webhooks

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/webhooks/transport"
	"accountledger/projections/webhooks/wire"
)

// ReplayFilter selects the events of a replay: those in (After, UpTo] that match
// all other fields.
type ReplayFilter struct {
	After   eventstore.Position `json:"after" doc:"Only events after this log position."`
	UpTo    eventstore.Position `json:"upTo" doc:"Only events up to and including this log position."`
	Since   time.Time           `json:"since,omitzero" doc:"Only events recorded at or after this time; in a recovery, deliveries that failed or were given up at or after it."`
	Until   time.Time           `json:"until,omitzero" doc:"Only events recorded before this time."`
	Events  []string            `json:"events,omitzero" doc:"Only these public event names or prefixes."`
	Sub     string              `json:"sub,omitzero" doc:"Only events of this account."`
	Missing bool                `json:"missing,omitzero" doc:"Only events without a successful attempt."`
	Recover bool                `json:"recover,omitzero" doc:"Only events whose attempts all failed, and dead letters."`
}

// The states of a replay.
const (
	ReplayRunning   = "running"
	ReplayDone      = "done"
	ReplayCancelled = "cancelled"
)

// Replay is a job that sends events once more, with one attempt each. It yields to
// regular deliveries, continues after a restart, and does not count for the
// webhook's health.
type Replay struct {
	ReplayID    string              `json:"replayId" doc:"The replay's id; also the header webhook-replay of its deliveries."`
	WebhookID   string              `json:"webhookId" doc:"The webhook's id."`
	Filter      ReplayFilter        `json:"filter" doc:"Which events the replay sends."`
	State       string              `json:"state" doc:"running, done or cancelled."`
	Position    eventstore.Position `json:"position" doc:"The log position the replay has reached."`
	Delivered   int64               `json:"delivered" doc:"Number of deliveries that succeeded."`
	Failed      int64               `json:"failed" doc:"Number of deliveries that failed. A replay sends each event once."`
	CreatedTime time.Time           `json:"createdTime" doc:"When the replay was requested."`
	EndedTime   time.Time           `json:"endedTime,omitzero" doc:"When the replay ended."`
}

// replays runs replays. It continues those that had not ended when a run starts.
type replays struct {
	*engine

	mu   sync.Mutex
	jobs map[string]context.CancelFunc // by replay: cancels it
}

// StartReplay starts a replay under an id. If the same replay is started again,
// it is returned as it is now. UpTo 0 stands for the log's head. A webhook has one
// running replay, else the error has CodeReplayRunning. A replay makes progress
// while Run runs.
func (p *replays) StartReplay(ctx context.Context, id, replayID string, f ReplayFilter) (Replay, error) {
	if _, err := p.ledger.existing(ctx, id); err != nil {
		return Replay{}, err
	}
	job := Replay{ReplayID: replayID, WebhookID: id, State: ReplayRunning, CreatedTime: p.config.Now().UTC().Truncate(time.Microsecond)}
	var err error
	if job.Filter, err = p.bounded(ctx, f); err != nil {
		return Replay{}, err
	}
	job.Position = job.Filter.After
	if job, err = p.store.putReplay(ctx, job); err != nil {
		return Replay{}, err
	}
	if r := p.current.Load(); r != nil && job.State == ReplayRunning {
		p.start(r, job)
	}
	return job, nil
}

// bounded validates f and turns the times of recording into positions.
func (p *replays) bounded(ctx context.Context, f ReplayFilter) (ReplayFilter, error) {
	head, err := p.config.Log.Head(ctx)
	if err != nil {
		return f, fmt.Errorf("webhooks: replay: %w", err)
	}
	var faults []domain.Fault
	for i, name := range f.Events {
		if !domain.Selectable(name) {
			faults = append(faults, domain.Fault{Pointer: fmt.Sprintf("/events/%d", i), Detail: "must name public events, or a prefix of some"})
		}
	}
	if f.UpTo == 0 {
		f.UpTo = head
	}
	if f.After < 0 || f.After > head {
		faults = append(faults, domain.Fault{Pointer: "/after", Detail: "must be a position of the log"})
	}
	if f.UpTo < 0 || f.UpTo > head {
		faults = append(faults, domain.Fault{Pointer: "/upTo", Detail: "must be a position of the log"})
	}
	if len(faults) > 0 {
		return f, faulty(faults...)
	}
	if !f.Since.IsZero() && !f.Recover {
		from, err := p.StartingAt(ctx, f.Since)
		if err != nil {
			return f, err
		}
		f.After = max(f.After, from)
	}
	if !f.Until.IsZero() {
		to, err := p.StartingAt(ctx, f.Until)
		if err != nil {
			return f, err
		}
		f.UpTo = min(f.UpTo, to)
	}
	return f, nil
}

// Replays lists a webhook's replays, newest first, at most 1000.
func (p *replays) Replays(ctx context.Context, id string) ([]Replay, error) {
	if _, err := p.ledger.existing(ctx, id); err != nil {
		return nil, err
	}
	return p.store.replays(ctx, `e.id = ? ORDER BY created DESC, r.id LIMIT 1000`, id)
}

// Replay returns one replay, or an error with CodeReplayNotFound.
func (p *replays) Replay(ctx context.Context, id, replayID string) (Replay, error) {
	if _, err := p.ledger.existing(ctx, id); err != nil {
		return Replay{}, err
	}
	all, err := p.store.replays(ctx, `e.id = ? AND r.id = ?`, id, replayID)
	if err != nil {
		return Replay{}, err
	}
	if len(all) == 0 {
		return Replay{}, &domain.Error{Code: domain.CodeReplayNotFound, Detail: "The webhook has no such replay."}
	}
	return all[0], nil
}

// CancelReplay ends a replay. It does not abort the requests in flight. A replay
// that has ended stays as it is.
func (p *replays) CancelReplay(ctx context.Context, id, replayID string) (Replay, error) {
	if _, err := p.Replay(ctx, id, replayID); err != nil {
		return Replay{}, err
	}
	if err := p.store.endReplay(ctx, replayID, ReplayCancelled, p.config.Now()); err != nil {
		return Replay{}, err
	}
	p.mu.Lock()
	if cancel := p.jobs[replayID]; cancel != nil {
		cancel()
	}
	p.mu.Unlock()
	return p.Replay(ctx, id, replayID)
}

// resume continues the replays that have not ended.
func (p *replays) resume(r *run) error {
	all, err := p.store.replays(r.ctx, `r.state = ?`, ReplayRunning)
	for _, job := range all {
		p.start(r, job)
	}
	return err
}

func (p *replays) start(r *run, job Replay) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.jobs[job.ReplayID] != nil {
		return
	}
	ctx, cancel := context.WithCancel(r.ctx)
	spawned := r.spawn(func() {
		defer cancel()
		p.replay(ctx, job)
		p.mu.Lock()
		delete(p.jobs, job.ReplayID)
		p.mu.Unlock()
	})
	if !spawned {
		cancel()
		return
	}
	p.jobs[job.ReplayID] = cancel
}

// replayStep is after how many events the progress of a replay is stored. A crash
// makes it send as many events twice.
const replayStep = 64

// replay works on a replay until it or ctx is done. It retries after failures of
// the ledger.
func (p *replays) replay(ctx context.Context, job Replay) {
	var s *sender
	defer func() {
		if s != nil {
			s.close()
		}
	}()
	pace := pace{}
	for pause := time.Second; ctx.Err() == nil && job.Position < job.Filter.UpTo; {
		err := func() error {
			conf, err := p.ledger.existing(ctx, job.WebhookID)
			if err != nil {
				return err
			}
			if s == nil || s.conf.Revision != conf.Revision {
				if s != nil {
					s.close()
				}
				if s, err = p.senders.open(ctx, conf); err != nil {
					return err
				}
				pace = paceOf(conf)
			}
			items, upTo, err := p.find(ctx, s, job)
			if err != nil {
				return err
			}
			delivered, failed := p.send(ctx, s, job, items, &pace)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			job.Position, job.Delivered, job.Failed = upTo, job.Delivered+delivered, job.Failed+failed
			return p.store.saveReplay(ctx, job)
		}()
		switch {
		case err == nil:
			pause = time.Second
		case domain.CodeOf(err) == domain.CodeWebhookNotFound:
			return
		case errors.Is(err, eventstore.ErrTampered):
			if r := p.current.Load(); r != nil {
				r.fail(err)
			}
			return
		case ctx.Err() == nil:
			p.config.Logger.ErrorContext(ctx, "webhook replay failed inside the ledger, retrying", "webhook", job.WebhookID, "replay", job.ReplayID, "err", err)
			sleep(ctx, pause)
			pause = min(2*pause, time.Minute)
		}
	}
	if ctx.Err() == nil {
		p.sync(ctx, job.WebhookID) // a client that sees the end must see the results
		retry(ctx, p.config.Logger, "replay", func() error { return p.store.endReplay(ctx, job.ReplayID, ReplayDone, p.config.Now()) })
	}
}

// item is a public event to resend.
type item struct {
	rec  eventstore.Recorded
	part int
}

// find returns what a replay sends next, and the position up to which it looked.
func (p *replays) find(ctx context.Context, s *sender, job Replay) (items []item, upTo eventstore.Position, err error) {
	f := job.Filter
	if f.Recover {
		return p.findFailed(ctx, job)
	}
	for page, err := range p.config.Log.Subscribe(ctx, job.Position) {
		if err != nil {
			return nil, 0, fmt.Errorf("webhooks: replay: %w", err)
		}
		arrived, oldest := map[place]bool{}, eventstore.Position(0)
		if f.Missing {
			if arrived, oldest, err = p.store.arrived(ctx, job.WebhookID, job.Position, page[len(page)-1].Position); err != nil {
				return nil, 0, fmt.Errorf("webhooks: replay: %w", err)
			}
		}
		for _, rec := range page {
			if rec.Position > f.UpTo || len(items) >= replayStep {
				break
			}
			upTo = rec.Position
			if f.Sub != "" && rec.Stream != domain.AccountStream(f.Sub) || rec.Position < oldest {
				continue
			}
			messages, err := newEvent(rec).open(s.opener, s.now())
			if err != nil {
				return nil, 0, err
			}
			for _, m := range messages {
				if s.selects(m) == nil || len(f.Events) > 0 && m.Select(f.Events) == nil || arrived[place{rec.Position, m.Part}] {
					continue
				}
				if f.Missing {
					if settled, err := p.settled(ctx, job.WebhookID, rec.Stream, rec.Position); err != nil {
						return nil, 0, err
					} else if !settled {
						continue // its regular delivery follows
					}
				}
				items = append(items, item{rec, m.Part})
			}
		}
		return items, max(upTo, job.Position+1), nil
	}
	return nil, 0, ctx.Err()
}

// findFailed is find for a replay of failed events.
func (p *replays) findFailed(ctx context.Context, job Replay) (items []item, upTo eventstore.Position, err error) {
	p.sync(ctx, job.WebhookID)
	places, err := p.store.unarrived(ctx, job.WebhookID, job.Filter, job.Position)
	if err != nil {
		return nil, 0, fmt.Errorf("webhooks: recover: %w", err)
	}
	upTo = job.Filter.UpTo
	var rec eventstore.Recorded
	for _, at := range places {
		if rec.Position != at.position {
			if len(items) >= replayStep {
				return items, rec.Position, nil
			}
			if rec, err = p.recordAt(ctx, at.position); err != nil {
				return nil, 0, err
			}
		}
		items = append(items, item{rec, at.part})
	}
	return items, upTo, nil
}

// send sends items, one at a time per account, in the order of the log.
func (p *replays) send(ctx context.Context, s *sender, job Replay, items []item, own *pace) (arrived, failed int64) {
	limit := requestLimit(s.conf, p.config.InFlight)
	header, trigger := http.Header{wire.HeaderReplay: {job.ReplayID}}, triggerReplay
	if job.Filter.Recover {
		trigger = triggerRecover
	}
	free := make(chan struct{}, max(1, limit/4)) // the same share as lanes have
	var all sync.WaitGroup
	var mu sync.Mutex // guards the counts and own
	for len(items) > 0 && ctx.Err() == nil {
		stream := items[0].rec.Stream
		mine := slices.DeleteFunc(slices.Clone(items), func(i item) bool { return i.rec.Stream != stream })
		items = slices.DeleteFunc(items, func(i item) bool { return i.rec.Stream == stream })
		free <- struct{}{}
		all.Go(func() {
			defer func() { <-free }()
			for _, i := range mine {
				if !p.acquire(ctx, job.WebhookID, &mu, own) {
					return
				}
				result := s.resend(i.rec, i.part, header)
				if result.Scope == unwanted {
					continue
				}
				if result.Scope == internal {
					p.config.Logger.ErrorContext(ctx, "webhook delivery failed inside the ledger", "webhook", job.WebhookID, "position", i.rec.Position, "err", result.err)
				} else if err := p.resent(context.WithoutCancel(ctx), job.WebhookID, result, trigger); err != nil {
					p.config.Logger.ErrorContext(ctx, "webhook delivery could not be stored", "webhook", job.WebhookID, "err", err)
				}
				mu.Lock()
				if result.Scope == transport.Delivered {
					arrived++
				} else {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return arrived, failed
}

// acquire waits until a replay may send one request: no regular delivery is
// ready, and the webhook's rate limit allows it. It reports false if ctx is done.
// own is the replay's pace for a webhook without a worker; mu guards it.
func (p *replays) acquire(ctx context.Context, id string, mu *sync.Mutex, own *pace) bool {
	for ctx.Err() == nil {
		var pause time.Duration
		if w := p.worker(id); w == nil || !w.call(ctx, func() { pause = w.spare() }) {
			mu.Lock()
			now := p.config.Now()
			if pause = own.next(now).Sub(now); pause == 0 {
				own.take(now)
			}
			mu.Unlock()
		}
		if pause == 0 {
			return ctx.Err() == nil
		}
		sleep(ctx, pause)
	}
	return false
}

// putReplay stores a new replay and returns it, or the present one with its id.
func (s *store) putReplay(ctx context.Context, job Replay) (Replay, error) {
	filter, err := json.Marshal(job.Filter)
	if err != nil {
		return job, err
	}
	err = s.update(ctx, func(tx *sql.Tx) error {
		var no int64
		var running bool
		var known []byte
		err := tx.QueryRowContext(ctx, `SELECT no, EXISTS (SELECT 1 FROM replay WHERE endpoint = no AND state = ?2), (SELECT filter FROM replay WHERE id = ?3)
			FROM endpoint WHERE id = ?1`, job.WebhookID, ReplayRunning, job.ReplayID).Scan(&no, &running, &known)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return errNotFound()
		case err != nil:
			return err
		case known != nil:
			return nil
		case running:
			return &domain.Error{Code: domain.CodeReplayRunning, Detail: "The webhook has a replay that has not ended."}
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO replay (id, endpoint, filter, position, last, state, created) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			job.ReplayID, no, string(filter), job.Position, job.Filter.UpTo, job.State, micro(job.CreatedTime))
		return err
	})
	if err != nil {
		if domain.CodeOf(err) == "" {
			err = fmt.Errorf("webhooks: replay: %w", err)
		}
		return job, err
	}
	all, err := s.replays(ctx, `e.id = ? AND r.id = ?`, job.WebhookID, job.ReplayID)
	if err != nil {
		return job, err
	}
	if len(all) == 0 || !all[0].Filter.same(job.Filter) {
		return job, &domain.Error{Code: domain.CodeIdempotencyKeyReused, Detail: "There is another replay with this id."}
	}
	return all[0], nil
}

// same reports whether f and g select the same, apart from the end of the log.
func (f ReplayFilter) same(g ReplayFilter) bool {
	return f.After == g.After && f.Since.Equal(g.Since) && f.Until.Equal(g.Until) && slices.Equal(f.Events, g.Events) && f.Sub == g.Sub &&
		f.Missing == g.Missing && f.Recover == g.Recover
}

// replays reads the replays that match a condition on the tables replay r and
// endpoint e.
func (s *store) replays(ctx context.Context, condition string, args ...any) ([]Replay, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT r.id, e.id, filter, position, sent, failed, r.state, created, ended
		FROM replay r JOIN endpoint e ON e.no = r.endpoint WHERE `+condition, args...)
	if err != nil {
		return nil, fmt.Errorf("webhooks: replays: %w", err)
	}
	defer rows.Close()
	all := []Replay{}
	for rows.Next() {
		var r Replay
		var filter []byte
		var created, ended int64
		if err := rows.Scan(&r.ReplayID, &r.WebhookID, &filter, &r.Position, &r.Delivered, &r.Failed, &r.State, &created, &ended); err != nil {
			return nil, fmt.Errorf("webhooks: replays: %w", err)
		}
		if err := json.Unmarshal(filter, &r.Filter); err != nil {
			return nil, fmt.Errorf("webhooks: replays: %w", err)
		}
		r.CreatedTime, r.EndedTime = fromMicro(created), fromMicro(ended)
		all = append(all, r)
	}
	return all, rows.Err()
}

// saveReplay stores the progress of a replay.
func (s *store) saveReplay(ctx context.Context, job Replay) error {
	_, err := s.write.ExecContext(ctx, `UPDATE replay SET position = ?, sent = ?, failed = ? WHERE id = ?`, job.Position, job.Delivered, job.Failed, job.ReplayID)
	return err
}

// endReplay ends a replay unless it has ended.
func (s *store) endReplay(ctx context.Context, id, state string, now time.Time) error {
	_, err := s.write.ExecContext(ctx, `UPDATE replay SET state = ?, ended = ? WHERE id = ? AND state = ?`, state, micro(now), id, ReplayRunning)
	return err
}

// arrived returns which public events in (after, upTo] have a successful attempt,
// and the oldest position with a stored attempt.
func (s *store) arrived(ctx context.Context, id string, after, upTo eventstore.Position) (map[place]bool, eventstore.Position, error) {
	rows, err := s.read.QueryContext(ctx, `WITH a AS (SELECT position, part, error FROM attempt WHERE endpoint = (SELECT no FROM endpoint WHERE id = ?))
		SELECT 0, 0, (SELECT coalesce(min(position), 0) FROM a) UNION ALL
		SELECT DISTINCT position, part, 0 FROM a WHERE error = '' AND position > ? AND position <= ?`, id, after, upTo)
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	all := map[place]bool{}
	var oldest eventstore.Position
	for rows.Next() {
		var at place
		var first eventstore.Position
		if err := rows.Scan(&at.position, &at.part, &first); err != nil {
			return nil, 0, err
		}
		all[at] = true
		oldest = max(oldest, first)
	}
	return all, oldest, rows.Err()
}

// unarrived returns the dead letters after a position, and the events there whose
// attempts all failed, the last one at f.Since or later.
func (s *store) unarrived(ctx context.Context, id string, f ReplayFilter, after eventstore.Position) ([]place, error) {
	rows, err := s.read.QueryContext(ctx, `WITH e AS (SELECT no FROM endpoint WHERE id = ?1), found AS (
			SELECT position, part FROM attempt WHERE endpoint = (SELECT no FROM e) AND position > ?2 AND position <= ?3
				GROUP BY position, part HAVING sum(error = '') = 0 AND max(time) >= ?4
			UNION SELECT position, part FROM dead_letter WHERE endpoint = (SELECT no FROM e) AND position > ?2 AND position <= ?3 AND time >= ?4)
		SELECT position, part FROM found ORDER BY position, part LIMIT 1000`, id, after, f.UpTo, micro(f.Since))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []place
	for rows.Next() {
		var at place
		if err := rows.Scan(&at.position, &at.part); err != nil {
			return nil, err
		}
		all = append(all, at)
	}
	return all, rows.Err()
}
