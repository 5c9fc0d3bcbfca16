package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root is the module, as seen from this package.
const root = "../.."

// pagePaths returns the paths of all pages, as seen from this package.
func pagePaths(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "docs/*.md", "testdata/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	if len(all) < 10 {
		t.Fatalf("only %d pages", len(all))
	}
	return all
}

func readPage(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	codeBlock    = regexp.MustCompile("(?ms)^```.*?^```$")
	codeSpan     = regexp.MustCompile("`[^`\n]*`")
	pageLink     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading      = regexp.MustCompile(`(?m)^#+ (.*)$`)
	noAnchor     = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	decisionRow  = regexp.MustCompile(`(?m)^\| \[(\d+)\]\(#([^)]*)\) \| (.*?) \| (\d{4}-\d\d-\d\d) \| .* \|$`)
	commandStart = regexp.MustCompile(`(?m)^(curl |accountledger )`)
	subMember    = regexp.MustCompile(`"sub":"([0-9a-f-]{36})"`)
	demoExcerpt  = regexp.MustCompile("(?s)An excerpt:\n\n```\n(.*?)```")
	decision     = regexp.MustCompile(`(?m)^## (\d+)\. (.*)\n\n(\d{4}-\d\d-\d\d)\. `)
)

// anchors returns the fragments of a page's headings, as GitHub makes them.
func anchors(page string) map[string]bool {
	all := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(codeBlock.ReplaceAllString(page, ""), -1) {
		all[strings.ReplaceAll(noAnchor.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return all
}

// TestLinks follows every link from a page to a file of the repository, and to
// a heading in it.
func TestLinks(t *testing.T) {
	t.Parallel()
	followed := 0
	for _, page := range pagePaths(t) {
		text := codeSpan.ReplaceAllString(codeBlock.ReplaceAllString(readPage(t, page), ""), "")
		for _, m := range pageLink.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			followed++
			file, fragment, _ := strings.Cut(m[1], "#")
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which does not exist", page, m[1])
			} else if fragment != "" && !anchors(readPage(t, target))[fragment] {
				t.Errorf("%s links to %s, and %s has no such heading", page, m[1], target)
			}
		}
	}
	if followed < 50 {
		t.Errorf("followed only %d links", followed)
	}
}

// TestDecisions compares the index of docs/decisions.md with its sections.
func TestDecisions(t *testing.T) {
	t.Parallel()
	page := readPage(t, filepath.Join(root, "docs/decisions.md"))
	var index, sections []string
	for _, m := range decisionRow.FindAllStringSubmatch(page, -1) {
		index = append(index, fmt.Sprintf("%s. %s, %s", m[1], m[3], m[4]))
	}
	for i, m := range decision.FindAllStringSubmatch(page, -1) {
		if m[1] != fmt.Sprint(i+1) {
			t.Errorf("decision %s is number %d of the page", m[1], i+1)
		}
		sections = append(sections, fmt.Sprintf("%s. %s, %s", m[1], m[2], m[3]))
	}
	if len(sections) == 0 || len(sections) != strings.Count(page, "\n## ") {
		t.Errorf("%d of %d sections have a number and a date", len(sections), strings.Count(page, "\n## "))
	}
	if !slices.Equal(index, sections) {
		t.Errorf("the index is\n%s\nand the sections are\n%s", strings.Join(index, "\n"), strings.Join(sections, "\n"))
	}
}

// TestImportTable compares the import table of ARCHITECTURE.md with mayImport,
// which TestImports enforces.
func TestImportTable(t *testing.T) {
	t.Parallel()
	_, table, ok := strings.Cut(readPage(t, filepath.Join(root, "ARCHITECTURE.md")), "| package | may import of ours |\n|---|---|\n")
	if !ok {
		t.Fatal("ARCHITECTURE.md has no import table")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	names := func(cell string) (list []string) {
		for _, m := range codeSpan.FindAllString(cell, -1) {
			list = append(list, strings.Trim(m, "`"))
		}
		return list
	}
	shown := map[string]string{}
	for row := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(row), "|")
		if len(cells) != 4 {
			t.Fatalf("the row %q has no two cells", row)
		}
		may := strings.Join(names(cells[2]), " ")
		if may == "" {
			may = strings.TrimSpace(cells[2])
		}
		for _, name := range names(cells[1]) {
			shown[name] = may
		}
	}
	for name, may := range mayImport {
		want := strings.Join(may, " ")
		switch {
		case name == "testdata": // data, and no part of the program
			continue
		case may == nil:
			want = "everything"
		case len(may) == 0:
			want = "nothing"
		}
		if shown[name] != want {
			t.Errorf("ARCHITECTURE.md says that %s may import %q, the test %q", name, shown[name], want)
		}
		delete(shown, name)
	}
	for name := range maps.Keys(shown) {
		t.Errorf("ARCHITECTURE.md says what %s may import, and the test has no such package", name)
	}
}

