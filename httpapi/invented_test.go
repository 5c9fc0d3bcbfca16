package httpapi

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/net/http/httpguts"
	"pgregory.net/rapid"
)

// TestInvented sends random requests generated from the OpenAPI document: any
// operation, with valid parameters and bodies that often reuse values of earlier
// responses; every other request is then made invalid in one place. The server
// must never fail, must answer as the document says, and must neither return nor
// log values of a refused request.
//
// ACCOUNTLEDGER_TEST_REQUESTS sets the number of requests.
func TestInvented(t *testing.T) {
	t.Parallel()
	total := 3_000
	if testing.Short() {
		total = 1_000
	}
	if n, err := strconv.Atoi(os.Getenv("ACCOUNTLEDGER_TEST_REQUESTS")); err == nil {
		total = n
	}
	var logged telltale
	l := start(t, func(c *Config) { c.Logger = slog.New(&logged) })
	in := newInventor(t, l)
	sent := 0
	rapid.Check(t, func(rt *rapid.T) {
		for range max(total/100, 1) { // rapid runs a hundred checks
			in.step(rt)
			sent++
		}
		if line := logged.line.Load(); line != nil {
			rt.Fatalf("in the log: %s", *line)
		}
	})
	answered := 0
	for _, name := range slices.Sorted(maps.Keys(in.answers)) {
		a := in.answers[name]
		t.Logf("%-24s %v", name, a)
		for status := range a {
			if status < 300 {
				answered++
				break
			}
		}
	}
	t.Logf("%d requests, %d of %d operations done at least once", sent, answered, len(in.operations))
	least := len(in.operations) / 2 // with 100,000 requests, nearly all operations succeed
	if answered < least && sent >= 3_000 {
		t.Errorf("only %d of %d operations ever succeeded: the requests are too rarely valid", answered, len(in.operations))
	}
}

// telltale is a log writer that stores a line that must not be logged.
type telltale struct{ line atomic.Pointer[string] }

func (l *telltale) Enabled(context.Context, slog.Level) bool { return true }
func (l *telltale) WithAttrs(attrs []slog.Attr) slog.Handler {
	l.look(fmt.Sprint(attrs), false)
	return l
}
func (l *telltale) WithGroup(string) slog.Handler { return l }

func (l *telltale) Handle(_ context.Context, r slog.Record) error {
	var line strings.Builder
	line.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool { fmt.Fprintf(&line, " %s", a); return true })
	l.look(line.String(), r.Level >= slog.LevelError)
	return nil
}

func (l *telltale) look(line string, bad bool) {
	if bad || inventedValue.MatchString(line) {
		l.line.CompareAndSwap(nil, &line)
	}
}

// inventedValue is a part of every generated text. Ids, which responses may
// contain, have another form.
var inventedValue = regexp.MustCompile(`(?i)zq[0-9]+x`)

// inventor generates requests.
type inventor struct {
	*ledger
	schemas    map[string]schema
	operations map[string]operation
	known      map[string][]string    // values from responses, by member name
	answers    map[string]map[int]int // number of responses by operation and status
	narrow     string                 // a key with few scopes
	key        string
}

type schema = map[string]any

type operation struct {
	name, method, path string
	parameters         []schema
	bodies             map[string]schema // by media type
	example            any
	responses          schema
}

func newInventor(t *testing.T, l *ledger) *inventor {
	t.Helper()
	var document struct {
		Paths      map[string]map[string]schema `json:"paths"`
		Components struct {
			Schemas map[string]schema `json:"schemas"`
		} `json:"components"`
	}
	check(t, json.Unmarshal(l.want(t, 200, "GET", "/openapi.json", "").body, &document))
	in := &inventor{ledger: l, operations: map[string]operation{}, schemas: document.Components.Schemas, known: map[string][]string{}, answers: map[string]map[int]int{},
		key: l.key(t, "everything", scopeAdmin), narrow: l.key(t, "narrow", scopeAuditRead)}
	for _, path := range slices.Sorted(maps.Keys(document.Paths)) {
		for _, method := range slices.Sorted(maps.Keys(document.Paths[path])) {
			op := document.Paths[path][method]
			o := operation{name: op["operationId"].(string), method: strings.ToUpper(method), path: path, responses: op["responses"].(schema), bodies: map[string]schema{}}
			for _, p := range list(op["parameters"]) {
				o.parameters = append(o.parameters, p.(schema))
			}
			if b, ok := op["requestBody"].(schema); ok {
				for mediaType, content := range b["content"].(schema) {
					o.bodies[mediaType], _ = content.(schema)["schema"].(schema)
					o.example = cmp.Or(o.example, content.(schema)["example"])
				}
			}
			in.operations[o.name] = o
			in.answers[o.name] = map[int]int{}
		}
	}
	return in
}

