package main

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/eventstore"
)

// kills is how often TestKill9 kills the server. ACCOUNTLEDGER_TEST_KILLS sets
// another number.
func kills(t *testing.T) int {
	if n, err := strconv.Atoi(os.Getenv("ACCOUNTLEDGER_TEST_KILLS")); err == nil {
		return n
	}
	if testing.Short() {
		return 10
	}
	return 100
}

// acknowledged is a change that the server confirmed to a client.
type acknowledged struct {
	sub      string
	revision eventstore.Revision
	position eventstore.Position
}

// writer is a client that creates accounts and changes them, one request at a
// time, and records the confirmed changes.
type writer struct {
	name     string
	made     int
	subs     []string
	acks     []acknowledged
	answered func() // called after each answer
}

// TestKill9 kills the server at random moments under concurrent writers. After the
// restart, each confirmed event must have its sub and revision at its position,
// positions must have no gaps, no event may have changed, verify must pass, and
// the views must equal a rebuild.
func TestKill9(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	data := filepath.Join(t.TempDir(), "data")
	writers := make([]*writer, 6)
	for i := range writers {
		writers[i] = &writer{name: fmt.Sprintf("w%d", i)}
	}
	var seen history
	rounds := kills(t)
	for round := range rounds {
		p, stdout, err := spawn(data)
		if err != nil {
			t.Fatal(err)
		}
		if round%10 == 5 { // kill it during its start
			time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
			p.kill()
			continue
		}
		if err := p.ready(stdout, data); err != nil {
			p.kill()
			t.Fatalf("round %d: %v", round, err)
		}
		seen.check(t, round, data, writers)
		if round%10 == 9 {
			checkLedger(t, round, data)
		}
		// Count from the first answer on: on a slow machine, the server would be
		// killed before it does anything.
		life := time.Duration(random.IntN(250)) * time.Millisecond
		answered := sync.OnceFunc(func() { time.AfterFunc(life, func() { p.Process.Kill() }) })
		var writing sync.WaitGroup
		for _, w := range writers {
			w.answered = answered
			writing.Go(func() { w.write(t.Context(), p) })
		}
		writing.Wait()
		p.kill()
	}
	startServer(t, data)
	seen.check(t, rounds, data, writers)
	checkLedger(t, rounds, data)
	if len(seen.events) < rounds {
		t.Errorf("only %d events were written in %d rounds", len(seen.events), rounds)
	}
	t.Logf("%d events, including all %d confirmed ones, after %d kills", len(seen.events), seen.acknowledged, rounds)
}

// write sends changes until the server is killed.
func (w *writer) write(ctx context.Context, p *process) {
	for turn := 0; ; turn++ {
		method, path, body := "POST", "/v1/accounts", ""
		if turn%3 == 0 || len(w.subs) == 0 {
			w.made++
			body = fmt.Sprintf(`{"origin":"created","identities":[{"provider":"self","given_name":"%s","email":"%s.%d@example.com"}]}`, w.name, w.name, w.made)
		} else {
			path += "/" + w.subs[rand.IntN(len(w.subs))]
			if method = "PATCH"; turn%3 == 1 {
				body = fmt.Sprintf(`{"identity":{"family_name":"%s-%d"}}`, w.name, rand.Int64())
			} else {
				method, path = "PUT", path+"/status"
				body = fmt.Sprintf(`{"userStatus":%q}`, []string{"DECLINED", "VERIFIED"}[rand.IntN(2)])
			}
		}
		response, text, err := p.do(ctx, method, path, body)
		if err != nil {
			return // killed; the server may have stored the change
		}
		if response.StatusCode >= 300 {
			panic(fmt.Sprintf("%s %s: %s: %s", method, path, response.Status, text))
		}
		var account struct {
			Sub      string              `json:"sub"`
			Revision eventstore.Revision `json:"revision"`
			Position eventstore.Position `json:"position"`
		}
		if err := json.Unmarshal(text, &account); err != nil {
			panic(err)
		}
		if response.StatusCode == http.StatusCreated {
			w.subs = append(w.subs, account.Sub)
		}
		w.answered()
		w.acks = append(w.acks, acknowledged{account.Sub, account.Revision, account.Position})
	}
}

