package sqlite

import (
	"bytes"
	"context"
	"database/sql/driver"
	"fmt"
	"io"
	"iter"

	"accountledger/eventstore"
)

// Claims yields all claims, in pages like ReadStream: of each kind in the order
// of the keys. A claim that moves meanwhile may be yielded with its owner before
// or after.
func (r *Reader) Claims(ctx context.Context) iter.Seq2[eventstore.Claim, error] {
	return func(yield func(eventstore.Claim, error) bool) {
		last := eventstore.Claim{}
		for more := true; more; {
			var page []eventstore.Claim
			err := ctx.Err()
			if err == nil {
				err = r.use(ctx, func(c *readConn) (err error) {
					page, err = c.claims(last)
					return err
				})
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

// claims returns a page of the claims after last. Without a stream, its owner is
// empty.
func (c *readConn) claims(last eventstore.Claim) ([]eventstore.Claim, error) {
	s, err := c.prepare(`SELECT c.kind, c.key, ifnull(s.name, '') FROM claims c LEFT JOIN streams s ON s.num = c.stream
		WHERE (c.kind, c.key) > (?, ?) ORDER BY c.kind, c.key LIMIT ` + fmt.Sprint(pageEvents))
	if err != nil {
		return nil, err
	}
	defer s.close()
	rows, err := s.query(last.Kind, []byte(last.Key))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var page []eventstore.Claim
	var row [3]driver.Value
	for {
		if err := rows.Next(row[:]); err == io.EOF {
			return page, nil
		} else if err != nil {
			return nil, classify(err)
		}
		f := fields{row: row[:]}
		k := eventstore.Claim{Kind: f.text(), Key: string(bytes.Clone(f.blob())), Owner: f.text()}
		if f.bad {
			return nil, corrupt("a claim cannot be read")
		}
		page = append(page, k)
	}
}
