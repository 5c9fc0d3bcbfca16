package httpapi

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/domain"
)

// docs is the directory of the user documentation.
const docs = "../docs"

// TestDocs runs the transcripts in docs: every block marked http is a request
// with its response, and each page has its own ledger. A response shows a part
// of the members, which must match. <name> in a response matches any text the
// first time and the same text from then on, also in requests. <appKey> is the
// API key of an application without accounts:admin; <receiver> is the URL of a
// webhook receiver that accepts everything except requests to /broken. GET
// requests are retried until the response matches, because some changes take a
// moment.
func TestDocs(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob(filepath.Join(docs, "*.md"))
	check(t, err)
	if len(pages) == 0 {
		t.Fatal("found no pages")
	}
	for _, page := range pages {
		t.Run(filepath.Base(page), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(page)
			check(t, err)
			l := start(t)
			receiver := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("WebHook-Allowed-Origin", "*")
				rw.Header().Set("WebHook-Allowed-Rate", "120")
				if r.URL.Path == "/broken" {
					rw.WriteHeader(http.StatusUnprocessableEntity)
				}
			}))
			t.Cleanup(receiver.Close)
			names := map[string]string{"<appKey>": l.key(t, "app", scopeAccountsRead, scopeAccountsWrite), "<receiver>": receiver.URL}
			for _, x := range transcripts(t, text) {
				x.run(t, l, names)
			}
		})
	}
}

// exchange is a request and its response as a page shows them.
type exchange struct {
	line         int
	method, path string
	headers      []string
	body         string
	status       int
	answer       string
}

// transcripts returns the exchanges of a page.
func transcripts(t *testing.T, page []byte) (all []exchange) {
	var x exchange
	const (
		outside = iota
		request
		answer
	)
	state := outside
	lines := bufio.NewScanner(bytes.NewReader(page))
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		switch {
		case state == outside && line == "```http":
			x, state = exchange{line: n}, request
		case state == outside:
		case line == "```":
			if x.status == 0 {
				t.Fatalf("line %d: the request has no response", x.line)
			}
			all, state = append(all, x), outside
		case state == request && x.method == "":
			x.method, x.path, _ = strings.Cut(line, " ")
		case state == request && strings.HasPrefix(line, "-> "):
			code, _, _ := strings.Cut(line[len("-> "):], " ")
			status, err := strconv.Atoi(code)
			if err != nil {
				t.Fatalf("line %d: %v", n, err)
			}
			x.status, state = status, answer
		case state == request && x.body == "" && headerLine.MatchString(line):
			x.headers = append(x.headers, line)
		case state == request:
			x.body += line + "\n"
		default:
			x.answer += line + "\n"
		}
	}
	check(t, lines.Err())
	return all
}

var (
	headerLine = regexp.MustCompile(`^[A-Z][A-Za-z-]+: `)
	nameInText = regexp.MustCompile(`<[a-z][a-zA-Z0-9]*>`)
)

func (x exchange) run(t *testing.T, l *ledger, names map[string]string) {
	t.Helper()
	for i, h := range x.headers {
		x.headers[i] = known(h, names)
	}
	var fault string
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		known := maps.Clone(names)
		if fault = x.try(t, l, known); fault == "" {
			maps.Copy(names, known)
			return
		}
		if x.method != http.MethodGet || time.Now().After(deadline) {
			t.Fatal(fault)
		}
	}
}

// try sends the request once and describes how the response differs from the page.
func (x exchange) try(t *testing.T, l *ledger, names map[string]string) (fault string) {
	t.Helper()
	r := l.send(t, x.method, known(x.path, names), strings.TrimSpace(known(x.body, names)), x.headers...)
	if r.status != x.status {
		return fmt.Sprintf("line %d: %s %s = %d %s, the page says %d %s", x.line, x.method, x.path, r.status, r.body, x.status, http.StatusText(x.status))
	}
	if x.answer == "" {
		return ""
	}
	var want, got any
	if err := json.Unmarshal([]byte(x.answer), &want); err != nil {
		t.Fatalf("line %d: the response on the page is not JSON: %v", x.line, err)
	}
	if err := json.Unmarshal(r.body, &got); err != nil {
		return fmt.Sprintf("line %d: the response is not JSON: %v", x.line, err)
	}
	if at := differs(want, got, names); at != "" {
		return fmt.Sprintf("line %d: %s %s: the response differs from the page at %s:\n%s", x.line, x.method, x.path, at, r.body)
	}
	return ""
}