func list(v any) []any { l, _ := v.([]any); return l }

// invented is a generated request.
type invented struct {
	method, path string
	query        url.Values
	rawQuery     string // appended to query
	header       []string
	body         string
	wrong        bool // it must be refused
	elsewhere    bool // its path may be that of another resource, or of none
}

func (r invented) target() string {
	target := r.path
	if query := r.query.Encode() + r.rawQuery; query != "" {
		target += "?" + query
	}
	return target
}

// step sends one request and checks the response.
func (in *inventor) step(t *rapid.T) {
	op := in.operations[rapid.SampledFrom(slices.Sorted(maps.Keys(in.operations))).Draw(t, "operation")]
	r := in.request(t, op)
	if rapid.Bool().Draw(t, "spoilt") {
		in.spoil(t, &r)
	}
	answer, err := in.try(r.method, r.target(), r.body, r.header...)
	said := fmt.Sprintf("%s %s %q\n%s\n", r.method, r.target(), r.header, r.body)
	if err != nil {
		t.Fatalf("%s%v", said, err)
	}
	if r.method == op.method {
		in.answers[op.name][answer.status]++
	}
	code := ""
	if answer.status >= 400 && r.method != http.MethodHead {
		var p problem
		if err := json.Unmarshal(answer.body, &p); err != nil {
			t.Fatalf("%s%d %s", said, answer.status, answer.body)
		}
		code = string(p.Code)
		for name, values := range answer.header {
			if inventedValue.MatchString(strings.Join(values, "\n")) {
				t.Fatalf("%sechoed in the header %s: %s", said, name, values)
			}
		}
		if inventedValue.Match(answer.body) {
			t.Fatalf("%sechoed: %s", said, answer.body)
		}
	}
	switch {
	case r.wrong && answer.status < 400:
		t.Fatalf("%swas accepted: %d %s", said, answer.status, answer.body)
	case answer.status >= 500 && !(r.method == http.MethodHead && answer.status == 503) && code != string(codeNotFresh) && code != string(codeFieldNotIndexed):
		t.Fatalf("%s%d %s", said, answer.status, answer.body)
	case answer.status >= 400 && r.method == op.method && !r.elsewhere:
		response, _ := op.responses[strconv.Itoa(answer.status)].(schema)
		if description, _ := response["description"].(string); !strings.Contains(description, "`"+code+"`") {
			t.Fatalf("%sthe document does not list for %s the response %d %s: %s", said, op.name, answer.status, code, answer.body)
		}
	case answer.status < 400 && r.method != http.MethodHead && strings.HasSuffix(answer.header.Get("Content-Type"), "/json"):
		var v any
		if err := json.Unmarshal(answer.body, &v); err != nil {
			t.Fatalf("%s%s", said, answer.body)
		}
		in.learn("", v)
		if tag := answer.header.Get("ETag"); tag != "" {
			in.keep("If-Match", tag)
		}
	}
}

// learn stores the texts in a response by member name.
func (in *inventor) learn(name string, v any) {
	switch v := v.(type) {
	case string:
		in.keep(name, v)
	case []any:
		for _, e := range v[:min(len(v), 10)] {
			in.learn(name, e)
		}
	case map[string]any:
		for _, member := range slices.Sorted(maps.Keys(v)) {
			in.learn(member, v[member])
		}
	}
}

// called maps names of parameters and members to the names they have in responses.
var called = map[string]string{"event": "id", "eventId": "id", "after": "next", "group": "groupId", "shard": "prefix", "parentId": "groupId", "owner": "sub",
	"from": "sub", "into": "sub"}

func (in *inventor) keep(name, value string) {
	if inventedValue.MatchString(value) {
		return // a response may contain it as an id
	}
	if known := in.known[name]; !slices.Contains(known, value) {
		if len(known) >= 20 {
			known = known[1:]
		}
		in.known[name] = append(known, value)
	}
}

