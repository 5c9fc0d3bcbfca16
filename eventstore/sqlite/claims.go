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
		VALUES (?1, ?2, (SELECT ifnull(max(place), 0) + 1 FROM waiting WHERE kind = ?1 AND key = ?2), ?3)`)
	if err != nil {
		return err
	}
	defer wait.close()
	w.next.claims, w.next.waiting = digest{}, 0
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
		switch owner {
		case k.Owner:
			continue
		case "":
			err = w.insertClaim.exec(k.Kind, []byte(k.Key), h.num)
		default:
			w.next.waiting++
			err = wait.exec(k.Kind, []byte(k.Key), h.num)
		}
		if err != nil {
			return err
		}
		w.next.claims = w.next.claims.plus(w.vouch.claim(k.Kind, []byte(k.Key), k.Owner))
	}
	return nil
}

// ClaimsVersion implements eventstore.Store.
func (s *Store) ClaimsVersion(ctx context.Context) (int, error) {
	var version int64
	err := s.files.use(ctx, func(c *readConn) error {
		v, err := c.scalar(`SELECT claims_version FROM meta`)
		version, _ = v.(int64)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("sqlite: claims version: %w", err)
	}
	return int(version), nil
}
