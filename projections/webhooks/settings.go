package webhooks

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"accountledger/domain"
)

// settings are the configurations of all webhooks, in memory only. They come from
// the log at every start: what is written in delivery.db never decides where
// events are sent.
type settings struct {
	mu   sync.Mutex
	byID map[string]domain.Webhook
}

// put replaces the configuration of a webhook, or forgets a deleted one.
func (s *settings) put(conf domain.Webhook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID == nil {
		s.byID = map[string]domain.Webhook{}
	}
	if s.byID[conf.WebhookID] = conf; !conf.Exists() {
		delete(s.byID, conf.WebhookID)
	}
}

// all returns all configurations, oldest webhook first.
func (s *settings) all() []domain.Webhook {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.byID), older)
}

func older(a, b domain.Webhook) int {
	return cmp.Or(a.CreatedTime.Compare(b.CreatedTime), cmp.Compare(a.WebhookID, b.WebhookID))
}

// loadSettings reads the configurations of all webhooks from the log, with proof,
// and makes delivery.db agree with them.
// stored are the webhooks that it has.
func (e *engine) loadSettings(ctx context.Context, stored map[string]bool) error {
	var confs []domain.Webhook
	for stream, err := range e.config.Log.Streams(ctx, domain.WebhookStream("")) {
		if err != nil {
			return err
		}
		id := domain.Entry{Stream: stream}.WebhookID()
		conf, err := e.ledger.webhook(ctx, id)
		if err != nil {
			return err
		}
		if conf.Exists() {
			confs = append(confs, conf)
			delete(stored, id)
		}
	}
	slices.SortFunc(confs, older)
	for id := range stored { // deleted, while this process did not run or did not finish
		confs = append(confs, domain.NewWebhook(id))
	}
	for _, conf := range confs {
		if err := e.copy(ctx, conf); err != nil {
			return err
		}
	}
	return nil
}

// ids returns the ids of the webhooks that delivery.db has.
func (s *store) ids(ctx context.Context) (map[string]bool, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT id FROM endpoint`)
	if err != nil {
		return nil, fmt.Errorf("webhooks: stored webhooks: %w", err)
	}
	defer rows.Close()
	all := map[string]bool{}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("webhooks: stored webhooks: %w", err)
		}
		all[id] = true
	}
	return all, rows.Err()
}