func (in *inventor) request(t *rapid.T, op operation) invented {
	r := invented{method: op.method, path: op.path, query: url.Values{}}
	r.header = append(r.header, "Authorization: Bearer "+in.key)
	for _, p := range op.parameters {
		name := p["name"].(string)
		rarity := 3
		if name == "If-Match" { // a random ETag hardly ever matches
			rarity = 10
		}
		if required, _ := p["required"].(bool); !required && !chance(t, rarity, "with "+name) {
			continue
		}
		value := fmt.Sprint(in.value(t, name, p["schema"].(schema), 0))
		switch p["in"] {
		case "path":
			r.path = strings.ReplaceAll(r.path, "{"+name+"}", cmp.Or(url.PathEscape(value), "-"))
		case "query":
			if r.query.Set(name, value); value == "" {
				r.query.Del(name)
			}
		case "header":
			if httpguts.ValidHeaderFieldValue(value) && name != "Last-Event-ID" {
				r.header = append(r.header, name+": "+value)
			}
		}
	}
	if r.query.Has("min_position") {
		r.query.Set("wait", "0") // the position may never be reached
	}
	if len(op.bodies) == 0 {
		return r
	}
	mediaType := rapid.SampledFrom(slices.Sorted(maps.Keys(op.bodies))).Draw(t, "media type")
	r.header = append(r.header, "Content-Type: "+mediaType)
	value := op.example
	if value == nil || !chance(t, 4, "example") {
		value = in.value(t, "", op.bodies[mediaType], 0)
	}
	body, err := json.Marshal(value, json.Deterministic(true))
	if err != nil {
		t.Fatalf("%s: %v", op.name, err)
	}
	r.body = string(body)
	return r
}

// chance is true once in n.
func chance(t *rapid.T, n int, label string) bool {
	return rapid.IntRange(1, n).Draw(t, label) == n
}

// value generates a value of a schema for the member or parameter name.
func (in *inventor) value(t *rapid.T, name string, s schema, depth int) any {
	if ref, ok := s["$ref"].(string); ok {
		s = in.schemas[ref[strings.LastIndex(ref, "/")+1:]]
	}
	for _, kind := range []string{"oneOf", "anyOf"} {
		if choices := list(s[kind]); choices != nil {
			return in.value(t, name, rapid.SampledFrom(choices).Draw(t, kind).(schema), depth)
		}
	}
	if values := list(s["enum"]); values != nil {
		return rapid.SampledFrom(values).Draw(t, name)
	}
	if value, ok := s["const"]; ok {
		return value
	}
	kind, _ := s["type"].(string)
	if kinds := list(s["type"]); kinds != nil {
		kind = rapid.SampledFrom(kinds).Draw(t, "type").(string)
	}
	if s["properties"] != nil {
		kind = "object"
	}
	switch kind {
	case "null":
		return nil
	case "boolean":
		return rapid.Bool().Draw(t, name)
	case "integer":
		return in.integer(t, name, s)
	case "number":
		return rapid.Float64Range(-1e9, 1e9).Draw(t, name)
	case "string":
		return in.text(t, name, s)
	case "array":
		values := []any{}
		for range rapid.IntRange(0, 3).Draw(t, "length") {
			values = append(values, in.value(t, name, s["items"].(schema), depth+1))
		}
		return values
	case "object":
		return in.object(t, s, depth)
	}
	return rapid.SampledFrom([]any{nil, true, 7, -0.5, invention(t), []any{invention(t)}, map[string]any{"a": invention(t)}}).Draw(t, name)
}

func (in *inventor) object(t *rapid.T, s schema, depth int) any {
	members := map[string]any{}
	required := list(s["required"])
	properties, _ := s["properties"].(schema)
	for _, member := range slices.Sorted(maps.Keys(properties)) {
		// Most objects get few members, because one invalid member refuses them all.
		if slices.Contains(required, any(member)) || chance(t, 4, "with "+member) && depth < 6 {
			members[member] = in.value(t, member, properties[member].(schema), depth+1)
		}
	}
	if free, ok := s["additionalProperties"].(schema); ok && depth < 6 {
		for range rapid.IntRange(0, 2).Draw(t, "members") {
			member := in.id(t, rapid.SampledFrom([]string{"fieldKey", "groupId", "lang"}).Draw(t, "kind"))
			members[member] = in.value(t, "", free, depth+1)
		}
	}
	return members
}

func (in *inventor) integer(t *rapid.T, name string, s schema) int {
	if name == "wait" {
		return 0
	}
	least, most := -2, 1000
	if x, ok := s["minimum"].(float64); ok {
		least = int(x)
		most = least + 1000
	}
	if x, ok := s["maximum"].(float64); ok {
		most = int(x)
	}
	if name == "grace" || strings.HasSuffix(name, "Seconds") { // otherwise nothing becomes due during the test
		least, most = min(least, 1), max(most, least+5)
	}
	return rapid.IntRange(least, max(least, most)).Draw(t, name)
}

