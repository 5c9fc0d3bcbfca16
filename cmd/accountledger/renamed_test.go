package main

import (
	"database/sql"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
)

// TestRenamedTypes builds a program in which every event type has its next version
// and an upcaster that changes nothing, as CONTRIBUTING.md describes. On an older
// log that program must produce the same views, exports, histories, feed and
// deliveries as this one, and verify and check must pass. Code that compares a
// stored type with a current one would ignore the older events.
func TestRenamedTypes(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a copy of the program")
	}
	t.Parallel()
	today, err := exec.LookPath("accountledger")
	if err != nil {
		t.Fatal(err)
	}
	receiver := newSink()
	defer receiver.Close()
	data := filepath.Join(t.TempDir(), "data")
	p := startServer(t, data, "--webhook-allow", "127.0.0.0/8,::1/128")
	mustDo(t, p, "POST", "/v1/accounts", fmt.Sprintf(`{"origin":"created","identities":[{"provider":"self","given_name":"Emily","email":%q}]}`, demoEmail))
	mustDo(t, p, "POST", "/v1/webhooks", fmt.Sprintf(`{"url":%q,"events":["*"],"after":0}`, receiver.URL))
	live(t, p)
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := remade(t, today, data, receiver)
	got := remade(t, renamed(t), data, receiver)
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if diff := cmp.Diff(want[name], currentTypes(got[name])); diff != "" {
			t.Errorf("%s (-today +renamed):\n%s", name, diff)
		}
	}
	if len(want["deliveries"]) < 1000 || !strings.Contains(want["views.db"], "schedules_1") {
		t.Errorf("the test compared too little: %d bytes of deliveries, views:\n%s", len(want["deliveries"]), want["views.db"])
	}
}

var storedType = regexp.MustCompile(`"([a-z]+(?:-[a-z]+)*\.[a-z]+(?:-[a-z]+)*\.v)1"`)

// currentTypes replaces the renamed types in text by the current ones.
func currentTypes(text string) string {
	return regexp.MustCompile(`\b([a-z-]+\.[a-z-]+\.v)2\b`).ReplaceAllString(text, "${1}1")
}

