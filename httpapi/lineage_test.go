package httpapi

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
	"accountledger/eventstore"
)

// copyLog copies the log of a closed ledger.
func (f files) copyLog(t *testing.T) []byte {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(f.dir, "log.db"))
	check(t, err)
	return log
}

// restore puts back a copy of the log, without the files that follow it.
func (f files) restore(t *testing.T, log []byte) {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(f.dir, "log.db"), log, 0o600))
	for _, name := range []string{"views.db", "delivery.db"} {
		check(t, os.Remove(filepath.Join(f.dir, name)))
	}
}

// rolledBack opens the ledger with an older copy of its log, as a new incarnation.
func (f files) rolledBack(t *testing.T, log []byte, number int) (*ledger, eventstore.Position) {
	t.Helper()
	f.restore(t, log)
	l := f.open(t)
	size, err := l.Log.Head(t.Context())
	check(t, err)
	_, err = l.Ledger.Fork(t.Context(), domain.Request{Meta: domain.Metadata{Actor: domain.Actor{Kind: "system", ID: "test"}}}, domain.ForkLedger{
		LedgerID: "ledger.test/log", Incarnation: number, PreviousOrigin: "ledger.test/log", Size: size, Root: "root", Reason: "a test"})
	check(t, err)
	return l, size
}

// feedEvent is an event of the feed.
type feedEvent struct {
	ID, Type, Stream string
	Sequence         int64
}

// reader is a client of the feed that obeys docs/events.md to the letter.
type reader struct {
	cursor  string
	applied []feedEvent
	seen    map[string]bool  // ids
	last    map[string]int64 // applied sequence, by stream
}

func (r *reader) take(t *testing.T, e feedEvent) {
	t.Helper()
	switch last, ok := r.last[e.Stream]; {
	case r.seen[e.ID]:
		t.Errorf("%+v comes twice", e)
	case ok && e.Sequence < last:
		t.Errorf("%+v is ignored, because sequence %d was applied", e, last)
	default:
		r.seen[e.ID], r.last[e.Stream] = true, e.Sequence
		r.applied = append(r.applied, e)
	}
}

// read reads n events, or all if n is negative.
func (r *reader) read(t *testing.T, l *ledger, n int) {
	t.Helper()
	for ; n != 0; n-- {
		page := l.want(t, 200, "GET", "/v1/events?limit=1&after="+r.cursor, "")
		var body struct {
			Events []feedEvent `json:"events"`
			Next   string      `json:"next"`
			More   bool        `json:"more"`
		}
		check(t, json.Unmarshal(page.body, &body, json.MatchCaseInsensitiveNames(true)))
		for _, e := range body.Events {
			r.take(t, e)
		}
		if r.cursor = body.Next; n < 0 && !body.More {
			return
		}
	}
}

// readers returns readers that have read all numbers of events from the beginning.
func readers(t *testing.T, l *ledger) (all []*reader) {
	t.Helper()
	whole := &reader{cursor: "0", seen: map[string]bool{}, last: map[string]int64{}}
	whole.read(t, l, -1)
	for n := range len(whole.applied) + 1 {
		r := &reader{cursor: "0", seen: map[string]bool{}, last: map[string]int64{}}
		r.read(t, l, n)
		all = append(all, r)
	}
	return all
}

