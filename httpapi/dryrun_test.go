package httpapi

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-json-experiment/json"
)

// write is a request that changes something. <name> stands for an id that exists
// from the start, or that an earlier response had in the member keep.
type write struct {
	method, path, body string
	keep               string
}

// writes returns a request for every operation that changes something, in an
// order in which each request's prerequisites exist. A command on an account that is not
// in the list is sent with the example of its description.
func writes(document *openapi3.T) []write {
	in := map[string]bool{}
	for _, w := range listedWrites {
		if op := operationAt(document, w.method, w.path); op != nil {
			in[op.OperationID] = true
		}
	}
	var all []write
	for path, item := range document.Paths.Map() {
		below, ofAccount := strings.CutPrefix(path, "/v1/accounts/{sub}/")
		for method, op := range item.Operations() {
			if !ofAccount || strings.Contains(below, "{") || op.RequestBody == nil || in[op.OperationID] || changesNothing[op.OperationID] != "" {
				continue
			}
			example, _ := json.Marshal(op.RequestBody.Value.Content["application/json"].Example)
			all = append(all, write{method: method, path: "/v1/accounts/<ada>/" + below, body: string(example)})
		}
	}
	slices.SortFunc(all, func(a, b write) int { return strings.Compare(a.path+a.method, b.path+b.method) })
	return append(all, listedWrites...)
}

var listedWrites = []write{
	{method: "POST", path: "/v1/accounts", body: `{"identities":[{"provider":"self","email":"eve@example.com"}]}`},
	{method: "PATCH", path: "/v1/accounts/<ada>", body: `{"identity":{"family_name":"King"}}`},
	{method: "PUT", path: "/v1/accounts/<ada>/status", body: `{"userStatus":"DECLINED"}`},
	{method: "PUT", path: "/v1/accounts/<ada>/status", body: `{"userStatus":"VERIFIED"}`},
	{method: "PATCH", path: "/v1/accounts/<ada>/custom-fields", body: `{"tier":"gold"}`},
	{method: "POST", path: "/v1/accounts/<ada>/identities", body: `{"provider":"google","providerUserId":"1095"}`, keep: "identities.1.identityId"},
	{method: "PATCH", path: "/v1/accounts/<ada>/identities/<identityId>", body: `{"nickname":"ada"}`},
	{method: "DELETE", path: "/v1/accounts/<ada>/identities/<identityId>"},
	{method: "POST", path: "/v1/logins", body: `{"identifier":"ada@example.com","provider":"self","client":"web"}`},
	{method: "PUT", path: "/v1/roles/AUDITOR", body: `{"name":"Auditor"}`},
	{method: "DELETE", path: "/v1/roles/AUDITOR"},
	{method: "PUT", path: "/v1/group-types/OFFICE", body: `{"roleMode":"any_roles"}`},
	{method: "PUT", path: "/v1/groups/BERLIN", body: `{"groupName":"Berlin","groupType":"OFFICE"}`},
	{method: "PUT", path: "/v1/accounts/<ada>/groups/BERLIN", body: `{"roles":["USER"]}`},
	{method: "DELETE", path: "/v1/accounts/<ada>/groups/BERLIN"},
	{method: "DELETE", path: "/v1/groups/BERLIN"},
	{method: "DELETE", path: "/v1/group-types/OFFICE"},
	{method: "PUT", path: "/v1/fields/desk", body: `{"dataType":"TEXT"}`},
	{method: "DELETE", path: "/v1/fields/desk"},
	{method: "PUT", path: "/v1/consents/terms", body: `{"name":"Terms","versions":[{"version":1,"text":{"en":"Yes."}}]}`},
	{method: "DELETE", path: "/v1/consents/terms"},
	{method: "PUT", path: "/v1/consents/news", body: `{"name":"News","versions":[{"version":1,"text":{"en":"Yes."}}]}`},
	{method: "POST", path: "/v1/accounts/<ada>/consents", body: `{"consentId":"news","version":1,"status":"accepted"}`},
	{method: "PUT", path: "/v1/schedule-setups/first", body: `{"kind":"reminder","reminderNo":1,"offset":"P7D"}`},
	{method: "DELETE", path: "/v1/schedule-setups/first"},
	{method: "POST", path: "/v1/accounts/<ada>/schedules", body: `{"kind":"reminder","dueTime":"2099-01-01T00:00:00Z"}`, keep: "scheduleId"},
	{method: "PATCH", path: "/v1/accounts/<ada>/schedules/<scheduleId>", body: `{"dueTime":"2099-02-01T00:00:00Z"}`},
	{method: "DELETE", path: "/v1/accounts/<ada>/schedules/<scheduleId>"},
	{method: "POST", path: "/v1/webhooks", body: `{"url":"http://127.0.0.1:9/","events":["USER_*"]}`, keep: "webhookId"},
	{method: "PATCH", path: "/v1/webhooks/<webhookId>", body: `{"payload":"thin"}`},
	{method: "POST", path: "/v1/webhooks/<webhookId>/rotate-secret", body: `{"overlap":60}`},
	{method: "PUT", path: "/v1/webhooks/<webhookId>/state", body: `{"state":"disabled"}`},
	{method: "DELETE", path: "/v1/webhooks/<webhookId>"},
	{method: "POST", path: "/v1/api-keys", body: `{"name":"reports","scopes":["audit:read"]}`, keep: "keyId"},
	{method: "PATCH", path: "/v1/api-keys/<keyId>", body: `{"name":"report"}`},
	{method: "DELETE", path: "/v1/api-keys/<keyId>"},
	{method: "POST", path: "/v1/accounts/<ada>/merge", body: `{"from":"<bob>"}`},
	{method: "POST", path: "/v1/accounts/<ada>/unmerge", body: `{"sub":"<bob>"}`},
	{method: "DELETE", path: "/v1/accounts/<bob>?grace=48h"},
	{method: "DELETE", path: "/v1/accounts/<bob>/deletion"},
	{method: "DELETE", path: "/v1/accounts/<bob>?immediate=true"},
}

