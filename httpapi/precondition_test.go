package httpapi

import (
	"net/http"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"accountledger/domain"
)

// unconditional has the operations that append events but do not accept
// If-Match, with the reason.
var unconditional = map[string]string{
	"recordLogin": "records a fact, which does not depend on the account's revision",
}

// TestEveryWriteTakesIfMatch checks that every write refuses a stale ETag and
// then appends nothing. The exceptions are listed with their reason.
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
				t.Errorf("%s %s: accepts If-Match: %t; listed as an exception: %t", method, path, takes, excused)
			case takes && !tried[op.OperationID]:
				t.Errorf("writes has no request for %s %s (%s)", method, path, op.OperationID)
			}
		}
	}
}
