package httpapi

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
)

// docs is where the pages for people are.
const docs = "../docs"

// TestDocs does what the pages in docs show: every block marked http is a
// request and what is answered, on one ledger a page. An answer shows some of
// the members; what it shows must be so. <name> in an answer stands for any
// text the first time, and for the same text from then on, also in requests.
func TestDocs(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob(filepath.Join(docs, "*.md"))
	check(t, err)
	if len(pages) == 0 {
		t.Fatal("there are no pages")
	}
	for _, page := range pages {
		t.Run(filepath.Base(page), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(page)
			check(t, err)
			l := start(t)
			names := map[string]string{}
			for _, x := range transcripts(t, text) {
				x.run(t, l, names)
			}
		})
	}
}

// exchange is a request and its answer as a page shows them.
type exchange struct {
	line         int
	method, path string
	headers      []string
	body         string
	status       int
	answer       string
}

// transcripts are the exchanges of a page.
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
				t.Fatalf("line %d: the request has no answer", x.line)
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
	known := func(text string) string {
		return nameInText.ReplaceAllStringFunc(text, func(name string) string {
			if value, ok := names[name]; ok {
				return value
			}
			return name
		})
	}
	for i, h := range x.headers {
		x.headers[i] = known(h)
	}
	r := l.send(t, x.method, known(x.path), strings.TrimSpace(known(x.body)), x.headers...)
	if r.status != x.status {
		t.Fatalf("line %d: %s %s = %d %s, the page says %d %s", x.line, x.method, x.path, r.status, r.body, x.status, http.StatusText(x.status))
	}
	if x.answer == "" {
		return
	}
	var want, got any
	if err := json.Unmarshal([]byte(x.answer), &want); err != nil {
		t.Fatalf("line %d: the answer on the page is no JSON: %v", x.line, err)
	}
	if err := json.Unmarshal(r.body, &got); err != nil {
		t.Fatalf("line %d: the answer is no JSON: %v", x.line, err)
	}
	if at := differs(want, got, names); at != "" {
		t.Fatalf("line %d: %s %s: the answer is not as the page shows at %s:\n%s", x.line, x.method, x.path, at, r.body)
	}
}

// differs returns where got does not have what want shows, "" if it does. A
// list shows its first elements.
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

// docTables are the tables in the pages that the code writes: between
// <!-- name --> and <!-- end -->.
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

var docTable = regexp.MustCompile(`(?s)<!-- ([a-z -]+) -->\n(.*?)<!-- end -->`)

// TestDocTables holds the tables in the pages to the code. Rewrite them with
// -update.
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
				t.Errorf("%s: nobody writes the table %q", page, name)
				return block
			}
			shown[name] = true
			return []byte("<!-- " + name + " -->\n" + table() + "<!-- end -->")
		})
		if *update {
			check(t, os.WriteFile(page, is, 0o644))
		} else if !bytes.Equal(text, is) {
			t.Errorf("the tables of %s are not as the code has them; run go test -update", page)
		}
	}
	for name := range docTables {
		if !shown[name] {
			t.Errorf("no page shows the table %q", name)
		}
	}
}