// renamed builds the program with every event type at its next version.
func renamed(t *testing.T) string {
	t.Helper()
	tree := copyTree(t)
	upcasters := map[string]bool{}
	files, err := filepath.Glob(filepath.Join(tree, "domain", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, literal := range storedType.FindAllString(string(text), -1) {
			upcasters[literal] = true
		}
		if err := os.WriteFile(name, storedType.ReplaceAll(text, []byte(`"${1}2"`)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if len(upcasters) < 50 {
		t.Fatalf("found only %d event types", len(upcasters))
	}
	entries := ""
	for literal := range upcasters {
		entries += fmt.Sprintf("%s: {%s, func(clear, personal jsontext.Value) (jsontext.Value, jsontext.Value, error) { return clear, personal, nil }},\n",
			literal, storedType.ReplaceAllString(literal, `"${1}2"`))
	}
	edit(t, filepath.Join(tree, "domain", "event.go"), "var upcasters = map[string]upcaster{", "var upcasters = map[string]upcaster{\n"+entries)
	return buildTree(t, tree)
}

// remade copies a data directory without the files that program can rebuild, runs
// program on it, and returns its outputs by name.
func remade(t *testing.T, program, data string, receiver *sink) map[string]string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	if err := errors.Join(os.CopyFS(dir, os.DirFS(data)), os.Chmod(filepath.Join(dir, masterKeyFile), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"views.db*", "delivery.db*", "lock"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	made := map[string]string{}
	tool := func(args ...string) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), program, append(args, "--data", dir)...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
		made[strings.Join(args, " ")] = string(out)
	}
	tool("verify")
	p, stdout, err := spawnProgram(program, "", dir, "--webhook-allow", "127.0.0.0/8,::1/128")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if err := p.ready(stdout, dir); err != nil {
		t.Fatal(err)
	}
	is := accountsOf(t, p)
	for sub, account := range is.Accounts {
		made["account "+sub] = string(account)
		made["history "+sub] = mustDo(t, p, "GET", "/v1/accounts/"+sub+"/events?limit=1000", "")
	}
	made["feed"] = mustDo(t, p, "GET", "/v1/events?limit=1000&after=0", "")
	made["search"] = mustDo(t, p, "POST", "/v1/accounts/search", `{"q":"emily"}`)
	made["deliveries"] = receiver.all(t, p)
	for sub, account := range is.Accounts { // now that subscribers have been told
		if string(account) == "null" {
			made["deletion "+sub] = mustDo(t, p, "GET", "/v1/accounts/"+sub+"/deletion", "")
		}
	}
	tool("check", "--views")
	tool("export")
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	made["views.db"] = rows(t, filepath.Join(dir, "views.db"))
	return made
}

// sink is a receiver that keeps the deliveries.
type sink struct {
	*httptest.Server
	mu     sync.Mutex
	bodies map[string]string // by webhook-id
}

func newSink() *sink {
	s := &sink{bodies: map[string]string{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.bodies[r.Header.Get("webhook-id")] = string(body)
	}))
	return s
}

// all waits until p has delivered everything to s, and returns and clears the
// deliveries. It omits events about deliveries, which failing deliveries add.
func (s *sink) all(t *testing.T, p *process) string {
	t.Helper()
	for deadline := time.Now().Add(timeout); ; time.Sleep(20 * time.Millisecond) {
		var list struct {
			Webhooks []struct {
				URL     string `json:"url"`
				Backlog int64  `json:"backlog"`
			} `json:"webhooks"`
		}
		if err := json.Unmarshal([]byte(mustDo(t, p, "GET", "/v1/webhooks", "")), &list); err != nil {
			t.Fatal(err)
		}
		waiting := slices.ContainsFunc(list.Webhooks, func(w struct {
			URL     string `json:"url"`
			Backlog int64  `json:"backlog"`
		}) bool {
			return w.URL == s.URL && w.Backlog > 0
		})
		if !waiting {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("deliveries do not end: %v", list)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for id, body := range s.bodies {
		if !strings.Contains(body, "WEBHOOK_DELIVERY_") {
			all = append(all, id+" "+body)
		}
	}
	s.bodies = map[string]string{}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// rows returns the rows of all tables in an SQLite file.
func rows(t *testing.T, path string) string {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+path+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	query := func(text string) (all []string) {
		t.Helper()
		found, err := db.QueryContext(t.Context(), text)
		if err != nil {
			t.Fatal(err)
		}
		defer found.Close()
		columns, err := found.Columns()
		if err != nil {
			t.Fatal(err)
		}
		for found.Next() {
			values, to := make([]any, len(columns)), make([]any, len(columns))
			for i := range values {
				to[i] = &values[i]
			}
			if err := found.Scan(to...); err != nil {
				t.Fatal(err)
			}
			all = append(all, fmt.Sprintf("%q", values))
		}
		if err := found.Err(); err != nil {
			t.Fatal(err)
		}
		slices.Sort(all)
		return all
	}
	var text strings.Builder
	for _, quoted := range query(`SELECT name FROM sqlite_schema WHERE type = 'table'`) {
		name := strings.Trim(quoted, `["]`)
		fmt.Fprintf(&text, "%s\n%s\n", name, strings.Join(query(`SELECT * FROM "`+name+`"`), "\n"))
	}
	return text.String()
}

// mustDo sends a request that must succeed, and returns the answer's body.
func mustDo(t *testing.T, p *process, method, path, body string) string {
	t.Helper()
	response, text, err := p.do(t.Context(), method, path, body)
	if err != nil || response.StatusCode >= 300 {
		t.Fatalf("%s %s: %v, %v: %s\n%s", method, path, response, err, text, p.log)
	}
	return string(text)
}

// copyTree copies the source files of the module to a temporary directory.
func copyTree(t *testing.T) string {
	t.Helper()
	list := exec.Command("git", "ls-files")
	list.Dir = "../.."
	out, err := list.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	tree := t.TempDir()
	for name := range strings.FieldsSeq(string(out)) {
		text, err := os.ReadFile(filepath.Join("../..", name))
		if os.IsNotExist(err) {
			continue // deleted in the working tree
		}
		to := filepath.Join(tree, name)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o755)
		}
		if err == nil {
			err = os.WriteFile(to, text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// edit replaces a text that occurs once in a file.
func edit(t *testing.T, file, old, with string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), old); n != 1 {
		t.Fatalf("%s has %q %d times", file, old, n)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), old, with, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// buildTree builds the program from a copy of the module.
func buildTree(t *testing.T, tree string) (program string) {
	t.Helper()
	program = filepath.Join(tree, "bin", "accountledger")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./cmd/accountledger")
	build.Dir = tree
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return program
}