// changesNothing has the operations other than GET that append no event
// themselves, with the reason.
var changesNothing = map[string]string{
	"lookup":            "is a query; its body keeps the identifier out of logs",
	"searchAccounts":    "is a query, like lookup",
	"previewMerge":      "is the dry run of mergeAccount",
	"importAccounts":    "executes one command per row and reports each outcome",
	"cancelImport":      "ends a job and does not change the log",
	"rebuildProjection": "rebuilds a read model and does not change the log",
	"resendDelivery":    "sends an event of the log",
	"recoverWebhook":    "sends events of the log",
	"replayWebhook":     "sends events of the log",
	"cancelReplay":      "ends a replay",
	"testWebhook":       "sends an artificial event",
	"verifyWebhook":     "asks the receiver, whose answer is not known in advance",
}

// TestDryRuns checks that a dry run of every operation returns the events and
// appends nothing, and that the same request without dry_run appends them.
func TestDryRuns(t *testing.T) {
	t.Parallel()
	l := start(t)
	names := map[string]string{"<ada>": l.create(t, "ada@example.com"), "<bob>": l.create(t, "bob@example.com")}
	document := description(t)
	head := func() int64 {
		position, err := l.Log.Head(t.Context())
		check(t, err)
		return int64(position)
	}
	tried := map[string]bool{}
	for _, w := range writes(document) {
		op := operationAt(document, w.method, w.path)
		if op == nil {
			t.Fatalf("the API has no %s %s", w.method, w.path)
		}
		tried[op.OperationID] = true
		path, body, sign := known(w.path, names), known(w.body, names), "?"
		if strings.Contains(path, "?") {
			sign = "&"
		}
		before := head()
		r := l.want(t, http.StatusOK, w.method, path+sign+"dry_run=true", body)
		if after := head(); after != before {
			t.Errorf("after a dry run of %s the log ends at %d, before it at %d", op.OperationID, after, before)
		}
		if r.member(t, "events.0.type") == nil {
			t.Errorf("a dry run of %s returns no events: %s", op.OperationID, r.body)
		}
		r = l.send(t, w.method, path, body)
		if after := head(); r.status >= 300 || after == before {
			t.Errorf("%s returns %d %s and appends %d events, so its dry run proves nothing", op.OperationID, r.status, r.body, after-before)
		}
		if w.keep != "" {
			names["<"+w.keep[strings.LastIndex(w.keep, ".")+1:]+">"] = r.text(t, w.keep)
		}
	}
	for path, item := range document.Paths.Map() {
		for method, op := range item.Operations() {
			switch {
			case method == http.MethodGet:
			case changesNothing[op.OperationID] != "":
				if tried[op.OperationID] {
					t.Errorf("%s is listed in changesNothing", op.OperationID)
				}
			case op.Parameters.GetByInAndName(openapi3.ParameterInQuery, "dry_run") == nil:
				t.Errorf("%s %s does not accept dry_run", method, path)
			case !tried[op.OperationID]:
				t.Errorf("writes has no request for %s %s (%s)", method, path, op.OperationID)
			}
		}
	}
}
