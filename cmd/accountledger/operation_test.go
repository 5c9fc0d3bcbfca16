package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"go.yaml.in/yaml/v3"

	"accountledger/cmd/accountledger/cli"
)

var update = flag.Bool("update", false, "rewrite the generated parts of the pages in docs, and the transcripts")

// operationTables are the generated tables of docs/operation.md.
var operationTables = map[string]func() string{
	"settings": func() string {
		var b strings.Builder
		b.WriteString("| setting | default | meaning |\n|---|---|---|\n")
		for _, s := range cli.Settings() {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.Name, code(s.Default), strings.ReplaceAll(s.Usage, "<", "&lt;"))
		}
		return b.String()
	},
	"metrics": func() string {
		var b strings.Builder
		b.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
		for _, m := range metricTable {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.name, m.kind, code(m.labels...), m.meaning)
		}
		return b.String()
	},
	"refusals": func() string {
		var b strings.Builder
		b.WriteString("| message | probable cause | what to do | override, and what it loses |\n|---|---|---|---|\n")
		for _, r := range refusals {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", shown(r.what), shown(r.cause), shown(r.do), shown(r.override))
		}
		return b.String()
	},
	"spans": func() string {
		var b strings.Builder
		b.WriteString("| span | meaning | attributes |\n|---|---|---|\n")
		for _, s := range spanTable {
			var names []string
			for _, a := range s.attributes {
				names = append(names, string(a))
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.name, s.meaning, code(names...))
		}
		return b.String()
	},
	"alerts": func() string {
		var b strings.Builder
		b.WriteString("| alert | when | what to do |\n|---|---|---|\n")
		for _, r := range alerts() {
			fmt.Fprintf(&b, "| %s | `%s` | %s |\n", r.Alert, strings.ReplaceAll(strings.TrimSpace(r.Expr), "|", "\\|"), strings.ReplaceAll(r.Annotations["action"], "<", "&lt;"))
		}
		return b.String()
	},
}

// shown is a text of a refusal in a table.
func shown(text string) string {
	return strings.NewReplacer("<why>", "", "<", "&lt;").Replace(strings.ReplaceAll(text, ": <why>", ""))
}

// code formats texts as code and omits empty ones.
func code(texts ...string) string {
	var all []string
	for _, t := range texts {
		if t != "" {
			all = append(all, "`"+t+"`")
		}
	}
	return strings.Join(all, ", ")
}

var operationTable = regexp.MustCompile(`(?s)<!-- table: ([a-z]+) -->\n(.*?)<!-- /table -->`)

