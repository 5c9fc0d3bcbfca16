package httpapi

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
)

// TestEveryWriteRepeats sends every write twice with one Idempotency-Key, and
// once more after a restart, when other writes have changed the same objects:
// repeated requests get the first response and append nothing.
func TestEveryWriteRepeats(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	l := f.open(t)
	t.Cleanup(func() { l.close() })
	head := func() int64 {
		position, err := l.Log.Head(t.Context())
		check(t, err)
		return int64(position)
	}
	names := map[string]string{"<ada>": l.create(t, "ada@example.com"), "<bob>": l.create(t, "bob@example.com")}
	type sent struct {
		method, path, body, key string
		first                   response
	}
	var all []sent
	for i, w := range writes(description(t)) {
		s := sent{method: w.method, path: known(w.path, names), body: known(w.body, names), key: fmt.Sprint("Idempotency-Key: k", i)}
		s.first = l.send(t, s.method, s.path, s.body, s.key)
		if s.first.status >= 300 {
			t.Fatalf("%s %s: %d %s", s.method, s.path, s.first.status, s.first.body)
		}
		if w.keep != "" {
			names["<"+w.keep[strings.LastIndex(w.keep, ".")+1:]+">"] = s.first.text(t, w.keep)
		}
		before := head()
		again := l.send(t, s.method, s.path, s.body, s.key)
		if strings.Contains(s.path, "immediate=true") {
			// The account is erased, and its commands with it.
			if again.status != 410 {
				t.Errorf("an erasure again: %d %s", again.status, again.body)
			}
			continue
		}
		if again.status != s.first.status || head() != before {
			t.Errorf("%s %s again: %d %s, and %d more events; the first time %d", s.method, s.path, again.status, again.body, head()-before, s.first.status)
		}
		if first, second := lasting(t, s.first.body), lasting(t, again.body); first != second {
			t.Errorf("%s %s again: %s\nthe first time: %s", s.method, s.path, second, first)
		}
		if strings.Contains(string(again.body), `"secret":`) || strings.Contains(string(again.body), `"key":"`) {
			t.Errorf("%s %s again: the response shows the secret a second time", s.method, s.path)
		}
		if s.body != "" {
			l.refused(t, domain.CodeIdempotencyKeyReused, s.method, s.path, s.body+" ", s.key)
		}
		all = append(all, s)
	}
	l.close()
	l = f.open(t)
	before := head()
	for _, s := range all {
		again := l.send(t, s.method, s.path, s.body, s.key)
		want := s.first.status
		if strings.HasPrefix(s.path, "/v1/accounts/"+names["<bob>"]) {
			want = 410 // erased since
		}
		if again.status != want {
			t.Errorf("%s %s after a restart: %d %s; want %d", s.method, s.path, again.status, again.body, want)
		}
	}
	if after := head(); after != before {
		t.Errorf("repetitions after a restart appended %d events", after-before)
	}
}

// lasting returns a response without the members that show the present and
// not the outcome of a command: how deliveries go, and when a key was used; and
// without secrets, which only the first response has.
func lasting(t *testing.T, body []byte) string {
	t.Helper()
	var document map[string]jsontext.Value
	if len(body) == 0 {
		return ""
	}
	check(t, json.Unmarshal(body, &document))
	for _, name := range []string{"position", "backlog", "lanes", "blocked", "deadLetters", "breaker", "lastSuccessTime", "secret", "key", "lastUsedTime"} {
		delete(document, name)
	}
	text, err := json.Marshal(document, json.Deterministic(true))
	check(t, err)
	return string(text)
}
