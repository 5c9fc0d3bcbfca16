package httpapi

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	gocmp "github.com/google/go-cmp/cmp"

	"accountledger/domain"
	"accountledger/eventstore"
	"accountledger/projections/export"
)

func TestExport(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.want(t, 200, "PUT", "/v1/fields/score", `{"dataType":"NUMBER","internal":true}`)
	sub := l.create(t, "ada@example.com")
	before := l.create(t, "bob@example.com")
	since := l.want(t, 200, "PATCH", "/v1/accounts/"+sub+"/custom-fields", `{"score":7,"tier":"gold"}`).position()
	gone := l.create(t, "gone@example.com")
	l.want(t, 200, "DELETE", "/v1/accounts/"+gone+"?immediate=true", "")
	reader := "Authorization: Bearer " + l.key(t, "reader", scopeAccountsRead)
	at := l.want(t, 200, "GET", "/v1/accounts/"+sub, "").position()

	whole := l.want(t, 200, "GET", "/v1/exports", "")
	if whole.header.Get("Content-Type") != "application/x-ndjson" || whole.position() < at {
		t.Errorf("headers %v", whole.header)
	}
	if document := l.want(t, 200, "GET", "/v1/accounts/"+sub, ""); !strings.Contains(string(whole.body), string(document.body)+"\n") || strings.Count(string(whole.body), "\n") != 3 {
		t.Errorf("export %s does not contain %s", whole.body, document.body)
	}
	if strings.Contains(string(whole.body), "gone@") || !strings.Contains(string(whole.body), "erasedTime") {
		t.Errorf("the erased account: %s", whole.body)
	}
	// Callers without accounts:admin see no internal field in any format.
	for _, format := range []string{"ndjson", "csv", "parquet"} {
		if got := l.want(t, 200, "GET", "/v1/exports?format="+format, "", reader); bytes.Contains(got.body, []byte("score")) || !bytes.Contains(got.body, []byte("gold")) {
			t.Errorf("%s for a caller without accounts:admin: %s", format, got.body)
		}
	}
	few := l.want(t, 200, "GET", "/v1/exports?format=csv&fields=email,revision&since="+since, "")
	records, err := csv.NewReader(bytes.NewReader(few.body)).ReadAll()
	check(t, err)
	if diff := gocmp.Diff([][]string{{"sub", "email", "revision"}, {gone, "", records[1][2]}}, records); diff != "" {
		t.Errorf("changed since (-want +got):\n%s", diff)
	}
	flat := l.want(t, 200, "GET", "/v1/exports?fields=email", "")
	if !strings.Contains(string(flat.body), `{"email":"bob@example.com","sub":"`+before+`"}`+"\n") {
		t.Errorf("flat: %s", flat.body)
	}
	l.refused(t, domain.CodeInvalidRequest, "GET", "/v1/exports?format=xml", "")
	l.refused(t, domain.CodeInvalidRequest, "GET", "/v1/exports?fields=email,secret", "")
	l.refused(t, domain.CodeInvalidRequest, "GET", "/v1/exports?since=-1", "")
	l.refused(t, domain.CodeInvalidCursor, "GET", "/v1/exports?since=1000000", "")
	l.refused(t, codeForbidden, "GET", "/v1/exports", "", "Authorization: Bearer "+l.key(t, "feed", scopeEventsRead))
}

// TestReconciliation compares the sums with those computed from an export.
func TestReconciliation(t *testing.T) {
	t.Parallel()
	l := start(t)
	for n := range 20 {
		sub := l.create(t, fmt.Sprintf("p%d@example.com", n))
		switch {
		case n%3 == 0:
			l.want(t, 200, "PATCH", "/v1/accounts/"+sub, `{"identity":{"family_name":"King"}}`)
		case n == 7:
			l.want(t, 200, "DELETE", "/v1/accounts/"+sub+"?immediate=true", "")
		}
	}
	got := l.want(t, 200, "GET", "/v1/reconciliation?digits=1", "")
	file := filepath.Join(t.TempDir(), "accounts.ndjson")
	check(t, os.WriteFile(file, l.want(t, 200, "GET", "/v1/exports?fields=revision,erasedTime", "").body, 0o600))
	var all export.Sum
	shards := map[string]export.Sum{}
	check(t, export.ReadTarget(file, func(h export.Held) {
		all.Add(h.Sub, h.Revision)
		sum := shards[export.Shard(h.Sub, 1)]
		sum.Add(h.Sub, h.Revision)
		shards[export.Shard(h.Sub, 1)] = sum
	}))
	var r reconciliation
	check(t, json.Unmarshal(got.body, &r))
	if r.Accounts != 19 || all.Accounts != 19 || r.Checksum != all.Checksum() || len(r.Shards) != len(shards) {
		t.Errorf("reconciliation %+v, want %+v in %d shards", r, all, len(shards))
	}
	for _, s := range r.Shards {
		if want := shards[s.Shard]; s.Accounts != want.Accounts || s.Checksum != want.Checksum() {
			t.Errorf("shard %+v, want %+v", s, want)
		}
		var sum export.Sum
		var inside shardAccounts
		check(t, json.Unmarshal(l.want(t, 200, "GET", "/v1/reconciliation/"+s.Shard, "").body, &inside))
		for _, a := range inside.Accounts {
			sum.Add(a.Sub, a.Revision)
		}
		if sum.Checksum() != s.Checksum {
			t.Errorf("the checksum of the accounts in shard %s is %s, want %s", s.Shard, sum.Checksum(), s.Checksum)
		}
	}
	l.refused(t, domain.CodeInvalidRequest, "GET", "/v1/reconciliation/xyz", "")
}

