package eventstoretest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"path"
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
	log     []eventstore.Recorded
	claims  map[claimed]string
	waiting map[claimed][]string // owners, in their order
	version int                  // of the claims
}

type claimed struct{ kind, key string }

func newDisks(bug string) *disks { return &disks{bug: bug, dirs: map[string]*disk{}} }

func (d *disks) open(dir string) eventstore.Store {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dirs[dir] == nil {
		d.dirs[dir] = &disk{claims: map[claimed]string{}, version: 1}
	}
	on := d.dirs[dir]
	switch d.bug {
	case "claims forgotten":
		on.claims = map[claimed]string{}
	case "waiting claims forgotten":
		on.waiting = nil
	case "waiting claims sorted at opening":
		for _, owners := range on.waiting {
			slices.Sort(owners)
		}
	case "claims version forgotten":
		on.version = 1
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
	if m.bug == "refused commit ends waiting" {
		m.settle(m.disk.claims, m.disk.waiting, c)
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
	waiting := maps.Clone(m.waiting)
	if waiting != nil {
		m.settle(claims, waiting, c)
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
		m.claims, m.waiting = claims, waiting
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

// settle ends the waiting of owners that released or took a claim, and then gives
// each released claim that is free to the first owner that waits for it.
func (m *memory) settle(claims map[claimed]string, waiting map[claimed][]string, c eventstore.Commit) {
	end := func(k eventstore.Claim) {
		waiting[m.key(k)] = slices.DeleteFunc(slices.Clone(waiting[m.key(k)]), func(owner string) bool {
			return owner == k.Owner || m.bug == "any release ends all waiting"
		})
	}
	for _, k := range c.Release {
		if m.claims[m.key(k)] != k.Owner && m.bug != "release of a waiting claim ignored" {
			end(k)
		}
	}
	for _, k := range c.Claim {
		if m.bug != "an owner waits for the claim it takes" {
			end(k)
		}
	}
	for _, k := range c.Release {
		id := m.key(k)
		_, held := claims[id]
		if next := waiting[id]; len(next) > 0 && !held && m.bug != "nobody is promoted" {
			if m.bug == "last owner is promoted" {
				next = slices.Clone(next)
				slices.Reverse(next)
			}
			claims[id], waiting[id] = next[0], next[1:]
		}
	}
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
	return func(yield func(eventstore.Recorded, error) bool) {
		if m.bug == "from ignored by proven reads" {
			from = 0
		}
		for rec, err := range m.ReadStream(ctx, stream, from) {
			switch {
			case m.bug == "proven read fails after an erasure" && rec.Erased():
				err = eventstore.ErrTampered
			case m.bug == "proven read ends at 256 events" && rec.Revision >= 256:
				return
			case m.bug == "proven read ignores context" && err != nil:
				return
			}
			if !yield(rec, err) {
				return
			}
		}
	}
}

func (m *memory) Streams(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if err := m.closed(); err != nil {
			yield("", err)
			return
		}
		m.mu.Lock()
		var names []string
		seen := map[string]bool{}
		for _, rec := range m.log {
			match := strings.HasPrefix(rec.Stream, prefix)
			switch m.bug {
			case "prefixes ignore case":
				match = strings.HasPrefix(strings.ToLower(rec.Stream), strings.ToLower(prefix))
			case "prefixes are patterns":
				match, _ = path.Match(strings.NewReplacer("%", "*", "_", "?").Replace(prefix)+"*", rec.Stream)
			case "prefix itself is no stream":
				match = match && rec.Stream != prefix
			}
			if match && !seen[rec.Stream] {
				names = append(names, rec.Stream)
			}
			seen[rec.Stream] = m.bug != "streams are yielded per event"
		}
		m.mu.Unlock()
		if m.bug != "streams in the order of creation" {
			slices.Sort(names)
		}
		if m.bug == "one page of streams" {
			names = names[:min(len(names), 512)]
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil && m.bug != "canceled read ends without error" {
				yield("", err)
				return
			}
			if !yield(name, nil) {
				if m.bug == "stopped read keeps its lock" {
					m.mu.Lock()
				}
				return
			}
		}
	}
}

func (m *memory) Prove(ctx context.Context, to eventstore.Position, progress func(done, total int64)) error {
	if err := cmp.Or(m.closed(), ctx.Err()); err != nil && m.bug != "proof ignores context" {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, rec := range m.log[:to] {
		if m.bug == "proof fails after an erasure" && rec.Erased() || m.bug == "proof only of the head" && int(to) < len(m.log) {
			return eventstore.ErrTampered
		}
		if progress != nil && m.bug != "proof without progress" || m.bug == "proof requires progress" {
			progress(int64(i+1), int64(to))
		}
	}
	return nil
}

func (m *memory) Reclaim(ctx context.Context, version int, claims iter.Seq2[eventstore.Claim, error]) error {
	if err := m.closed(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	held, waiting := map[claimed]string{}, map[claimed][]string{}
	switch m.bug {
	case "old claims stay":
		held = m.claims
	case "old waiting claims stay":
		waiting = maps.Clone(m.waiting)
		if waiting == nil {
			waiting = map[claimed][]string{}
		}
	case "version first":
		m.version = version
	case "failed reclaim removes the claims":
		m.claims, m.waiting = held, waiting
	}
	if m.bug != "reclaim locks the log" {
		m.mu.Unlock()
	}
	taken := 0
	var failed error
	for k, err := range claims {
		if failed = cmp.Or(err, ctx.Err()); failed != nil {
			break
		}
		if taken++; m.bug == "one page of claims" && taken > 1024 {
			break
		}
		id := m.key(k)
		owner, isHeld := held[id]
		switch {
		case !isHeld || m.bug == "last owner holds":
			held[id] = k.Owner
		case m.bug == "nobody waits":
		case owner == k.Owner && m.bug != "holder waits":
		case !slices.Contains(waiting[id], k.Owner) || m.bug == "an owner waits twice":
			waiting[id] = append(waiting[id], k.Owner)
		}
	}
	if m.bug != "reclaim locks the log" {
		m.mu.Lock()
	}
	if failed != nil && m.bug != "failed reclaim takes effect" {
		return failed
	}
	m.claims, m.waiting = held, waiting
	if m.bug != "claims version stays" {
		m.version = version
	}
	if m.bug == "reclaim appends an event" {
		m.write(write("claims", eventstore.Any, 1).Writes[0], time.Now().UTC().Truncate(time.Microsecond))
	}
	return failed
}

func (m *memory) ClaimsVersion(context.Context) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.version, m.closed()
}

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
