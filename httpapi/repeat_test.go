package httpapi

import (
	"fmt"
	"strings"
	"testing"

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
		// The state of deliveries differs, and an API key is returned only once.
		if !strings.HasPrefix(s.path, "/v1/webhooks") && s.path != "/v1/api-keys" && string(again.body) != string(s.first.body) {
			t.Errorf("%s %s again: %s\nthe first time: %s", s.method, s.path, again.body, s.first.body)
		}
		// A repeated creation of a webhook is recognized by its settings, not its bytes.
		if s.body != "" && s.path != "/v1/webhooks" {
			l.refused(t, domain.CodeIdempotencyKeyReused, s.method, s.path, s.body+" ", s.key)
		}
		all = append(all, s)
	}
	l.close()
	l = f.open(t)
	before := head()
	for _, s := range all {
		again := l.send(t, s.method, s.path, s.body, s.key)
		// The merge was sealed under the key of an account erased since, so its
		// digest can no longer be compared.
		gone := strings.HasSuffix(s.path, "/merge") && again.status == 422 ||
			again.status == 410 && strings.Contains(s.path, names["<bob>"]) ||
			again.status == 404 && (strings.HasPrefix(s.path, "/v1/webhooks/") || strings.HasPrefix(s.path, "/v1/api-keys/"))
		if again.status != s.first.status && !gone {
			t.Errorf("%s %s after a restart: %d %s; the first time %d", s.method, s.path, again.status, again.body, s.first.status)
		}
	}
	if after := head(); after != before {
		t.Errorf("repetitions after a restart appended %d events", after-before)
	}
}