// known returns text with its names replaced by their values.
func known(text string, names map[string]string) string {
	return nameInText.ReplaceAllStringFunc(text, func(name string) string {
		return cmp.Or(names[name], name)
	})
}

// differs returns the place at which got differs from want, or "". An array in
// want may hold just the first elements.
func differs(want, got any, names map[string]string) string {
	switch want := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return "."
		}
		for name, w := range want {
			if at := differs(w, g[name], names); at != "" {
				return "/" + name + at
			}
		}
		return ""
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) < len(want) || len(want) == 0 && len(g) > 0 {
			return "."
		}
		for i, w := range want {
			if at := differs(w, g[i], names); at != "" {
				return fmt.Sprint("/", i, at)
			}
		}
		return ""
	case string:
		g, ok := got.(string)
		if nameInText.FindString(want) == want && ok && g != "" {
			if names[want] == "" {
				names[want] = g
			}
			want = names[want]
		}
		if !ok || g != want {
			return "."
		}
		return ""
	}
	if want != got {
		return "."
	}
	return ""
}

// sampleValues has a valid value of each data type for a field with the options
// "gold" and "silver", see TestSampleValues.
var sampleValues = map[domain.DataType]string{
	domain.TypeText:        `"Berlin"`,
	domain.TypeTextarea:    `"Line 1\nLine 2"`,
	domain.TypeNumber:      `0.25`,
	domain.TypeBoolean:     `true`,
	domain.TypeCheckbox:    `false`,
	domain.TypeDate:        `"1815-12-10"`,
	domain.TypeURL:         `"https://example.com/ada"`,
	domain.TypeEmail:       `"ada@example.com"`,
	domain.TypeMobile:      `"+4915112345678"`,
	domain.TypeSelect:      `"gold"`,
	domain.TypeRadio:       `"silver"`,
	domain.TypeMultiselect: `["gold","silver"]`,
	domain.TypeArray:       `[1,"two",null]`,
	domain.TypeJSON:        `{"any":["thing"]}`,
	domain.TypeUsername:    `"Ada 1815"`,
}

// someAccount returns an account that can be changed.
func someAccount() domain.Account {
	a := domain.NewAccount(domain.NewID().String())
	a.Status, a.Revision = domain.StatusVerified, 0
	return a
}

// TestSampleValues checks the values on the pages: each is valid for its own
// data type, and each type refuses some of the others.
func TestSampleValues(t *testing.T) {
	takes := func(d domain.DataType, value string) bool {
		config := domain.NewConfig()
		config.Fields["f"] = domain.Field{FieldDefinition: domain.FieldDefinition{FieldKey: "f", DataType: d, Options: []string{"gold", "silver"}}}
		_, err := domain.Decide(domain.Setting{Config: config}, someAccount(), domain.SetCustomFields{Values: map[string]jsontext.Value{"f": jsontext.Value(value)}})
		return err == nil
	}
	for _, d := range domain.DataTypes {
		if !takes(d.Type, sampleValues[d.Type]) {
			t.Errorf("a field of type %s refuses %s", d.Type, sampleValues[d.Type])
		}
		refused := 0
		for _, value := range sampleValues {
			if !takes(d.Type, value) {
				refused++
			}
		}
		if refused == 0 && d.Type != domain.TypeJSON {
			t.Errorf("a field of type %s accepts everything", d.Type)
		}
	}
}