// history is the content of the log at the last check.
type history struct {
	events       []event
	next         map[string]eventstore.Revision // the next revision of each stream
	acknowledged int
}

type event struct {
	id       [16]byte
	stream   string
	revision eventstore.Revision
}

// check reads the whole log, compares it with the history, and looks for the
// events that the server confirmed to writers since then.
func (h *history) check(t *testing.T, round int, data string, writers []*writer) {
	t.Helper()
	log, err := openStoreReader(t.Context(), cli.Config{Data: data})
	if err != nil {
		t.Fatalf("round %d: %v", round, err)
	}
	defer log.Close()
	head, err := log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if int(head) < len(h.events) {
		t.Fatalf("round %d: the log ends at %d, but ended at %d before", round, head, len(h.events))
	}
	if h.next == nil {
		h.next = map[string]eventstore.Revision{}
	}
	position := eventstore.Position(0)
	for page, err := range until(log.Subscribe(t.Context(), 0), head) {
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range page {
			position++
			is := event{rec.ID, rec.Stream, rec.Revision}
			switch {
			case rec.Position != position:
				t.Fatalf("round %d: position %d follows %d", round, rec.Position, position-1)
			case int(position) <= len(h.events):
				if was := h.events[position-1]; was != is {
					t.Fatalf("round %d: the event at position %d is %v, but was %v", round, position, is, was)
				}
			default:
				if rec.Revision != h.next[rec.Stream] {
					t.Fatalf("round %d: %s has revision %d after %d", round, rec.Stream, rec.Revision, h.next[rec.Stream]-1)
				}
				h.next[rec.Stream]++
				h.events = append(h.events, is)
			}
		}
	}
	for _, w := range writers {
		for _, a := range w.acks {
			if int(a.position) > len(h.events) {
				t.Fatalf("round %d: lost: revision %d of %s at position %d was confirmed, but the log ends at %d", round, a.revision, a.sub, a.position, len(h.events))
			}
			if is := h.events[a.position-1]; is.stream != domain.AccountStream(a.sub) || is.revision != a.revision {
				t.Fatalf("round %d: lost: revision %d of %s was confirmed at position %d, where the log has %v", round, a.revision, a.sub, a.position, is)
			}
		}
		h.acknowledged += len(w.acks)
		w.acks = nil
	}
}

// until yields the pages of a subscription up to the head.
func until(pages iter.Seq2[[]eventstore.Recorded, error], head eventstore.Position) iter.Seq2[[]eventstore.Recorded, error] {
	return func(yield func([]eventstore.Recorded, error) bool) {
		if head == 0 {
			return
		}
		for page, err := range pages {
			if !yield(page, err) || err != nil || page[len(page)-1].Position >= head {
				return
			}
		}
	}
}

// checkLedger runs verify and check on the directory of a running server.
func checkLedger(t *testing.T, round int, data string) {
	t.Helper()
	for _, args := range [][]string{{"verify", "--data", data}, {"check", "--views", "--data", data}} {
		if code, stdout, stderr := accountledger(t, args...); code != cli.ExitOK {
			t.Fatalf("round %d: %s: exit code %d\n%s%s", round, strings.Join(args[:1], " "), code, stdout, stderr)
		}
	}
}

// TestKill9FirstStart kills the server while it creates a ledger. The next start
// must complete it.
func TestKill9FirstStart(t *testing.T) {
	t.Parallel()
	rounds := max(1, kills(t)/10)
	for round := range rounds {
		data := filepath.Join(t.TempDir(), "data")
		// Wait up to about the duration of a start.
		for range 2 {
			p, _, err := spawn(data)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
			p.kill()
		}
		p := startServer(t, data)
		p.create(t, "ada@example.com")
		p.kill()
		p = startServer(t, data)
		checkLedger(t, round, data)
		p.kill()
	}
}