// TestRolledBack: readers of the feed that stopped anywhere go on after the ledger
// was rolled back, twice. They lose no event that exists, and apply none twice.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	l := f.open(t)
	path := l.want(t, 201, "POST", "/v1/accounts", ada).header.Get("Location")
	l.want(t, 200, "PATCH", path, `{"identity":{"family_name":"King"}}`)
	l.close()
	backup := f.copyLog(t)
	l = f.open(t)
	kept := readers(t, l)
	l.want(t, 201, "POST", "/v1/accounts", strings.Replace(ada, "ada@", "bob@", 1)) // several public events
	l.want(t, 200, "PATCH", path, `{"identity":{"family_name":"Byron"}}`)
	l.want(t, 200, "PUT", path+"/status", `{"userStatus":"VERIFIED"}`)
	before := readers(t, l)
	oldHistory := l.want(t, 200, "GET", path+"/events?limit=3", "").text(t, "next")
	if oldHistory != "2" || strings.Contains(before[len(before)-1].cursor, "~") {
		t.Errorf("cursors of incarnation 0: %s, %s", oldHistory, before[len(before)-1].cursor)
	}
	l.close()

	l, fork := f.rolledBack(t, backup, 1)
	defer func() { l.close() }()
	l.want(t, 200, "PATCH", path, `{"identity":{"family_name":"Babbage"}}`) // at a revision and a position that are used already
	l.want(t, 201, "POST", "/v1/accounts", strings.Replace(ada, "ada@", "cy@", 1))
	l.want(t, 200, "PUT", path+"/status", `{"userStatus":"VERIFIED"}`)
	l.want(t, 200, "PUT", path+"/status", `{"userStatus":"DECLINED"}`)
	again := readers(t, l)
	for n, r := range kept {
		if again[n].cursor != r.cursor {
			t.Errorf("after %d events the cursor is %s, and was %s before the fork", n, again[n].cursor, r.cursor)
		}
	}
	continues := func(r *reader, valid bool, fork eventstore.Position) {
		t.Helper()
		cursor := r.cursor
		if !valid {
			refused := l.refused(t, codeCursorForked, "GET", "/v1/events?after="+cursor, "")
			stream := l.refused(t, codeCursorForked, "GET", "/v1/events", "", "Accept: text/event-stream", "Last-Event-ID: "+cursor)
			r.cursor = refused.text(t, "next")
			if refused.member(t, "fork") != float64(fork) || stream.text(t, "next") != r.cursor {
				t.Errorf("%s: %s and %s, want the fork %d", cursor, refused.body, stream.body, fork)
			}
		} else if s := l.stream(t, "/v1/events", "Last-Event-ID: "+cursor); s != nil {
			s.close()
		}
		r.read(t, l, -1)
		lost := map[string]bool{}
		whole := readers(t, l)
		for _, e := range whole[len(whole)-1].applied {
			if !r.seen[e.ID] {
				lost[fmt.Sprint(e)] = true
			}
		}
		if len(lost) > 0 {
			t.Errorf("a reader that was at %s never gets %v", cursor, lost)
		}
	}
	for n, r := range before {
		// A reader between the three public events of the lost creation is still at
		// the fork.
		continues(r, n < len(kept)+2, fork)
	}

	// Positions alone, datarefs and pages of the history.
	if r := l.want(t, 200, "GET", fmt.Sprint("/v1/events?after=", fork), ""); r.text(t, "events.0.type") != "LEDGER_FORKED" || r.text(t, "events.0.stream") != "ledger~1" ||
		r.member(t, "events.0.data.fork") != float64(fork) {
		t.Errorf("after the fork: %s", r.body)
	}
	l.refused(t, codeCursorForked, "GET", fmt.Sprint("/v1/events?after=", fork+1), "")
	for place, status := range map[string]int{"1.0": 200, "1.0~1": 404, "4.0": 404, "4.0~1": 200, "4.0~2": 404, "4.0~0": 404} {
		l.want(t, status, "GET", "/v1/events/"+place+"/data", "")
	}
	for _, resource := range []string{path + "/events", path + "/disclosures"} {
		if r := l.refused(t, codeCursorForked, "GET", resource+"?after="+oldHistory, ""); r.text(t, "next") != "1" {
			t.Errorf("an old cursor of %s: %s", resource, r.body)
		}
		l.want(t, 200, "GET", resource+"?after=1", "")
	}
	if r := l.want(t, 200, "GET", "/v1/exports", ""); l.want(t, 200, "GET", "/v1/events?after="+r.header.Get("Ledger-Cursor"), "").text(t, "next") != again[len(again)-1].cursor {
		t.Errorf("the cursor of an export is %s", r.header.Get("Ledger-Cursor"))
	}
	newHistory := l.want(t, 200, "GET", path+"/events?limit=3", "").text(t, "next")
	if r := l.want(t, 200, "GET", path+"/events?after="+newHistory, ""); newHistory == oldHistory || r.member(t, "events.0.revision") != 3.0 {
		t.Errorf("after %s the history has %s", newHistory, r.body)
	}
	for _, bad := range []string{"~1.2", "3~", "3~1", "3~1.x", "3~0.2", "3~-1.2", again[len(again)-1].cursor + "~7.100"} {
		l.refused(t, domain.CodeInvalidCursor, "GET", "/v1/events?after="+bad, "")
	}
	l.close()

	l, _ = f.rolledBack(t, backup, 2)
	l.want(t, 200, "PUT", path+"/status", `{"userStatus":"VERIFIED"}`)
	for n, r := range again {
		continues(r, n < len(kept), fork)
	}
	l.close()
	// Somebody restores the copy without a new incarnation.
	f.restore(t, backup)
	l = f.open(t)
	l.refused(t, domain.CodeInvalidCursor, "GET", "/v1/events?after="+again[len(again)-1].cursor, "")
}

// TestUnforked: a ledger that was never rolled back has the cursors of the versions
// before there were incarnations, and the streams have plain names.
func TestUnforked(t *testing.T) {
	t.Parallel()
	l := start(t)
	sub := l.create(t, "ada@example.com")
	l.want(t, 200, "PUT", "/v1/fields/tier", `{"dataType":"TEXT"}`)
	r := l.want(t, 200, "GET", "/v1/events", "")
	epoch := func() string {
		for page, err := range l.Log.Subscribe(t.Context(), 0) {
			check(t, err)
			id := fmt.Sprintf("%x", page[0].ID)
			return id[len(id)-8:]
		}
		return ""
	}()
	if got, want := r.text(t, "next"), fmt.Sprintf("v1.%s.%d", epoch, 2); got != want {
		t.Errorf("cursor %s, want %s", got, want)
	}
	var streams []any
	for _, e := range r.member(t, "events").([]any) {
		streams = append(streams, e.(map[string]any)["stream"])
	}
	if want := []any{"account-" + sub, "account-" + sub, "configuration"}; !cmp.Equal(streams, want) {
		t.Errorf("streams %v, want %v", streams, want)
	}
}