// docTables generates the tables in the pages between <!-- name --> and
// <!-- end -->.
var docTables = map[string]func() string{
	"status machine": func() string {
		var b strings.Builder
		b.WriteString("| from \\ to |")
		for _, to := range domain.Statuses {
			fmt.Fprintf(&b, " %s |", to)
		}
		b.WriteString("\n|" + strings.Repeat("---|", len(domain.Statuses)+1) + "\n")
		for _, from := range domain.Statuses {
			fmt.Fprintf(&b, "| %s |", from)
			for _, to := range domain.Statuses {
				var causes []string
				for _, c := range domain.Transitions[from][to] {
					causes = append(causes, string(c))
				}
				cell := strings.Join(causes, ", ")
				switch {
				case from == to:
					cell = "-"
				case cell == "":
					cell = "no"
				}
				fmt.Fprintf(&b, " %s |", cell)
			}
			b.WriteString("\n")
		}
		return b.String()
	},
	"presets": func() string {
		var b strings.Builder
		b.WriteString("| preset | events | fields |\n|---|---|---|\n")
		for _, p := range domain.WebhookPresets {
			var fields []string
			for _, name := range slices.Sorted(maps.Keys(p.Mapping)) {
				if path := p.Mapping[name]; path == name {
					fields = append(fields, "`"+name+"`")
				} else {
					fields = append(fields, fmt.Sprintf("`%s` as `%s`", path, name))
				}
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", p.Preset, strings.Join(p.Events, ", "), strings.Join(fields, ", "))
		}
		return b.String()
	},
	"data types": func() string {
		var b strings.Builder
		b.WriteString("| data type | a value | what it is | may have |\n|---|---|---|---|\n")
		for _, d := range domain.DataTypes {
			var may []string
			for _, m := range []struct {
				may   bool
				rules string
			}{
				{d.Bounded, "`min`, `max`"}, {d.Sized, "`minLength`, `maxLength`"}, {d.Patterned, "`regex`"}, {d.Chosen, "`options`, and must"},
				{d.Unique && d.Type == domain.TypeUsername, "`unique`, and always is"}, {d.Unique && d.Type != domain.TypeUsername, "`unique`"},
				{d.Linked, "`linkedConsent`"},
			} {
				if m.may {
					may = append(may, m.rules)
				}
			}
			fmt.Fprintf(&b, "| %s | `%s` | %s | %s |\n", d.Type, sampleValues[d.Type], d.Meaning, strings.Join(may, ", "))
		}
		return b.String()
	},
	"role modes": func() string {
		config := domain.NewConfig()
		may := func(mode domain.RoleMode, roles ...string) string {
			config.GroupTypes["T"] = domain.GroupType{GroupType: "T", RoleMode: mode, AllowedRoles: []string{"CUSTOMER"}}
			config.Groups["G"] = domain.Group{GroupID: "G", GroupType: "T"}
			if _, err := domain.Decide(domain.Setting{Config: config}, someAccount(), domain.SetMembership{GroupID: "G", Roles: roles}); err != nil {
				return "no"
			}
			return "yes"
		}
		var b strings.Builder
		b.WriteString("| `roleMode` | no role | a role in `allowedRoles` | any other |\n|---|---|---|---|\n")
		for _, mode := range domain.RoleModes {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", mode, may(mode), may(mode, "CUSTOMER"), may(mode, "USER"))
		}
		return b.String()
	},
	"events": func() string {
		var b strings.Builder
		b.WriteString("| event | about | sent when | data | also called | in the log |\n|---|---|---|---|---|---|\n")
		for _, t := range domain.Catalogue {
			var aliases, from []string
			for _, a := range t.Aliases {
				aliases = append(aliases, strings.TrimSpace("`"+a.Name+"` "+a.Of))
			}
			for _, f := range t.From {
				from = append(from, "`"+f+"`")
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", t.Name, about(t), t.When, strings.Join(dataMembers(t), ", "), strings.Join(aliases, ", "), strings.Join(from, ", "))
		}
		return b.String()
	},
	"scopes": func() string {
		var b strings.Builder
		b.WriteString("| scope | allows |\n|---|---|\n")
		for _, row := range scopeTable {
			fmt.Fprintf(&b, "| `%s` | %s |\n", row.scope, row.allows)
		}
		return b.String()
	},
	"http refusals": func() string {
		var b strings.Builder
		b.WriteString("| code | status | when | what to do |\n|---|---|---|---|\n")
		for _, code := range slices.Sorted(maps.Keys(problemKinds)) {
			if kind := problemKinds[code]; !slices.Contains(domain.Codes, code) {
				fmt.Fprintf(&b, "| `%s` | %d | %s | %s |\n", code, kind.status, kind.meaning, kind.remedy)
			}
		}
		return b.String()
	},
	"refusals": func() string {
		var b strings.Builder
		b.WriteString("| code | status | when |\n|---|---|---|\n")
		for _, code := range domain.Codes {
			kind := problemKinds[code]
			fmt.Fprintf(&b, "| `%s` | %d | %s |\n", code, kind.status, kind.meaning)
		}
		return b.String()
	},
}

// dataMembers returns the members of an event's data, with optional ones in
// brackets.
func dataMembers(t domain.PublicType) (names []string) {
	registry := newRegistry("#/")
	feedSchema(registry, t)
	name := huma.DefaultSchemaNamer(reflect.TypeOf(t.Data), "")
	schema := registry.Map()[name]
	for _, member := range slices.Sorted(maps.Keys(schema.Properties)) {
		shown := "`" + member + "`"
		if !slices.Contains(schema.Required, member) {
			shown = "[" + shown + "]"
		}
		names = append(names, shown)
	}
	return names
}

var docTable = regexp.MustCompile(`(?s)<!-- ([a-z -]+) -->\n(.*?)<!-- end -->`)

// TestDocTables compares the tables in the pages with the code. -update rewrites
// them.
func TestDocTables(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(docs, "*.md"))
	check(t, err)
	shown := map[string]bool{}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		check(t, err)
		is := docTable.ReplaceAllFunc(text, func(block []byte) []byte {
			name := string(docTable.FindSubmatch(block)[1])
			table, ok := docTables[name]
			if !ok {
				t.Errorf("%s: docTables has no table %q", page, name)
				return block
			}
			shown[name] = true
			return []byte("<!-- " + name + " -->\n" + table() + "<!-- end -->")
		})
		if *update {
			check(t, os.WriteFile(page, is, 0o644))
		} else if !bytes.Equal(text, is) {
			t.Errorf("the tables in %s differ from the code; run go test -update", page)
		}
	}
	for name := range docTables {
		if !shown[name] {
			t.Errorf("no page shows the table %q", name)
		}
	}
}

