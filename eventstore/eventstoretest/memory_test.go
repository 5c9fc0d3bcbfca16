package eventstoretest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"accountledger/eventstore"
)

// TestRun checks that a store made of a slice, a map and a mutex passes the
// suite.
func TestRun(t *testing.T) {
	disks := newDisks("")
	Run(t, func(t *testing.T, dir string) eventstore.Store { return disks.open(dir) })
}

// disks holds the contents of memory stores, which remain after Close.
type disks struct {
	bug  string
	mu   sync.Mutex
	dirs map[string]*disk
}

// disk is the content of a log.
type disk struct {
	log    []eventstore.Recorded
	claims map[claimed]string
}

type claimed struct{ kind, key string }

func newDisks(bug string) *disks { return &disks{bug: bug, dirs: map[string]*disk{}} }

func (d *disks) open(dir string) eventstore.Store {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dirs[dir] == nil {
		d.dirs[dir] = &disk{claims: map[claimed]string{}}
	}
	on := d.dirs[dir]
	switch d.bug {
	case "claims forgotten":
		on.claims = map[claimed]string{}
	case "last event forgotten":
		on.log = on.log[:max(0, len(on.log)-1)]
	}
	return &memory{bug: d.bug, disk: on, grown: make(chan struct{}), closing: make(chan struct{})}
}

// memory is a store in memory with at most one bug, selected by name.
type memory struct {
	bug     string
	closing chan struct{}

	mu    sync.Mutex // guards the fields below
	grown chan struct{}
	gap   int // number of skipped positions, for a bug
	*disk
}

func (m *memory) Close() error {
	if m.bug == "close leaves subscriptions running" {
		return nil
	}
	close(m.closing)
	return nil
}

func (m *memory) closed() error {
	select {
	case <-m.closing:
		if m.bug == "methods work after Close" {
			return nil
		}
		return eventstore.ErrClosed
	default:
		return nil
	}
}

func (m *memory) Head(context.Context) (eventstore.Position, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bug == "head is one event behind" {
		return eventstore.Position(max(0, len(m.log)-1)), m.closed()
	}
	return eventstore.Position(len(m.log) + m.gap), m.closed()
}

