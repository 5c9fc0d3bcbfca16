package webhooks

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
	"accountledger/eventstore"
)

// StatusUnknown is of a webhook that was deleted: what of its last events it
// was sent is not remembered.
const StatusUnknown = "unknown"

// Disclosure is a public event of an account and a receiver that was told of
// it, or is to be.
//
// It is worked out from the log, the endpoint's configurations and how far its
// deliveries are: nothing is kept of accounts, so there is nothing an erasure
// would have to hunt for, and of an erased account the names in Data are only
// those its events still have.
type Disclosure struct {
	WebhookID     string              `json:"webhookId" doc:"The webhook that received the data."`
	URL           string              `json:"url" doc:"The endpoint's current or last URL, without its query."` // without its query, which may be secret
	Deleted       bool                `json:"deleted,omitzero" doc:"Whether the webhook has been deleted."`
	EventID       string              `json:"eventId" doc:"The public event's id."`
	Type          string              `json:"type" doc:"The name under which the event was sent."`
	Sequence      eventstore.Revision `json:"sequence" doc:"The account's revision."`
	Position      eventstore.Position `json:"position" doc:"The event's position in the log."`
	Time          time.Time           `json:"time" doc:"When the event happened."` // of the event
	Status        string              `json:"status" doc:"delivered; settled: nothing is left to send, and the outcome is no longer stored; dead: given up; retrying; pending; unknown: the webhook was deleted."`
	DeliveredTime time.Time           `json:"deliveredTime,omitzero" doc:"When the first delivery succeeded, while its attempts are stored."` // the first time it arrived, as far as attempts are remembered
	Data          []string            `json:"data" doc:"The members that were sent, as JSON pointers into the event's data."`                 // JSON pointers of what was sent, into the payload's data
}

// Disclosures lists which receivers were told what of an account, in the order
// of its events from a revision on, of at most limit of these. next is the
// revision to go on with, 0 if there is none.
func (w *Webhooks) Disclosures(ctx context.Context, sub string, from eventstore.Revision, limit int) (all []Disclosure, next eventstore.Revision, err error) {
	recipients, err := w.recipients(ctx, sub)
	if err != nil {
		return nil, 0, err
	}
	o := opener{w.c.Codec, w.c.Ledger}
	n := 0
	for rec, err := range w.c.Log.ReadStream(ctx, domain.AccountStream(sub), from) {
		if err != nil {
			return nil, 0, fmt.Errorf("webhooks: disclosures: %w", err)
		}
		if n++; n > limit {
			return all, rec.Revision, nil
		}
		messages, err := newSlot(rec).open(o, w.c.Now())
		if err != nil {
			return nil, 0, err
		}
		for _, r := range recipients {
			for _, m := range messages {
				d, told, err := r.disclosure(m, rec)
				if err != nil {
					return nil, 0, err
				}
				if told {
					all = append(all, d)
				}
			}
		}
	}
	return all, 0, nil
}

// recipient is an endpoint that is or was, and what is known of its deliveries
// of one account.
type recipient struct {
	id       string
	gone     bool
	configs  []configured
	until    eventstore.Position // it was deleted here; 0: it was not
	progress progress
	owed     eventstore.Position // of the account from here on; 0: nothing
	arrived  map[place]time.Time
	tried    map[place]bool
	dead     map[place]bool
	form     func(domain.Webhook) form
}

// configured is how an endpoint was configured from a moment on.
type configured struct {
	position eventstore.Position
	time     time.Time
	domain.Webhook
}

// recipients are all endpoints there were, in the order of their making.
func (w *Webhooks) recipients(ctx context.Context, sub string) ([]*recipient, error) {
	all, err := w.store.recipients(ctx)
	if err != nil {
		return nil, fmt.Errorf("webhooks: recipients: %w", err)
	}
	for _, r := range all {
		r.form = w.form
		if live := w.running(r.id); live != nil {
			live.settled(ctx)
		}
		conf := domain.NewWebhook(r.id)
		for rec, err := range w.c.Log.ReadStream(ctx, domain.WebhookStream(r.id), 0) {
			var x domain.Entry
			if err == nil {
				x, err = w.c.Codec.Decode(rec)
			}
			if err != nil {
				return nil, fmt.Errorf("webhooks: recipients: %w", err)
			}
			if conf = conf.Evolve(x); conf.Exists() {
				r.configs = append(r.configs, configured{rec.Position, rec.Time, conf})
			} else {
				r.until = rec.Position
			}
		}
		if err := w.store.remembered(ctx, r, sub); err != nil {
			return nil, fmt.Errorf("webhooks: recipients: %w", err)
		}
	}
	return all, nil
}