// notOnPages has the tags and operations that the pages leave out, with the
// reason.
var notOnPages = map[string]string{
	"projections":  "is for operators of the server",
	"getEventData": "needs a receiver of CloudEvents",
}

// TestDocsAreWhole checks that the pages show a successful request of every
// operation, other than a dry run.
func TestDocsAreWhole(t *testing.T) {
	t.Parallel()
	document := description(t)
	shown := map[string]bool{}
	pages, err := filepath.Glob(filepath.Join(docs, "*.md"))
	check(t, err)
	for _, page := range pages {
		text, err := os.ReadFile(page)
		check(t, err)
		for _, x := range transcripts(t, text) {
			if op := operationAt(document, x.method, x.path); op == nil {
				t.Errorf("%s, line %d: the API has no %s %s", page, x.line, x.method, x.path)
			} else if x.status < 300 && !strings.Contains(x.path, "dry_run=true") {
				shown[op.OperationID] = true
			}
		}
	}
	left := map[string]bool{}
	for path, item := range document.Paths.Map() {
		for method, op := range item.Operations() {
			tag := op.Tags[0]
			switch left[tag], left[op.OperationID] = true, true; {
			case notOnPages[tag] != "" || notOnPages[op.OperationID] != "":
				if shown[op.OperationID] {
					t.Errorf("a page shows %s %s, which is listed in notOnPages", method, path)
				}
			case !shown[op.OperationID]:
				t.Errorf("no page shows %s %s (%s)", method, path, op.OperationID)
			}
		}
	}
	for name := range notOnPages {
		if !left[name] {
			t.Errorf("notOnPages has %s, which does not exist", name)
		}
	}
}

// description returns the committed OpenAPI document, which TestOpenAPI compares
// with the served one.
func description(t *testing.T) *openapi3.T {
	t.Helper()
	document, err := openapi3.NewLoader().LoadFromFile("openapi.json")
	check(t, err)
	return document
}

// operationAt returns the operation of a request, nil if there is none.
func operationAt(document *openapi3.T, method, target string) *openapi3.Operation {
	path, _, _ := strings.Cut(target, "?")
	segments := strings.Split(path, "/")
	for pattern, item := range document.Paths.Map() {
		fits := func(want, got string) bool { return want == got || strings.HasPrefix(want, "{") && got != "" }
		if slices.EqualFunc(strings.Split(pattern, "/"), segments, fits) && item.GetOperation(method) != nil {
			return item.GetOperation(method)
		}
	}
	return nil
}
