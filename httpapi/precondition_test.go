package httpapi

import (
	"net/http"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"accountledger/domain"
)

// unconditional are the operations besides changesNothing that append events
// and take no If-Match, and why.
var unconditional = map[string]string{
	"recordLogin": "records what has happened, whatever the account has become since it was read",
}

// TestEveryWriteTakesIfMatch holds that every write refuses an ETag that the
// object is not at, and appends nothing then; what has none is in a table with
// the reason.
func TestEveryWriteTakesIfMatch(t *testing.T) {
	t.Parallel()
	l := start(t)
	names := map[string]string{"<ada>": l.create(t, "ada@example.com"), "<bob>": l.create(t, "bob@example.com")}
	document := description(t)
	tried := map[string]bool{}
	for _, w := range writes(document) {
		op := operationAt(document, w.method, w.path)
		if op == nil {
			t.Fatalf("the API has no %s %s", w.method, w.path)
		}
		path, body := known(w.path, names), known(w.body, names)
		var conditions []string
		if unconditional[op.OperationID] == "" {
			conditions = []string{"If-Match: *"}
			before, err := l.Log.Head(t.Context())
			check(t, err)
			l.refused(t, domain.CodeStaleRevision, w.method, path, body, `If-Match: "4711"`)
			after, err := l.Log.Head(t.Context())
			check(t, err)
			if after != before {
				t.Errorf("%s appends %d events although the ETag is stale", op.OperationID, after-before)
			}
		}
		tried[op.OperationID] = true
		r := l.send(t, w.method, path, body, conditions...)
		if r.status >= 300 {
			t.Errorf("%s: %d %s", op.OperationID, r.status, r.body)
		}
		if w.keep != "" {
			names["<"+w.keep[strings.LastIndex(w.keep, ".")+1:]+">"] = r.text(t, w.keep)
		}
	}
	for path, item := range document.Paths.Map() {
		for method, op := range item.Operations() {
			takes := op.Parameters.GetByInAndName(openapi3.ParameterInHeader, "If-Match") != nil
			excused := unconditional[op.OperationID] != "" || changesNothing[op.OperationID] != ""
			switch {
			case method == http.MethodGet:
			case takes == excused:
				t.Errorf("%s %s: takes If-Match: %t; is said not to: %t", method, path, takes, excused)
			case takes && !tried[op.OperationID]:
				t.Errorf("no stale ETag is tried on %s %s (%s)", method, path, op.OperationID)
			}
		}
	}
}
