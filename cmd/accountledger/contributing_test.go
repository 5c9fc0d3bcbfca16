package main

import (
	"go/format"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// TestAddingAnEvent does what CONTRIBUTING.md shows under "Adding an event" in a
// copy of the module: it must touch five files at most, pass the tests that
// every event and every command pass, and work in a server.
func TestAddingAnEvent(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a copy of the program and of its tests")
	}
	t.Parallel()
	tree := copyTree(t)
	edited := map[string]bool{}
	for _, e := range additions(t, "Adding an event") {
		e.apply(t, tree)
		edited[e.file] = true
	}
	if len(edited) == 0 || len(edited) > 5 {
		t.Errorf("the example edits %d files, want 1 to 5: %v", len(edited), slices.Sorted(maps.Keys(edited)))
	}
	goTest := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "go", append([]string{"test"}, args...)...)
		cmd.Dir = tree
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
	// As make golden does.
	goTest("./domain", "-run", "^TestGoldenEvents$", "-update")
	goTest("./httpapi", "-run", "^Test(OpenAPI|AsyncAPI|DocTables)$", "-update")
	goTest("./domain")
	goTest("./httpapi", "-run", "^Test(OpenAPI|AsyncAPI|EventSchemas|DocTables|Docs|DocsAreWhole|DryRuns|EveryWriteTakesIfMatch|EveryWriteRepeats)$")

	data := filepath.Join(t.TempDir(), "data")
	p, stdout, err := spawnProgram(buildTree(t, tree), "", data)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	if err := p.ready(stdout, data); err != nil {
		t.Fatal(err)
	}
	sub := p.create(t, "ada@example.com")
	for range 2 { // the second time changes nothing
		mustDo(t, p, "PUT", "/v1/accounts/"+sub+"/review", `{"state":"open","note":"three chargebacks"}`)
	}
	type event struct {
		Type string `json:"type"`
		Sub  string `json:"sub"`
		Data struct {
			State string `json:"state"`
			Note  string `json:"note"`
		} `json:"data"`
	}
	for path, want := range map[string]event{
		"/v1/accounts/" + sub + "/events": {Type: "account.review-changed.v1"},
		"/v1/events?sub=" + sub:           {Type: "USER_REVIEW_CHANGED", Sub: sub},
	} {
		if want.Data.State = "open"; want.Sub == "" {
			want.Data.Note = "three chargebacks" // which is no one's outside
		}
		var page struct {
			Events []event `json:"events"`
		}
		if err := json.Unmarshal([]byte(mustDo(t, p, "GET", path, "")), &page); err != nil {
			t.Fatal(err)
		}
		if found := slices.DeleteFunc(page.Events, func(e event) bool { return e.Type != want.Type }); len(found) != 1 || found[0] != want {
			t.Errorf("GET %s has %+v, want %+v once", path, found, want)
		}
	}
}

// addition is a text that an example in CONTRIBUTING.md adds to a file: below
// the line that has an anchor, or at the end.
type addition struct {
	file, anchor, text string
}

var (
	additionPlace = regexp.MustCompile("^`([^`]+)`, (?:at the end|below `([^`]+)`):$")
	codeFence     = regexp.MustCompile("^(````*)[a-z]*$")
)

// additions returns the additions of a section of CONTRIBUTING.md. Every code
// block in it must say where it goes.
func additions(t *testing.T, section string) (all []addition) {
	t.Helper()
	page, err := os.ReadFile("../../CONTRIBUTING.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(page), "\n## "+section+"\n")
	if !found {
		t.Fatalf("CONTRIBUTING.md has no section %q", section)
	}
	var place []string
	fence := ""
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSuffix(line, "\n")
		switch {
		case fence != "" && trimmed == fence:
			fence, place = "", nil
		case fence != "":
			all[len(all)-1].text += line
		case codeFence.MatchString(trimmed):
			if place == nil {
				t.Fatalf("CONTRIBUTING.md, %s: a code block does not say where it goes, after %+v", section, all)
			}
			fence = codeFence.FindStringSubmatch(trimmed)[1]
			all = append(all, addition{file: place[1], anchor: place[2]})
		case strings.HasPrefix(line, "## "):
			return all
		case additionPlace.MatchString(trimmed):
			place = additionPlace.FindStringSubmatch(trimmed)
		}
	}
	return all
}

// apply makes the addition in a copy of the module. Go files are formatted, as
// make demands.
func (a addition) apply(t *testing.T, tree string) {
	t.Helper()
	path := filepath.Join(tree, filepath.FromSlash(a.file))
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, after := string(text)+"\n", ""
	if a.anchor != "" {
		lines := slices.Collect(strings.Lines(string(text)))
		at := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, a.anchor) })
		if n := strings.Count(string(text), a.anchor); n != 1 {
			t.Fatalf("%s has %q %d times, want once", a.file, a.anchor, n)
		}
		before, after = strings.Join(lines[:at+1], ""), strings.Join(lines[at+1:], "")
	}
	text = []byte(before + a.text + after)
	if strings.HasSuffix(path, ".go") {
		if text, err = format.Source(text); err != nil {
			t.Fatalf("%s: %v", a.file, err)
		}
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
}
