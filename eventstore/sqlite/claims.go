package sqlite

import (
	"context"
	"fmt"
	"iter"

	"accountledger/eventstore"
)

// Reclaim implements eventstore.Store. It blocks appends until it is done.
func (s *Store) Reclaim(ctx context.Context, version int, claims iter.Seq2[eventstore.Claim, error]) error {
	var failed error
	err := s.writer.do(ctx, func() {
		failed = s.writer.transact(func() error { return s.writer.reclaim(ctx, version, claims) })
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("sqlite: reclaim: %w", err)
	}
	return nil
}

func (w *writer) reclaim(ctx context.Context, version int, claims iter.Seq2[eventstore.Claim, error]) error {
	if err := w.db.exec(ctx, `DELETE FROM claims; DELETE FROM waiting; UPDATE meta SET claims_version = `+fmt.Sprint(version)); err != nil {
		return err
	}
	wait, err := w.db.prepare(`INSERT INTO waiting (kind, key, place, stream)
		SELECT ?1, ?2, (SELECT ifnull(max(place), 0) + 1 FROM waiting WHERE kind = ?1 AND key = ?2), ?3
		WHERE NOT EXISTS (SELECT 1 FROM waiting WHERE kind = ?1 AND key = ?2 AND stream = ?3)`)
	if err != nil {
		return err
	}
	defer wait.close()
	w.next.claims, w.next.waiting, w.next.rules = digest{}, 0, int64(version)
	for k, err := range claims {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		h, err := w.streamHead(k.Owner)
		if err != nil {
			return err
		}
		if h.num == 0 {
			if h.num, err = w.createStream(k.Owner); err != nil {
				return err
			}
			w.heads.put(k.Owner, h)
		}
		owner, err := w.claimOwner(k)
		if err != nil {
			return err
		}
		added, summand := int64(0), w.vouch.claim
		switch owner {
		case k.Owner:
		case "":
			added, err = w.insertClaim.changes(k.Kind, []byte(k.Key), h.num)
		default:
			summand = w.vouch.wait
			added, err = wait.changes(k.Kind, []byte(k.Key), h.num)
			w.next.waiting += added
		}
		if err != nil {
			return err
		}
		if added > 0 {
			w.next.claims = w.next.claims.plus(summand(k.Kind, []byte(k.Key), k.Owner))
		}
	}
	return nil
}

// ClaimsVersion implements eventstore.Store.
func (s *Store) ClaimsVersion(ctx context.Context) (int, error) { return s.files.ClaimsVersion(ctx) }

// ClaimsVersion returns the version of the claims. A log of version 1 does not
// name it: it is 1.
func (r *Reader) ClaimsVersion(ctx context.Context) (int, error) {
	file, err := identify(r.path)
	if err == nil && file == 1 {
		return 1, nil
	}
	if err != nil {
		return 0, fmt.Errorf("sqlite: claims version: %w", err)
	}
	var version int64
	err = r.use(ctx, func(c *readConn) error {
		v, err := c.scalar(`SELECT claims_version FROM meta`)
		version, _ = v.(int64)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("sqlite: claims version: %w", err)
	}
	return int(version), nil
}

// Claims yields all claims in pages, like ReadStream: of each kind in the order of
// the keys, first those that are held, then those that wait. A claim that moves
// meanwhile may be yielded with its owner before or after.
func (r *Reader) Claims(ctx context.Context) iter.Seq2[eventstore.Claim, error] {
	return func(yield func(eventstore.Claim, error) bool) {
		version, err := identify(r.path)
		if err != nil {
			yield(eventstore.Claim{}, fmt.Errorf("sqlite: claims: %w", err))
			return
		}
		pageOf := ` LIMIT ` + fmt.Sprint(pageEvents)
		queries := []string{`SELECT c.kind, c.key, 0, s.name FROM claims c LEFT JOIN streams s ON s.num = c.stream
			WHERE (c.kind, c.key) > (?, ?) AND ? = 0 ORDER BY c.kind, c.key` + pageOf}
		if version > 1 {
			queries = append(queries, `SELECT c.kind, c.key, c.place, s.name FROM waiting c LEFT JOIN streams s ON s.num = c.stream
				WHERE (c.kind, c.key, c.place) > (?, ?, ?) ORDER BY c.kind, c.key, c.place`+pageOf)
		}
		for _, query := range queries {
			var last eventstore.Claim
			var place int64
			for more := true; more; {
				var page []eventstore.Claim
				err := r.use(ctx, func(c *readConn) error {
					s, err := c.prepare(query)
					if err != nil {
						return err
					}
					defer s.close()
					return s.each(4, func(f *fields) error {
						k := eventstore.Claim{Kind: f.text(), Key: string(f.blob())}
						place = f.int()
						if f.maybe() { // else there is no such stream
							k.Owner = f.text()
						}
						if f.bad {
							return corrupt("a claim cannot be read")
						}
						page = append(page, k)
						return nil
					}, last.Kind, []byte(last.Key), place)
				})
				if err == nil {
					err = ctx.Err()
				}
				if err != nil {
					yield(eventstore.Claim{}, fmt.Errorf("sqlite: claims: %w", err))
					return
				}
				for _, k := range page {
					if !yield(k, nil) {
						return
					}
					last = k
				}
				more = len(page) == pageEvents
			}
		}
	}
}
