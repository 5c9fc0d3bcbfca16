package importer

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	pageBlock = regexp.MustCompile("(?ms)^```(yaml|ndjson|json)\n(.*?)^```$")
	tableName = regexp.MustCompile("`([A-Za-z_]+)`")
	mentioned = regexp.MustCompile(`use one of ([A-Za-z, ]+)$`)
)

// importPage is the page for users that describes the mapping language.
func importPage(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/import.md")
	check(t, err)
	return string(page)
}

// TestPageExample imports the inputs of docs/import.md, in their order, into one
// ledger with the first mapping, and compares the results with the page.
func TestPageExample(t *testing.T) {
	t.Parallel()
	ledger := openLedger(t)
	var mapping *Mapping
	var input string
	runs := 0
	for _, m := range pageBlock.FindAllStringSubmatch(importPage(t), -1) {
		switch kind, text := m[1], m[2]; {
		case kind == "yaml" && mapping == nil:
			var err error
			mapping, err = ParseMapping([]byte(text))
			check(t, err)
		case kind == "ndjson":
			input = text
		case kind == "json":
			runs++
			_, results := ledger.imports(t, mapping, "customers.ndjson", []byte(input))
			var lines strings.Builder
			for _, r := range results {
				line, err := json.Marshal(r)
				check(t, err)
				lines.Write(append(line, '\n'))
			}
			if diff := cmp.Diff(text, lines.String()); diff != "" {
				t.Errorf("the results of run %d are not as the page shows them (-page +got):\n%s", runs, diff)
			}
		}
	}
	if runs != 2 {
		t.Errorf("the page shows the results of %d runs, want 2", runs)
	}
}

// TestPageMappings parses every mapping of docs/import.md. It adds the required
// keys to those that show only some keys.
func TestPageMappings(t *testing.T) {
	t.Parallel()
	parsed := 0
	for _, m := range pageBlock.FindAllStringSubmatch(importPage(t), -1) {
		if m[1] != "yaml" {
			continue
		}
		text := "\n" + m[2]
		for _, required := range []string{"source: s\n", "key: /id\n", "identities: [{provider: self}]\n"} {
			if key, _, _ := strings.Cut(required, ":"); !strings.Contains(text, "\n"+key+":") {
				text += required
			}
		}
		if _, err := ParseMapping([]byte(text)); err != nil {
			t.Errorf("%v in\n%s", err, m[2])
		}
		parsed++
	}
	if parsed < 5 {
		t.Errorf("the page shows only %d mappings", parsed)
	}
}

// TestPageIsWhole compares the tables of docs/import.md with the parser: every
// key, transformation, member of an identity and member of a result is in the
// first column of a table.
func TestPageIsWhole(t *testing.T) {
	t.Parallel()
	shown := map[string]bool{}
	for line := range strings.Lines(importPage(t)) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			for _, m := range tableName.FindAllStringSubmatch(cells[1], -1) {
				shown[m[1]] = true
			}
		}
	}
	const base = "source: s\nkey: /id\n"
	const identity = base + "identities:\n  - provider: self\n"
	want := map[string]bool{"personal": true, "provider": true, "providerUserId": true, "each": true, "address": true}
	// The error for an unknown name lists the known ones.
	for _, misspelled := range []string{
		identity + "x: /x\n",
		identity + "    email: {x: /x}\n",
		identity + "    email: {from: /x, transform: x}\n",
		identity + "groups: {x: /x}\n",
		identity + "roles: {x: /x}\n",
	} {
		_, err := ParseMapping([]byte(misspelled))
		if err == nil {
			t.Fatalf("ParseMapping accepts an unknown name in %s", misspelled)
		}
		found := false
		for text := range strings.SplitSeq(err.Error(), "; line ") {
			if m := mentioned.FindStringSubmatch(text); m != nil {
				found = true
				for name := range strings.SplitSeq(m[1], ", ") {
					want[name] = true
				}
			}
		}
		if !found {
			t.Fatalf("the error does not list the known names: %v", err)
		}
	}
	page := importPage(t)
	for name := range profileFields {
		part, inAddress := strings.CutPrefix(name, "address/")
		if inAddress && !strings.Contains(page, "`"+part+"`") {
			t.Errorf("the page does not mention the part %s of an address", part)
		} else if !inAddress {
			want[name] = true
		}
	}
	result, err := json.Marshal(Result{Key: "k", Sub: "s", Code: "c", Joined: []string{"g"}, Left: []string{"g"}})
	check(t, err)
	var members map[string]any
	check(t, json.Unmarshal(result, &members))
	for name := range members {
		want[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !shown[name] {
			t.Errorf("no table of the page has %s in its first column", name)
		}
	}
	if len(want) < 50 {
		t.Errorf("only %d names are looked for", len(want))
	}
}