// invention returns a text that must not appear in a problem.
func invention(t *rapid.T) string {
	return fmt.Sprintf("zq%dx", rapid.IntRange(0, 99).Draw(t, "text"))
}

// id returns the id of an existing object, or a random one.
func (in *inventor) id(t *rapid.T, name string) string {
	if known := in.known[cmp.Or(called[name], name)]; len(known) > 0 && !chance(t, 4, "new "+name) {
		return rapid.SampledFrom(known).Draw(t, name)
	}
	return fmt.Sprintf("ID%d", rapid.IntRange(0, 20).Draw(t, name))
}

func (in *inventor) text(t *rapid.T, name string, s schema) string {
	switch lower := strings.ToLower(name); {
	case s["format"] == "date-time":
		at := time.Now().Add(time.Duration(rapid.IntRange(-1000, 1000).Draw(t, name)) * time.Hour).Truncate(time.Second)
		return at.UTC().Format(time.RFC3339)
	case strings.HasSuffix(lower, "url") || lower == "picture" || lower == "profile" || lower == "website":
		return "https://127.0.0.1:9/" + invention(t) // nothing listens there, and nothing leaves this machine
	case strings.HasSuffix(lower, "id") || strings.HasSuffix(lower, "key") && lower != "idempotency-key" || slices.Contains([]string{"sub", "role", "roles",
		"event", "shard", "after", "group", "grouptype", "if-match", "combinedsubs", "fields", "from", "into", "version", "consents"}, lower):
		return in.id(t, name)
	case strings.HasPrefix(lower, "email"):
		return invention(t) + "@example.com"
	case strings.Contains(lower, "mobile") || strings.Contains(lower, "phone"):
		return fmt.Sprintf("+4915112345%03d", rapid.IntRange(0, 99).Draw(t, name))
	case lower == "events" || lower == "types":
		return rapid.SampledFrom([]string{"USER_*", "*", "USER_CREATED", "GROUP_*", "ACCOUNT_MODIFIED", "NONE"}).Draw(t, name)
	case lower == "mapping":
		return rapid.SampledFrom([]string{"people-208", "none"}).Draw(t, name)
	case lower == "scopes":
		return string(rapid.SampledFrom(scopeTable).Draw(t, name).scope)
	case lower == "provider":
		return rapid.SampledFrom([]string{"self", "google", "github"}).Draw(t, name)
	case lower == "datatype":
		return rapid.SampledFrom([]string{"TEXT", "NUMBER", "SELECT", "CHECKBOX", "DATE", "EMAIL", "USERNAME", "URL", "ARRAY"}).Draw(t, name)
	}
	if examples := list(s["examples"]); examples != nil && chance(t, 2, "example") {
		return fmt.Sprint(examples[0])
	}
	text := invention(t)
	if chance(t, 4, "strange") {
		text += rapid.StringN(0, 20, 60).Draw(t, name)
	}
	return text
}

// spoil makes a request invalid in one place. It sets wrong if every operation
// must refuse the result.
func (in *inventor) spoil(t *rapid.T, r *invented) {
	kinds := []func(*rapid.T, *invented){in.spoilQuery, in.spoilPath, in.spoilHeader, in.spoilMethod}
	if r.body != "" {
		kinds = append(kinds, in.spoilBody, in.spoilBody, in.spoilText, in.spoilText)
	}
	rapid.SampledFrom(kinds).Draw(t, "place")(t, r)
}

func (in *inventor) spoilQuery(t *rapid.T, r *invented) {
	r.wrong = true
	switch rapid.IntRange(0, 4).Draw(t, "query") {
	case 0:
		r.query.Set("unknown", invention(t))
	case 1:
		r.query["dry_run"] = []string{"true", "true"} // repeated, or unknown to the operation
	case 2:
		r.rawQuery = "&%zz=" + invention(t)
	case 3:
		r.rawQuery, r.wrong = "&dry_run="+invention(t), !strings.Contains(r.target(), "dry_run=")
	case 4:
		r.query.Set("limit", rapid.SampledFrom([]string{"0", "-1", "1e3", "99999999999999999999", invention(t), " 1"}).Draw(t, "limit"))
	}
}

func (in *inventor) spoilPath(t *rapid.T, r *invented) {
	segments := strings.Split(r.path, "/")
	i := rapid.IntRange(2, len(segments)-1).Draw(t, "segment")
	segments[i] = rapid.SampledFrom([]string{invention(t), "%00", "..%2f" + invention(t), "%ff", strings.Repeat("zq0x", 500), "%20", "'--", "%25", "*", "~"}).Draw(t, "segment")
	r.path, r.elsewhere = strings.Join(segments, "/"), true
}