// recipients reads which endpoints there are and were.
func (s *store) recipients(ctx context.Context) ([]*recipient, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT id, 0 AS gone, no FROM endpoint UNION ALL SELECT id, 1, no FROM former ORDER BY no`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []*recipient
	for rows.Next() {
		r := &recipient{arrived: map[place]time.Time{}, tried: map[place]bool{}, dead: map[place]bool{}}
		if err := rows.Scan(&r.id, &r.gone, new(int64)); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// remembered fills in what is known of deliveries of an account's events.
func (s *store) remembered(ctx context.Context, r *recipient, sub string) (err error) {
	if r.gone {
		return nil
	}
	if r.progress, err = s.load(ctx, r.id); errors.Is(err, sql.ErrNoRows) {
		r.gone = true // deleted just now
		return nil
	}
	if err != nil {
		return err
	}
	no := r.progress.no
	err = s.read.QueryRowContext(ctx, `SELECT next_position FROM lane WHERE endpoint = ? AND stream = ?`, no, domain.AccountStream(sub)).Scan(&r.owed)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	rows, err := s.read.QueryContext(ctx, `
		SELECT position, part, coalesce(min(CASE WHEN error = '' THEN time END), 0), 0 FROM attempt WHERE endpoint = ?1 AND sub = ?2 GROUP BY position, part
		UNION ALL SELECT position, part, 0, 1 FROM dead_letter WHERE endpoint = ?1 AND sub = ?2`, no, sub)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var at place
		var arrived int64
		var dead bool
		if err := rows.Scan(&at.position, &at.part, &arrived, &dead); err != nil {
			return err
		}
		switch {
		case dead:
			r.dead[at] = true
		case arrived > 0:
			r.arrived[at] = fromMicro(arrived)
		default:
			r.tried[at] = true
		}
	}
	return rows.Err()
}

// disclosure is what r was told by m; told is false if it was not to be.
func (r *recipient) disclosure(m *message, rec eventstore.Recorded) (d Disclosure, told bool, err error) {
	at := place{m.position, m.part}
	arrived := r.arrived[at]
	conf, ok := r.configuredAt(rec.Position, arrived)
	if !ok || rec.Position <= conf.After || r.until > 0 && rec.Position > r.until {
		return d, false, nil
	}
	if m = m.told(conf.Events); m == nil {
		return d, false, nil
	}
	f := r.form(conf)
	data, err := m.data(&f)
	if err != nil {
		return d, false, err
	}
	d = Disclosure{WebhookID: r.id, URL: withoutQuery(conf.URL), Deleted: r.gone, EventID: m.event.ID, Type: m.event.Type, Sequence: rec.Revision, Position: rec.Position,
		Time: m.event.Time, Status: r.status(at), DeliveredTime: arrived}
	d.Data, err = pointers("", data)
	return d, true, err
}

// configuredAt is how r was configured when an event was sent; where that is
// not remembered, when it was recorded, or at first.
func (r *recipient) configuredAt(p eventstore.Position, sent time.Time) (conf domain.Webhook, ok bool) {
	for _, c := range r.configs {
		if ok && !(c.position <= p || !sent.IsZero() && !c.time.After(sent)) {
			break
		}
		conf, ok = c.Webhook, true
	}
	return conf, ok
}

func (r *recipient) status(at place) string {
	switch {
	case !r.arrived[at].IsZero():
		return StatusDelivered
	case r.gone:
		return StatusUnknown
	case r.dead[at]:
		return StatusDead
	case r.progress.cursor.has(at.position) && (r.owed == 0 || r.owed > at.position):
		return StatusSettled
	case r.tried[at]:
		return StatusRetrying
	}
	return StatusPending
}

func withoutQuery(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	u.RawQuery, u.User = "", nil
	return u.String()
}

// pointers lists what is in a value below at and is no object itself, as JSON
// pointers (RFC 6901).
func pointers(at jsontext.Pointer, v jsontext.Value) ([]string, error) {
	if v.Kind() != '{' {
		return []string{string(at)}, nil
	}
	var members map[string]jsontext.Value
	if err := json.Unmarshal(v, &members); err != nil {
		return nil, fmt.Errorf("webhooks: members of an event: %T", err)
	}
	all := []string{}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		below, err := pointers(at.AppendToken(name), members[name])
		if err != nil {
			return nil, err
		}
		all = append(all, below...)
	}
	return all, nil
}
