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
	"accountledger/projections/webhooks/wire"
)

// StatusUnknown is the status of disclosures to a deleted webhook, whose progress
// is no longer stored.
const StatusUnknown = "unknown"

// Disclosure is a public event of an account that a webhook received or will
// receive.
//
// It is computed from the log, the webhook's configurations and the progress of
// its delivery. Nothing is stored for it, so erasures have nothing to find. For
// an erased account, Data has only the names that its events still have.
type Disclosure struct {
	WebhookID     string              `json:"webhookId" doc:"The webhook that received the data."`
	URL           string              `json:"url" doc:"The endpoint's current or last URL, without its query."`
	Deleted       bool                `json:"deleted,omitzero" doc:"Whether the webhook has been deleted."`
	EventID       string              `json:"eventId" doc:"The public event's id."`
	Type          string              `json:"type" doc:"The name under which the event was sent."`
	Sequence      eventstore.Revision `json:"sequence" doc:"The account's revision."`
	Position      eventstore.Position `json:"position" doc:"The event's position in the log."`
	Time          time.Time           `json:"time" doc:"When the event happened."`
	Status        string              `json:"status" doc:"delivered; settled: nothing is left to send, and the outcome is no longer stored; dead: given up; retrying; pending; unknown: the webhook was deleted."`
	DeliveredTime time.Time           `json:"deliveredTime,omitzero" doc:"When the first delivery succeeded, while its attempts are stored."`
	Data          []string            `json:"data" doc:"The members that were sent, as JSON pointers into the event's data."`
}

// disclosures computes who received what about an account.
type disclosures struct{ *engine }

// Disclosures lists which webhooks received what about an account, for at most
// limit of its events from a revision on, in their order. next is the revision
// to continue with, 0 if there are no more events.
func (s disclosures) Disclosures(ctx context.Context, sub string, from eventstore.Revision, limit int) (all []Disclosure, next eventstore.Revision, err error) {
	recipients, err := s.recipients(ctx, sub)
	if err != nil {
		return nil, 0, err
	}
	n := 0
	for rec, err := range s.config.Log.ReadStream(ctx, domain.AccountStream(sub), from) {
		if err != nil {
			return nil, 0, fmt.Errorf("webhooks: disclosures: %w", err)
		}
		if n++; n > limit {
			return all, rec.Revision, nil
		}
		messages, err := newEvent(rec).open(s.senders.opener, s.config.Now())
		if err != nil {
			return nil, 0, err
		}
		for _, r := range recipients {
			for _, m := range messages {
				d, ok, err := r.disclosure(m, rec)
				if err != nil {
					return nil, 0, err
				}
				if ok {
					all = append(all, d)
				}
			}
		}
	}
	return all, 0, nil
}

// recipient is a present or deleted webhook, and what is known of its deliveries
// about one account.
type recipient struct {
	id       string
	gone     bool
	configs  []configured
	until    eventstore.Position // where it was deleted; 0: it was not
	progress progress
	owed     eventstore.Position // the account's events are owed from here on; 0: none are
	arrived  map[place]time.Time
	tried    map[place]bool
	dead     map[place]bool
	form     func(domain.Webhook) wire.Form
}

// configured is a configuration, and where and when it took effect.
type configured struct {
	position eventstore.Position
	time     time.Time
	domain.Webhook
}

// recipients returns all webhooks, also the deleted ones, oldest first.
func (s disclosures) recipients(ctx context.Context, sub string) ([]*recipient, error) {
	all, err := s.store.recipients(ctx)
	if err != nil {
		return nil, fmt.Errorf("webhooks: recipients: %w", err)
	}
	for _, r := range all {
		r.form = s.senders.form
		s.sync(ctx, r.id)
		conf := domain.NewWebhook(r.id)
		for rec, err := range s.config.Log.ReadStream(ctx, domain.WebhookStream(r.id), 0) {
			var x domain.Entry
			if err == nil {
				x, err = s.config.Codec.Decode(rec)
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
		if err := s.store.remembered(ctx, r, sub); err != nil {
			return nil, fmt.Errorf("webhooks: recipients: %w", err)
		}
	}
	return all, nil
}

// recipients reads the ids of all webhooks, also of the deleted ones.
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

// remembered fills in what is stored about the deliveries of an account's events.
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

// disclosure returns what r receives of m; ok is false if it does not receive m.
func (r *recipient) disclosure(m *wire.Message, rec eventstore.Recorded) (d Disclosure, ok bool, err error) {
	at := place{m.Position, m.Part}
	arrived := r.arrived[at]
	conf, ok := r.configuredAt(rec.Position, arrived)
	if !ok || rec.Position <= conf.After || r.until > 0 && rec.Position > r.until {
		return d, false, nil
	}
	if m = m.Select(conf.Events); m == nil {
		return d, false, nil
	}
	f := r.form(conf)
	data, err := m.Data(&f)
	if err != nil {
		return d, false, err
	}
	d = Disclosure{WebhookID: r.id, URL: withoutQuery(conf.URL), Deleted: r.gone, EventID: m.Event.ID, Type: m.Event.Type, Sequence: rec.Revision, Position: rec.Position,
		Time: m.Event.Time, Status: r.status(at), DeliveredTime: arrived}
	d.Data, err = pointers("", data)
	return d, true, err
}

// configuredAt returns the configuration when an event was sent; if that time is
// not stored, the one when it was recorded, or else the first.
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

// withoutQuery returns a URL without its query and user, which may be secret.
func withoutQuery(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	u.RawQuery, u.User = "", nil
	return u.String()
}

// pointers returns the JSON pointers (RFC 6901) of the values below at that are
// not objects.
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
