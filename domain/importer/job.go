package importer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"accountledger/domain"
	"accountledger/eventstore"
)

// Job is one import: one input, brought into one ledger by one mapping.
type Job struct {
	Ledger   *domain.Ledger
	LedgerID string              // of which ledger: another one does not resume this one's journal
	Head     eventstore.Position // of its log at the start: a restored, older one does not either
	Mapping  *Mapping
	Input    Input

	// ResultsFile takes a line of JSON for every row, in the rows' order; if it
	// is empty, Results takes them.
	ResultsFile string
	Results     io.Writer

	// Journal is the file that remembers how far the import has come, until it
	// is complete. Empty: it starts at the first row and cannot be resumed.
	Journal string
	Resume  bool // go on where the journal says, if it is one of this import

	Actor    domain.Actor // who imports; default the mapping's source, as an actor of kind import
	Limited  bool         // may not write read-only and internal fields
	Nameless bool         // results leave the rows' keys out, which may be personal

	Workers  int                              // rows at a time; default 64: commits are shared by those who come together
	Resumed  func(s Summary)                  // called before the first row with what earlier runs have done; may be nil
	Progress func(s Summary, bytesRead int64) // called after every row; may be nil
	Now      func() time.Time                 // default time.Now

	run         string      // correlates the events of one run
	lastWasNew  atomic.Bool // the last row that was looked at, see change.bring
	sourceRoles []string    // ids of the roles that the source has, see change.belong
}

// Input is what is imported. Name, Size and Modified tell it from others. For a
// mapping with groups or roles Reader is an io.Seeker, too.
type Input struct {
	Name     string
	Reader   io.Reader
	Size     int64 // 0: not known
	Modified time.Time
}

// task is a row on its way to its result.
type task struct {
	row    row
	number int64
	result Result
	err    error
	done   chan struct{} // closed when result or err is there
}

// Run makes the groups and roles that the mapping asks for, before any row, and
// imports the rows that the journal does not know as done. Rows run side by
// side, those of one account in their order. A row that the rules refuse is
// FAILED and does not stop the others; it has changed nothing, unless one of
// several changes met an identifier of another account, and then Result.Events
// says how many were made before.
//
// When ctx is done, Run finishes and records the rows that have begun, and
// returns ctx's error. After any end, kill -9 among them, it may be run again:
// the few rows that were done and not yet in the journal are UNCHANGED then.
func (j *Job) Run(ctx context.Context) (Summary, error) {
	if j.Workers <= 0 {
		j.Workers = 64
	}
	if j.Actor == (domain.Actor{}) {
		j.Actor = domain.Actor{Kind: "import", ID: j.Mapping.Source}
	}
	if j.Now == nil {
		j.Now = time.Now
	}
	j.run = domain.NewID().String()
	j.lastWasNew.Store(j.Head == 0)
	rec, err := j.openRecorder()
	if err != nil {
		return Summary{}, err
	}
	if err := j.define(ctx, &rec.state.Summary); err != nil {
		return rec.state.Summary, errors.Join(fmt.Errorf("groups and roles: %w", err), rec.close(false))
	}
	// The work has a context of its own, so that rows that have begun can end.
	work, workCtx := errgroup.WithContext(context.WithoutCancel(ctx))
	pending := make(chan *task, 16*j.Workers)
	done := rec.state.Summary.Rows
	if j.Resumed != nil {
		j.Resumed(rec.state.Summary)
	}
	var read counter
	var unread error // why the input was not read to its end; the rows before that are in
	work.Go(func() error {
		defer close(pending)
		queues := make([]chan *task, j.Workers)
		for i := range queues {
			queue := make(chan *task, 16)
			defer close(queue)
			queues[i] = queue
			work.Go(func() error { j.work(workCtx, queue); return nil })
		}
		unread = j.dispatch(ctx, workCtx, io.TeeReader(j.Input.Reader, &read), done, pending, queues)
		return nil
	})
	work.Go(func() error {
		for t := range pending {
			select {
			case <-t.done:
			case <-workCtx.Done():
				return nil
			}
			if t.err != nil {
				return fmt.Errorf("row %d: %w", t.number, t.err)
			}
			if j.Nameless {
				t.result.Key = ""
			}
			if err := rec.add(t.result); err != nil {
				return err
			}
			if j.Progress != nil {
				j.Progress(rec.state.Summary, read.Load())
			}
		}
		return nil
	})
	err = cmp.Or(work.Wait(), unread, ctx.Err())
	return rec.state.Summary, errors.Join(err, rec.close(err == nil))
}

// dispatch hands out the rows: to pending in their order, so that results are
// told in it, and to the one worker that has all rows of their account.
func (j *Job) dispatch(ctx, workCtx context.Context, input io.Reader, done int64, pending chan<- *task, queues []chan *task) error {
	seed := maphash.MakeSeed()
	number := int64(0)
	for r, err := range j.Mapping.rows(j.Input.Name, input) {
		if err != nil {
			return err
		}
		if number++; number <= done {
			continue
		}
		t := &task{row: r, number: number, done: make(chan struct{})}
		select {
		case <-ctx.Done():
			return nil
		case <-workCtx.Done():
			return nil
		case pending <- t:
		}
		select {
		case <-workCtx.Done():
			return nil
		case queues[maphash.String(seed, j.Mapping.identifier(r.record))%uint64(len(queues))] <- t:
		}
	}
	if number < done {
		return &InputError{int(number), fmt.Errorf("there are no more rows, and the journal calls %d done; import it without resuming", done)}
	}
	return nil
}

func (j *Job) work(ctx context.Context, queue <-chan *task) {
	for t := range queue {
		if t.row.fault != "" {
			t.result = Result{Outcome: Failed, Faults: []Finding{{Rule: t.row.fault}}}
		} else {
			d := j.Mapping.draft(t.row.record, j.Now())
			t.result, t.err = j.apply(ctx, &d)
			j.Mapping.taken.missed(t.row.record, nil, func(at path) { t.result.missed = append(t.result.missed, at.String()) })
		}
		t.result.Row = t.number
		t.row.record = nil // the task waits for those before it; the record need not
		close(t.done)
	}
}

// counter counts the bytes that are written to it.
type counter struct{ atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.Add(int64(len(p)))
	return len(p), nil
}