// TestOperationTables compares the tables of docs/operation.md with the program.
// Use -update to rewrite them.
func TestOperationTables(t *testing.T) {
	const page = "../../docs/operation.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	is := operationTable.ReplaceAllStringFunc(string(text), func(block string) string {
		name := operationTable.FindStringSubmatch(block)[1]
		shown[name] = true
		if operationTables[name] == nil {
			t.Fatalf("there is no generator for the table %q", name)
		}
		return "<!-- table: " + name + " -->\n" + operationTables[name]() + "<!-- /table -->"
	})
	for name := range operationTables {
		if !shown[name] {
			t.Errorf("the page has no table %q", name)
		}
	}
	if *update {
		if err := os.WriteFile(page, []byte(is), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if is != string(text) {
		t.Errorf("the tables of %s differ from the program; run go test -update", page)
	}
}

// alert is a rule of deploy/prometheus/rules.yml.
type alert struct {
	Alert       string
	Expr        string
	For         string
	Labels      map[string]string
	Annotations map[string]string
}

func alerts() (all []alert) {
	text, err := os.ReadFile("../../deploy/prometheus/rules.yml")
	if err != nil {
		panic(err)
	}
	var file struct{ Groups []struct{ Rules []alert } }
	if err := yaml.Unmarshal(text, &file); err != nil {
		panic(err)
	}
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

// panels returns the expressions of the dashboard and their legends.
func panels(t *testing.T) (exprs, legends []string) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/grafana/accountledger.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string `json:"title"`
			Targets []struct {
				Expr         string `json:"expr"`
				LegendFormat string `json:"legendFormat"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			exprs, legends = append(exprs, target.Expr), append(legends, target.LegendFormat)
		}
	}
	return exprs, legends
}

var (
	inQuotes  = regexp.MustCompile(`"[^"]*"`)
	aMetric   = regexp.MustCompile(`\b(accountledger|go|process)_[a-z0-9_]+\b`)
	matchers  = regexp.MustCompile(`\{([^}]*)\}`)
	aLabel    = regexp.MustCompile(`([a-z_]+)\s*(=~|!~|!=|=)`)
	labelList = regexp.MustCompile(`\b(?:by|on)\s*\(([^)]*)\)`)
	inLegend  = regexp.MustCompile(`\{\{\s*(?:\$labels\.)?([a-z_]+)`)
)

// TestDeployedMetrics compares the dashboard and the alert rules with the table of
// metrics: each metric exists with its type and the labels used. An alert on a
// metric that does not exist would never fire.
func TestDeployedMetrics(t *testing.T) {
	check := func(expr string, texts ...string) {
		t.Helper()
		allowed := []string{"instance", "job", "le"} // added by Prometheus
		bare := inQuotes.ReplaceAllString(expr, `""`)
		found := 0
		for _, name := range aMetric.FindAllString(bare, -1) {
			found++
			base := name
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				if cut, ok := strings.CutSuffix(name, suffix); ok && slices.ContainsFunc(metricTable, func(m metric) bool { return m.name == cut && m.kind == histogram }) {
					base = cut
				}
			}
			i := slices.IndexFunc(metricTable, func(m metric) bool { return m.name == base })
			switch {
			case !strings.HasPrefix(name, "accountledger_"):
				continue // a metric of Go or of the process
			case i < 0:
				t.Errorf("there is no metric %s: %s", name, expr)
				continue
			case base == name && metricTable[i].kind == histogram:
				t.Errorf("%s is a histogram: %s", name, expr)
			}
			if c := metricTable[i].kind == counter; c && !strings.Contains(bare, "rate(") && !strings.Contains(bare, "increase(") {
				t.Errorf("%s is a counter, which needs rate or increase: %s", name, expr)
			}
			allowed = append(allowed, metricTable[i].labels...)
		}
		if found == 0 && !strings.HasPrefix(expr, "up{") {
			t.Errorf("no metric in %s", expr)
		}
		var asked []string
		for _, m := range matchers.FindAllStringSubmatch(bare, -1) {
			for _, l := range aLabel.FindAllStringSubmatch(m[1], -1) {
				asked = append(asked, l[1])
			}
		}
		for _, m := range labelList.FindAllStringSubmatch(bare, -1) {
			asked = append(asked, strings.FieldsFunc(m[1], func(r rune) bool { return r == ',' || r == ' ' })...)
		}
		for _, text := range texts {
			for _, m := range inLegend.FindAllStringSubmatch(text, -1) {
				asked = append(asked, m[1])
			}
		}
		for _, label := range asked {
			if !slices.Contains(allowed, label) {
				t.Errorf("no metric has the label %s: %s", label, expr)
			}
		}
	}
	rules := alerts()
	if len(rules) < 10 {
		t.Errorf("only %d alerts", len(rules))
	}
	for _, r := range rules {
		check(r.Expr, r.Annotations["summary"])
		if r.Annotations["summary"] == "" || r.Annotations["action"] == "" || r.Labels["severity"] == "" {
			t.Errorf("%s lacks a summary, an action or a severity", r.Alert)
		}
	}
	exprs, legends := panels(t)
	if len(exprs) < 20 {
		t.Errorf("the dashboard has only %d expressions", len(exprs))
	}
	for i, expr := range exprs {
		check(expr, legends[i])
	}
	shown := strings.Join(exprs, " ")
	for _, r := range rules {
		shown += " " + r.Expr
	}
	for _, m := range metricTable {
		if !strings.Contains(shown, m.name) && !slices.Contains(notShown, m.name) {
			t.Errorf("neither a panel nor an alert shows %s", m.name)
		}
	}
}

// notShown are metrics that neither the dashboard nor an alert uses.
var notShown = []string{
	"accountledger_command_duration_seconds", "accountledger_account_cache_accounts", "accountledger_log_commit_events",
	"accountledger_view_position", "accountledger_view_lag_events", "accountledger_schedule_delay_seconds",
	"accountledger_delivery_in_flight_requests", "accountledger_delivery_duplicates_bound_events",
}