// copied is an account in a target system.
type copied struct {
	Revision          eventstore.Revision
	Email, FamilyName string
}

// target is a system that has loaded an export and applies events.
type target struct {
	t *testing.T

	mu       sync.Mutex
	accounts map[string]copied
	seen     map[string]bool // ids of events
	loaded   map[string]eventstore.Revision
}

func newTarget(t *testing.T, exported []byte) *target {
	x := &target{t: t, accounts: map[string]copied{}, seen: map[string]bool{}, loaded: map[string]eventstore.Revision{}}
	for line := range bytes.Lines(exported) {
		var a struct {
			Sub      string              `json:"sub"`
			Revision eventstore.Revision `json:"revision"`
			Email    string              `json:"email"`
			Family   string              `json:"family_name"`
			Erased   string              `json:"erasedTime"`
		}
		check(t, json.Unmarshal(line, &a))
		if a.Erased == "" {
			x.accounts[a.Sub] = copied{a.Revision, a.Email, a.Family}
		}
		x.loaded[a.Sub] = a.Revision
	}
	return x
}

// apply applies an event, and reports one that the export already contains or
// that is out of order.
func (x *target) apply(body []byte) {
	var e struct {
		ID       string              `json:"id"`
		Type     string              `json:"type"`
		Sub      string              `json:"sub"`
		Sequence eventstore.Revision `json:"sequence"`
		Data     struct {
			Email   string            `json:"email"`
			Changes map[string]string `json:"changes"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &e); err != nil {
		x.t.Error(err)
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.seen[e.ID] || e.Sub == "" {
		return // a duplicate, or a change of the configuration
	}
	x.seen[e.ID] = true
	a, known := x.accounts[e.Sub]
	if revision, loaded := x.loaded[e.Sub]; loaded && e.Sequence <= revision {
		x.t.Errorf("received %s of sequence %d, but the export has revision %d", e.Type, e.Sequence, revision)
	}
	if known && (e.Sequence < a.Revision || e.Sequence > a.Revision+1) || !known && e.Sequence != 0 {
		x.t.Errorf("%s of sequence %d follows revision %d", e.Type, e.Sequence, a.Revision)
	}
	a.Revision = e.Sequence
	a.Email, a.FamilyName = cmp.Or(e.Data.Email, a.Email), cmp.Or(e.Data.Changes["family_name"], a.FamilyName)
	if x.accounts[e.Sub] = a; e.Type == "USER_DELETED" {
		delete(x.accounts, e.Sub)
	}
}

// checksum computes the checksum of a target's accounts.
func (x *target) checksum() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var sum export.Sum
	for sub, a := range x.accounts {
		sum.Add(sub, a.Revision)
	}
	return sum.Checksum()
}

// TestSnapshotThenTail loads an export made while accounts change, and follows
// the feed and a webhook from its position. Both targets end up with exactly the
// ledger's accounts: no change is missed or applied twice.
func TestSnapshotThenTail(t *testing.T) {
	t.Parallel()
	l := start(t)
	half := make(chan struct{})
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for n := range 30 {
				if n == 15 && w == 0 {
					close(half)
				}
				sub := l.create(t, fmt.Sprintf("w%d-%d@example.com", w, n))
				l.want(t, 200, "PATCH", "/v1/accounts/"+sub, fmt.Sprintf(`{"identity":{"family_name":"King %d"}}`, n))
				if n%10 == 3 {
					l.want(t, 200, "DELETE", "/v1/accounts/"+sub+"?immediate=true", "")
				}
			}
		})
	}
	<-half
	exported := l.want(t, 200, "GET", "/v1/exports?fields=revision,email,family_name,erasedTime", "")
	hooked, fed := newTarget(t, exported.body), newTarget(t, exported.body)
	schemas := l.client.Transport.(*conformance)
	arrived := make(chan struct{}, 1000)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var e struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(body, &e); err != nil {
			t.Error(err)
		} else if err := schemas.body([]string{"components", "schemas", e.Type}, body); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		hooked.apply(body)
		w.WriteHeader(http.StatusNoContent)
		arrived <- struct{}{}
	}))
	defer receiver.Close()
	l.want(t, 201, "POST", "/v1/webhooks", fmt.Sprintf(`{"url":"%s","events":["*"],"after":%s}`, receiver.URL, exported.position()))
	cursor := exported.position()
	apply := func() {
		for more := true; more; {
			page := l.want(t, 200, "GET", "/v1/events?limit=7&after="+cursor, "")
			var f struct {
				Events []jsontext.Value `json:"events"`
				Next   string           `json:"next"`
				More   bool             `json:"more"`
			}
			check(t, json.Unmarshal(page.body, &f))
			for _, e := range f.Events {
				fed.apply(e)
			}
			cursor, more = f.Next, f.More
		}
	}
	apply()
	writers.Wait()
	apply()
	var r reconciliation
	check(t, json.Unmarshal(l.want(t, 200, "GET", "/v1/reconciliation", "").body, &r))
	apply()
	for hooked.checksum() != r.Checksum {
		<-arrived // waits for deliveries in progress
	}
	ledger := newTarget(t, l.want(t, 200, "GET", "/v1/exports?fields=revision,email,family_name,erasedTime", "").body)
	for name, x := range map[string]*target{"feed": fed, "webhook": hooked} {
		if diff := gocmp.Diff(ledger.accounts, x.accounts); diff != "" {
			t.Errorf("%s: accounts of the target (-ledger +target):\n%s", name, diff)
		}
		if len(x.seen) == 0 {
			t.Errorf("%s: nothing happened after the export", name)
		}
	}
}

// TestCompare checks that every kind of difference is found, and nothing else.
func TestCompare(t *testing.T) {
	t.Parallel()
	l := start(t)
	equal, behind, ahead, missing, gone := l.create(t, "a@example.com"), l.create(t, "b@example.com"), l.create(t, "c@example.com"), l.create(t, "d@example.com"), l.create(t, "e@example.com")
	l.want(t, 200, "DELETE", "/v1/accounts/"+gone+"?immediate=true", "")
	// Its erasure is recorded later; the target knows both events.
	for l.want(t, 200, "GET", "/v1/accounts/"+gone+"/deletion", "").text(t, "certificate.completedTime") == "" {
	}
	known := l.want(t, 200, "GET", "/v1/events?limit=1", "").position()
	l.want(t, 200, "PATCH", "/v1/accounts/"+behind, `{"identity":{"family_name":"King"}}`)
	unheard := domain.NewID().String()
	held := []export.Held{{Sub: equal}, {Sub: equal}, {Sub: behind}, {Sub: ahead, Revision: 5}, {Sub: gone}, {Sub: unheard, Revision: 1}}
	compare := func(at eventstore.Position) (map[string]string, export.Comparison) {
		found := map[string]string{}
		c, err := export.Compare(t.Context(), l.Views, at, func(each func(export.Held)) error {
			for _, h := range held {
				each(h)
			}
			return nil
		}, func(d export.Difference) { found[d.Sub] += d.What })
		check(t, err)
		return found, c
	}
	want := map[string]string{equal: export.Twice, behind: export.Behind, ahead: export.Ahead, missing: export.Missing, gone: export.Surplus, unheard: export.Surplus}
	found, c := compare(0)
	if diff := gocmp.Diff(want, found); diff != "" || c.Equal != 1 || c.Later != 0 || c.Target != int64(len(held)) {
		t.Errorf("%+v (-want +found):\n%s", c, diff)
	}
	at, err := strconv.ParseInt(known, 10, 64)
	check(t, err)
	delete(want, behind) // it changed after the target's position
	if found, c = compare(eventstore.Position(at)); !gocmp.Equal(want, found) || c.Later < 1 {
		t.Errorf("as of %s: %+v (-want +found):\n%s", known, c, gocmp.Diff(want, found))
	}
	held = []export.Held{{Sub: "ada@example.com"}}
	if _, err := export.Compare(t.Context(), l.Views, 0, func(each func(export.Held)) error { each(held[0]); return nil }, func(export.Difference) {}); err == nil || strings.Contains(err.Error(), "ada") {
		t.Errorf("an invalid sub = %v", err)
	}
}
