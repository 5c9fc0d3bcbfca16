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

// Job is one import of an input into a ledger with a mapping.
type Job struct {
	Ledger   *domain.Ledger
	LedgerID string              // identifies the ledger; a journal of another ledger is not resumed
	Head     eventstore.Position // of the log at the start; a journal of a newer log is not resumed, as after a restore
	Mapping  *Mapping
	Input    Input

	// The results, one line of JSON per row in the rows' order, are written to
	// ResultsFile or, if that is empty, to Results.
	ResultsFile string
	Results     io.Writer

	// Journal is the file that stores the import's progress until it is complete.
	// Empty: the import starts at the first row and cannot be resumed.
	Journal string
	Resume  bool // continue from the journal if it belongs to this import

	Actor    domain.Actor // of the events; default: kind import, with the mapping's source as id
	Limited  bool         // the import must not write read-only and internal fields
	Nameless bool         // the results omit the rows' keys, which may be personal

	Workers  int                              // rows imported concurrently, which share commits; default 64
	Resumed  func(s Summary)                  // called before the first row, with the summary of earlier runs; may be nil
	Progress func(s Summary, bytesRead int64) // called after every row; may be nil
	Now      func() time.Time                 // default time.Now

	run         string      // the correlation id of the run's events
	lastWasNew  atomic.Bool // whether the account last looked at was new, see change.createOrUpdate
	sourceRoles []string    // ids of the source's roles, see change.membershipCommands
}

// Input is the data to import. Name, Size and Modified identify it in a journal.
// If Mapping.Defines is true, Reader must be an io.ReadSeeker.
type Input struct {
	Name     string
	Reader   io.Reader
	Size     int64 // in bytes; 0: unknown
	Modified time.Time
}

// task is a row and its result.
type task struct {
	row    row
	number int64
	result Result
	err    error
	done   chan struct{} // closed when result or err is set
}

// Run creates the groups and roles that the mapping defines, then imports all
// rows that the journal does not record as done. It imports rows concurrently,
// but those of one account in order. A row that the domain's rules refuse is
// FAILED and does not stop the others. A failed row has changed nothing, unless
// one of its changes conflicts with an identifier of another account;
// Result.Events then counts the events appended before.
//
// When ctx is done, Run finishes and records the rows that have begun, then
// returns ctx's error. After any end, even kill -9, Run can be called again: rows
// that were done but not yet in the journal are UNCHANGED then.
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
	// The workers ignore ctx's cancellation, so that they can finish their rows.
	work, workCtx := errgroup.WithContext(context.WithoutCancel(ctx))
	pending := make(chan *task, 16*j.Workers)
	done := rec.state.Summary.Rows
	if j.Resumed != nil {
		j.Resumed(rec.state.Summary)
	}
	var read counter
	var unread error // why the input was not read to its end; the rows before it are imported
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

// dispatch reads the rows and sends each to pending, in order, so that the
// results are in order, and to the worker that has all rows of its account.
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
		return &InputError{int(number), fmt.Errorf("the input ends, but the journal records %d rows as done; import without resuming", done)}
	}
	return nil
}

// work imports the rows of a queue.
func (j *Job) work(ctx context.Context, queue <-chan *task) {
	for t := range queue {
		if t.row.fault != "" {
			t.result = Result{Outcome: Failed, Faults: []Finding{{Rule: t.row.fault}}}
		} else {
			d := j.Mapping.draft(t.row.record, j.Now())
			t.result, t.err = j.apply(ctx, &d)
			j.Mapping.mapped.unmapped(t.row.record, nil, func(at path) { t.result.unmapped = append(t.result.unmapped, at.String()) })
		}
		t.result.Row = t.number
		t.row.record = nil // free it while the task waits for earlier rows
		close(t.done)
	}
}

// counter counts the bytes written to it.
type counter struct{ atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.Add(int64(len(p)))
	return len(p), nil
}