func (m *memory) Erase(ctx context.Context, key eventstore.KeyID, streams ...string) error {
	if err := m.closed(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.log {
		rec := &m.log[i]
		if m.bug == "erase affects every stream" || slices.Contains(streams, rec.Stream) {
			if m.bug == "erase affects every key" || rec.KeyID == key && m.bug != "erase ignored" {
				rec.Sealed = nil
			}
			if m.bug == "erase removes the key ID" && rec.KeyID == key {
				rec.KeyID = eventstore.KeyID{}
			}
		}
	}
	return nil
}

func (m *memory) Append(ctx context.Context, c eventstore.Commit) (r eventstore.Receipt, err error) {
	if err := c.Check(); err != nil && m.bug != "invalid commits accepted" {
		return r, err
	}
	if err := m.closed(); err != nil {
		return r, err
	}
	if err := ctx.Err(); err != nil && m.bug != "append ignores context" {
		return r, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch m.bug {
	case "unsupported commit changes the log":
		if len(c.Writes) > 1 {
			m.write(c.Writes[0], time.Now())
			return r, errors.ErrUnsupported
		}
	case "large events refused":
		for _, w := range c.Writes {
			for _, ev := range w.Events {
				if len(ev.Sealed) > eventstore.MaxSealed/2 {
					return r, &eventstore.InvalidError{Reason: "too large"}
				}
			}
		}
	case "large commits refused":
		if len(c.Writes) > 0 && len(c.Writes[0].Events) > eventstore.MaxEvents/2 {
			return r, &eventstore.InvalidError{Reason: "too many"}
		}
	}
	first := len(m.log)
	if m.bug == "writes committed one by one" {
		for _, w := range c.Writes {
			if err := m.conflict(w); err != nil {
				return r, err
			}
			m.write(w, time.Now().UTC().Truncate(time.Microsecond))
		}
	} else {
		if r, err = m.commit(ctx, c); err != nil {
			return r, err
		}
	}
	r = m.receipt(first)
	close(m.grown)
	m.grown = make(chan struct{})
	return r, m.afterwards(ctx, c)
}

// commit checks c completely and then applies it.
func (m *memory) commit(ctx context.Context, c eventstore.Commit) (r eventstore.Receipt, err error) {
	if m.bug == "refused commit takes claims" {
		m.take(m.disk.claims, c.Claim)
	}
	if m.bug == "refused commit releases claims" {
		m.release(m.disk.claims, c.Release)
	}
	for _, w := range c.Writes {
		if err := m.conflict(w); err != nil {
			if m.bug == "refusals use positions" {
				m.gap++
			}
			return r, err
		}
	}
	claims := map[claimed]string{}
	for k, owner := range m.claims {
		claims[k] = owner
	}
	if m.bug == "claims before releases" {
		err = m.take(claims, c.Claim)
		m.release(claims, c.Release)
	} else {
		m.release(claims, c.Release)
		err = m.take(claims, c.Claim)
	}
	if err != nil {
		return r, err
	}
	if m.bug == "check, then act" {
		m.mu.Unlock()
		time.Sleep(time.Millisecond)
		m.mu.Lock()
		m.release(m.claims, c.Release)
		for _, k := range c.Claim {
			m.claims[m.key(k)] = k.Owner
		}
	} else {
		m.claims = claims
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	switch m.bug {
	case "local time":
		now = now.In(time.FixedZone("", 3600))
	case "nanoseconds":
		now = now.Add(123)
	case "time goes back":
		now = time.Unix(2e9, 0).UTC().Add(-time.Duration(len(m.log)) * time.Second)
	case "time is an hour off":
		now = now.Add(-time.Hour)
	}
	for i, w := range c.Writes {
		if m.bug == "part of a canceled append stays" && len(w.Events) > 1 && rand.N(2) == 0 {
			w.Events = w.Events[:1]
			m.write(w, now)
			return r, context.DeadlineExceeded
		}
		if m.bug == "second write lost" && i > 0 {
			continue
		}
		m.write(w, now)
	}
	if m.bug == "acknowledged append lost" && rand.N(8) == 0 {
		m.log = m.log[:len(m.log)-1]
	}
	return r, nil
}

// afterwards simulates the bugs that follow a commit.
func (m *memory) afterwards(ctx context.Context, c eventstore.Commit) error {
	switch m.bug {
	case "canceled although committed":
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Microsecond):
		}
	case "claims of a canceled append stay":
		if rand.N(8) == 0 && c.Writes[0].Expected == eventstore.NoStream {
			m.log = m.log[:len(m.log)-lengthOf(c)]
			return context.DeadlineExceeded
		}
	}
	return nil
}

func lengthOf(c eventstore.Commit) (n int) {
	for _, w := range c.Writes {
		n += len(w.Events)
	}
	return n
}

func (m *memory) receipt(first int) eventstore.Receipt {
	if first >= len(m.log) {
		return eventstore.Receipt{}
	}
	r := eventstore.Receipt{First: m.log[first].Position, Last: m.log[len(m.log)-1].Position, Time: m.log[first].Time}
	switch m.bug {
	case "receipt from 0":
		r.First--
		r.Last--
	case "receipt has a different time":
		r.Time = r.Time.Add(time.Microsecond)
	}
	return r
}

func (m *memory) at(stream string) eventstore.Revision {
	at := eventstore.NoStream
	for _, rec := range m.log {
		if rec.Stream == stream {
			at++
		}
	}
	return at
}

func (m *memory) conflict(w eventstore.Write) error {
	at := m.at(w.Stream)
	switch {
	case m.bug == "expected revision ignored", w.Expected == at:
		return nil
	case w.Expected == eventstore.Any && !(m.bug == "Any means NoStream" && at >= 0):
		return nil
	case m.bug == "wrong actual revision":
		at = max(at-1, eventstore.NoStream)
	case m.bug == "empty stream has revision 0":
		at = max(at, 0)
	}
	return &eventstore.ConflictError{Stream: w.Stream, Expected: w.Expected, Actual: at}
}

func (m *memory) write(w eventstore.Write, now time.Time) {
	revision := m.at(w.Stream)
	for _, ev := range w.Events {
		if m.bug != "shares the caller's bytes" {
			ev.Clear, ev.Sealed = bytes.Clone(ev.Clear), bytes.Clone(ev.Sealed)
		}
		switch m.bug {
		case "actor lost":
			ev.Actor = ""
		case "sealed part lost":
			ev.Sealed = nil
		}
		revision++
		rec := eventstore.Recorded{Event: ev, Stream: w.Stream, Revision: revision, Time: now,
			Position: eventstore.Position(len(m.log) + 1 + m.gap)}
		if m.bug == "revisions from 1" {
			rec.Revision++
		}
		m.log = append(m.log, rec)
	}
}

func (m *memory) key(k eventstore.Claim) claimed {
	switch m.bug {
	case "keys are UTF-8 text":
		k.Key = strings.ToValidUTF8(k.Key, "\ufffd")
	case "keys end at a zero byte":
		k.Key, _, _ = strings.Cut(k.Key, "\x00")
	case "keys ignore case":
		k.Key = strings.ToLower(k.Key)
	}
	return claimed{k.Kind, k.Key}
}

func (m *memory) release(claims map[claimed]string, release []eventstore.Claim) {
	for _, k := range release {
		if m.bug != "release ignored" && (claims[m.key(k)] == k.Owner || m.bug == "any owner releases") {
			delete(claims, m.key(k))
		}
	}
}

func (m *memory) take(claims map[claimed]string, take []eventstore.Claim) error {
	before := map[claimed]string{}
	for k, owner := range claims {
		before[k] = owner
	}
	for _, k := range take {
		owner, held := claims[m.key(k)]
		switch m.bug {
		case "claims ignored":
			held = false
		case "same owner refused":
			if held && owner == k.Owner {
				return &eventstore.ClaimError{Claim: k, Owner: owner}
			}
		case "last claim of a commit wins":
			owner, held = before[m.key(k)]
		}
		if held && owner != k.Owner {
			if m.bug == "claim error names the loser" {
				owner = k.Owner
			}
			return &eventstore.ClaimError{Claim: k, Owner: owner}
		}
		claims[m.key(k)] = k.Owner
	}
	return nil
}

func (m *memory) ReadStream(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	return func(yield func(eventstore.Recorded, error) bool) {
		if err := m.closed(); err != nil {
			yield(eventstore.Recorded{}, err)
			return
		}
		m.mu.Lock()
		log := m.log
		m.mu.Unlock()
		if m.bug == "stale read" && len(log) > 0 && rand.N(4) == 0 {
			log = log[:len(log)-1]
		}
		yielded := 0
		for i := 0; i < len(log); i++ {
			if err := ctx.Err(); err != nil && m.bug != "read ignores context" {
				if m.bug != "canceled read ends without error" {
					yield(eventstore.Recorded{}, err)
				}
				return
			}
			rec := log[i]
			if m.bug == "read includes later events" {
				m.mu.Lock()
				log = m.log
				m.mu.Unlock()
			}
			match := rec.Stream == stream
			if m.bug == "read by prefix" {
				match = strings.HasPrefix(rec.Stream, stream)
			}
			if !match || rec.Revision < from && m.bug != "from ignored" || rec.Revision == from && m.bug == "from excluded" {
				continue
			}
			if m.bug == "first page only" && yielded == 1000 {
				return
			}
			yielded++
			if !yield(rec, nil) {
				if m.bug == "stopped read keeps its lock" {
					m.mu.Lock()
				}
				if m.bug == "stopped read continues" {
					continue
				}
				return
			}
		}
		if yielded == 0 && m.bug == "missing stream is an error" && m.at(stream) == eventstore.NoStream {
			yield(eventstore.Recorded{}, fmt.Errorf("no stream %s", stream))
		}
		if err := ctx.Err(); err != nil && yielded == 0 && m.bug == "" {
			yield(eventstore.Recorded{}, err)
		}
	}
}

func (m *memory) ReadProven(ctx context.Context, stream string, from eventstore.Revision) iter.Seq2[eventstore.Recorded, error] {
	return m.ReadStream(ctx, stream, from)
}

func (m *memory) Streams(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {}
}

func (m *memory) Prove(context.Context, eventstore.Position, func(done, total int64)) error {
	return nil
}

func (m *memory) Reclaim(context.Context, int, iter.Seq2[eventstore.Claim, error]) error {
	return errors.ErrUnsupported
}

func (m *memory) ClaimsVersion(context.Context) (int, error) { return 1, nil }

func (m *memory) Subscribe(ctx context.Context, after eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return func(yield func([]eventstore.Recorded, error) bool) {
		var page []eventstore.Recorded
		next := int(after)
		if m.bug == "subscription includes its position" {
			next = max(0, next-1)
		}
		for {
			if err := ctx.Err(); err != nil && m.bug != "subscription ignores context" {
				if m.bug != "canceled subscription ends without error" {
					yield(nil, err)
				}
				return
			}
			if err := m.closed(); err != nil {
				if m.bug != "closed subscription ends without error" {
					yield(nil, err)
				}
				return
			}
			m.mu.Lock()
			log, grown := m.log, m.grown
			m.mu.Unlock()
			if next < len(log) || m.bug == "empty pages" {
				if m.bug == "slow subscriber misses events" && len(log)-next > 1000 {
					next = len(log) - 1000
				}
				page = m.page(page, log[min(next, len(log)):min(next+500, len(log))])
				next += len(page)
				if m.bug == "subscription yields while locked" {
					m.mu.Lock()
				}
				goOn := yield(page, nil)
				if m.bug == "subscription yields while locked" {
					m.mu.Unlock()
				}
				if !goOn {
					return
				}
				continue
			}
			switch m.bug {
			case "subscription ends when it has caught up":
				return
			case "last event repeated after waiting":
				next = max(0, next-1)
			case "subscription never yields new events":
				grown = nil
			case "subscription wakes at the second append":
				select {
				case <-grown:
				case <-ctx.Done():
				}
				m.mu.Lock()
				grown = m.grown
				m.mu.Unlock()
			}
			done := ctx.Done()
			if m.bug == "subscription ignores context" {
				done = nil
			}
			select {
			case <-grown:
				if m.bug == "subscription skips when many events are new" {
					m.mu.Lock()
					if len(m.log) > next+2 {
						next++
					}
					m.mu.Unlock()
				}
			case <-done:
			case <-m.closing:
			}
		}
	}
}

// page returns a copy of events in the memory of the previous page.
func (m *memory) page(old, events []eventstore.Recorded) []eventstore.Recorded {
	switch m.bug {
	case "pages out of order":
		events = slices.Clone(events)
		if len(events) > 1 {
			slices.Reverse(events[len(events)-2:])
		}
	case "bytes of earlier pages overwritten":
		for _, rec := range old {
			clear(rec.Clear)
		}
		events = slices.Clone(events)
		for i := range events {
			events[i].Clear = bytes.Clone(events[i].Clear)
		}
	}
	return append(old[:0], events...)
}