// TestSession runs the first session of README.md on a server, line by line.
func TestSession(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	_, session, _ := strings.Cut(readPage(t, filepath.Join(root, "README.md")), "## A first session\n")
	_, session, _ = strings.Cut(session, "```sh\n")
	session, _, ok := strings.Cut(session, "```")
	if !ok {
		t.Fatal("README.md has no first session")
	}
	dir := t.TempDir()
	p := startServer(t, filepath.Join(dir, "data"))
	session = strings.NewReplacer("http://127.0.0.1:8080", p.url, "bin/accountledger", "accountledger", "curl ", "curl -sS --fail-with-body ").Replace(session)
	setting, commands, _ := strings.Cut(session, "\n\n")
	sub := ""
	ran := 0
	for _, command := range commandStart.Split(commands, -1)[1:] {
		cmd := exec.CommandContext(t.Context(), "bash", "-c", setting+"\n"+commandStart.FindAllString(commands, -1)[ran]+strings.ReplaceAll(command, "<sub>", sub))
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		if m := subMember.FindSubmatch(out); m != nil && sub == "" {
			sub = string(m[1])
		}
		ran++
	}
	if sub == "" || ran < 7 {
		t.Errorf("ran %d commands, and the account is %q", ran, sub)
	}
}

// TestExcerpt compares the excerpt of the demo's output in README.md with the
// output: times, ids and figures differ, the headings do not. If a heading
// differs, rewrite the excerpt with -update.
func TestExcerpt(t *testing.T) {
	t.Parallel()
	path := filepath.Join(root, "README.md")
	page := readPage(t, path)
	excerpt := demoExcerpt.FindStringSubmatchIndex(page)
	if excerpt == nil {
		t.Fatal("README.md has no excerpt of the demo's output")
	}
	out, err := exec.CommandContext(t.Context(), "accountledger", "demo").Output()
	if err != nil {
		t.Fatal(err)
	}
	steps := map[string]string{} // by heading
	numbers := map[string]string{}
	for step := range strings.SplitSeq(string(out), "\n\n") {
		if number, _, ok := strings.Cut(strings.TrimSpace(step), ". "); ok {
			heading, _, _ := strings.Cut(strings.TrimSpace(step), "\n")
			steps[heading], numbers[number] = strings.TrimSpace(step), heading
		}
	}
	var is strings.Builder
	shown, stale := 0, false
	for part := range strings.SplitSeq(strings.TrimSpace(page[excerpt[2]:excerpt[3]]), "\n\n") {
		heading, _, _ := strings.Cut(part, "\n")
		if number, _, ok := strings.Cut(heading, ". "); ok {
			shown++
			if stale = stale || steps[heading] == ""; steps[heading] == "" && !*update {
				t.Errorf("the demo does not print %q but %q; run go test -update", heading, numbers[number])
			}
			part = steps[numbers[number]]
		}
		is.WriteString(part + "\n\n")
	}
	if shown < 4 {
		t.Errorf("the excerpt has only %d steps", shown)
	}
	if *update && stale {
		page = page[:excerpt[2]] + strings.TrimSpace(is.String()) + "\n" + page[excerpt[3]:]
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
