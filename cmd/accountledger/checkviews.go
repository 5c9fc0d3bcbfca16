package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections"
)

// views rebuilds the account view up to the position of the live one and compares
// the two. It works on a copy, so a running server is not delayed and may update
// the live view. The copies contain personal data, so they are in the data
// directory; after a crash, the next start removes them.
func (ch *checked) views(ctx context.Context, r *reader, live *projections.Views, codec domain.Codec, out cli.Console) (err error) {
	dir, err := os.MkdirTemp(string(r.dir), cli.NewFilePrefix+"check-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	copied := filepath.Join(dir, "live.db")
	if err := live.Backup(ctx, copied); err != nil {
		return err
	}
	was, err := projections.OpenReader(ctx, copied)
	if err != nil {
		return err
	}
	defer was.Close()
	ctx, cancel := context.WithCancel(ctx) // ends reads that compare does not finish
	defer cancel()
	at, _, wasRows, err := was.Accounts().All(ctx)
	if err != nil {
		return err
	}
	// If the view is ahead of the log, followers has reported that, and a rebuild
	// would wait forever.
	if head, err := r.log.Head(ctx); err != nil || at > head {
		return err
	}
	log := prefix{r.log, at}
	fresh, err := projections.Open(ctx, projections.Config{Path: filepath.Join(dir, "fresh.db"), Log: log, Codec: codec})
	if err != nil {
		return err
	}
	defer fresh.Close()
	if err := catchUp(ctx, fresh, at, out); err != nil {
		return err
	}
	_, _, isRows, err := fresh.Accounts().All(ctx)
	if err != nil {
		return err
	}
	return ch.compare(wasRows, isRows)
}

// catchUp runs views until they are at a position.
func catchUp(ctx context.Context, views *projections.Views, to eventstore.Position, out cli.Console) error {
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- views.Run(ctx) }()
	const step = 10_000
	p := out.Progress("rebuild", int64(to))
	var err error
	for at := eventstore.Position(0); at < to && err == nil; {
		at = min(at+step, to)
		err = views.Await(ctx, projections.AccountsView, at)
		p.Set(int64(at), int64(to))
	}
	p.End()
	stop()
	return errors.Join(err, <-ended)
}

// compare compares two lists of accounts in the order of their subs.
func (ch *checked) compare(wasRows, isRows iter.Seq2[projections.AccountRow, error]) error {
	nextWas, stopWas := iter.Pull2(wasRows)
	defer stopWas()
	nextIs, stopIs := iter.Pull2(isRows)
	defer stopIs()
	was, wasErr, wasOK := nextWas()
	is, isErr, isOK := nextIs()
	for wasOK || isOK {
		if err := errors.Join(wasErr, isErr); err != nil {
			return err
		}
		switch {
		case !isOK || wasOK && was.Sub < is.Sub:
			ch.add(viewsFile, "the account %s is in the view but not in a rebuild", was.Sub)
			was, wasErr, wasOK = nextWas()
			continue
		case !wasOK || is.Sub < was.Sub:
			ch.add(viewsFile, "the account %s is in a rebuild but not in the view", is.Sub)
			is, isErr, isOK = nextIs()
			continue
		case !bytes.Equal(was.JSON, is.JSON) || was.Revision != is.Revision || was.Position != is.Position:
			ch.add(viewsFile, "the account %s differs between the view, at revision %d, and a rebuild, at revision %d", was.Sub, was.Revision, is.Revision)
		}
		ch.Compared++
		was, wasErr, wasOK = nextWas()
		is, isErr, isOK = nextIs()
	}
	return nil
}

// prefix is the log up to a position, read-only.
type prefix struct {
	log storeReader
	end eventstore.Position
}

var (
	_ eventstore.Store        = prefix{}
	_ eventstore.StreamReader = prefix{}
)

func (p prefix) Append(context.Context, eventstore.Commit) (eventstore.Receipt, error) {
	return eventstore.Receipt{}, fmt.Errorf("append to a read-only log: %w", errors.ErrUnsupported)
}

func (p prefix) Erase(context.Context, eventstore.KeyID, ...string) error {
	return fmt.Errorf("erase in a read-only log: %w", errors.ErrUnsupported)
}

func (p prefix) ReadStream(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		for rec, err := range p.log.ReadStream(ctx, stream, from) {
			if err == nil && rec.Position > p.end || !yield(rec, err) {
				return
			}
		}
	}
}

func (p prefix) ReadProven(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	return p.ReadStream(ctx, stream, from)
}

func (p prefix) Streams(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return p.log.Streams(ctx, prefix)
}

// Prove does nothing: 'verify' does.
func (p prefix) Prove(context.Context, eventstore.Position, func(done, total int64)) error {
	return nil
}

func (p prefix) Reclaim(context.Context, int, iter.Seq2[eventstore.Claim, error]) error {
	return fmt.Errorf("reclaim in a read-only log: %w", errors.ErrUnsupported)
}

func (p prefix) ClaimsVersion(context.Context) (int, error) { return domain.ClaimsVersion, nil }

func (p prefix) ByStream(ctx context.Context, to eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return p.log.ByStream(ctx, min(to, p.end))
}

func (p prefix) Subscribe(ctx context.Context, after eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return func(yield func([]eventstore.Recorded, error) bool) {
		if after < p.end {
			for page, err := range p.log.Subscribe(ctx, after) {
				if len(page) > 0 {
					page = page[:min(int64(len(page)), int64(p.end-page[0].Position)+1)]
				}
				if !yield(page, err) || err != nil {
					return
				}
				if page[len(page)-1].Position == p.end {
					break
				}
			}
		}
		<-ctx.Done() // there are no more events
		yield(nil, ctx.Err())
	}
}

func (p prefix) Head(ctx context.Context) (eventstore.Position, error) { return p.end, ctx.Err() }

func (p prefix) Close() error { return nil } // the opener closes the log