func (in *inventor) spoilHeader(t *rapid.T, r *invented) {
	header := rapid.SampledFrom([]string{
		"Authorization: ", "Authorization: Bearer " + in.key + "x", "Authorization: Basic enExeDp6cTF4", "Authorization: Bearer zq1x.zq2x.zq3x",
		"Authorization: Bearer alk_zq1x_zq2x", "Authorization: Bearer " + in.narrow,
		"If-Match: zq1x", `If-Match: W/"1"`, `If-Match: "zq1x", "2"`, `If-Match: "99999999999999999999"`,
		"Idempotency-Key: " + strings.Repeat("zq1x", 100), "Idempotency-Key: zq1x é",
		"Content-Type: text/plain", "Content-Type: application/json; charset=zq1x", "Content-Type: zq1x", "Content-Type: multipart/form-data; boundary=zq1x",
		"Content-Encoding: gzip", "Accept: text/zq1x", "X-Request-Id: zq1x zq1x", "Origin: https://zq1x.example", "Range: bytes=zq1x", "If-None-Match: zq1x",
	}).Draw(t, "header")
	r.header = append(r.header, header)
	r.wrong = strings.HasPrefix(header, "Authorization") && !strings.HasSuffix(header, in.narrow)
}

func (in *inventor) spoilMethod(t *rapid.T, r *invented) {
	r.method = rapid.SampledFrom([]string{"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "ZQ1X"}).Draw(t, "method")
}

// spoilBody changes the document in one place.
func (in *inventor) spoilBody(t *rapid.T, r *invented) {
	var body any
	if err := json.Unmarshal([]byte(r.body), &body); err != nil {
		return
	}
	changes := []any{nil, true, false, 0, -1, 1e18, 0.1, "", invention(t), strings.Repeat("zq0x", 2_000), []any{}, []any{nil}, map[string]any{},
		map[string]any{"zz": invention(t)}, "zq1x\u0000", "zq1x\r\n", "zq1x\u202e", "zq1x\U0001f600", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z"}
	replacement := rapid.SampledFrom(changes).Draw(t, "replacement")
	if members, ok := body.(map[string]any); ok && chance(t, 4, "add") {
		members["added"] = invention(t)
	} else {
		body = replace(t, body, replacement)
	}
	text, err := json.Marshal(body, json.Deterministic(true))
	if err != nil {
		t.Fatalf("%v", err)
	}
	r.body = string(text)
}

// replace returns v with a value in it, or all of it, replaced.
func replace(t *rapid.T, v, replacement any) any {
	switch x := v.(type) {
	case map[string]any:
		if names := slices.Sorted(maps.Keys(x)); len(names) > 0 && !chance(t, 8, "here") {
			name := rapid.SampledFrom(names).Draw(t, "member")
			x[name] = replace(t, x[name], replacement)
			return x
		}
	case []any:
		if len(x) > 0 && !chance(t, 4, "here") {
			i := rapid.IntRange(0, len(x)-1).Draw(t, "element")
			x[i] = replace(t, x[i], replacement)
			return x
		}
	}
	return replacement
}

// spoilText turns the body into something that is not JSON, or not JSON as RFC
// 7493 restricts it. An import accepts more, and answers row by row.
func (in *inventor) spoilText(t *rapid.T, r *invented) {
	r.wrong = !strings.HasPrefix(r.path, "/v1/imports")
	switch rapid.IntRange(0, 8).Draw(t, "text") {
	case 0:
		r.body = r.body[:len(r.body)-1]
	case 1:
		r.body = `{"zz":"` + invention(t) + `","zz":"` + invention(t) + `"}`
	case 2:
		r.body = `{"zz":"zq1x` + "\xff" + `"}`
	case 3:
		r.body = `{"zz":1e999}`
	case 4:
		r.body = strings.Repeat(`{"zz":`, 100) + `"zq1x"` + strings.Repeat("}", 100)
	case 5:
		r.body += invention(t)
	case 6:
		r.body = `{"zz":"` + strings.Repeat("zq1x", maxBody/4) + `"}`
	case 7:
		r.body = rapid.SampledFrom([]string{"[]", "null", "7", `"zq1x"`, " ", "{", "\x00", "\ufeff{}"}).Draw(t, "body")
	case 8:
		r.body = strings.Replace(r.body, "{", `{"__proto__":"`+invention(t)+`",`, 1)
		r.wrong = false // custom fields may have any name
	}
}
