package projections

import (
	"math"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// candidateWay begins a way along candidates that SQLite has to put in order: few
// ids, if of more than one term.
const candidateWay = `FROM (SELECT account AS id, account AS key FROM (SELECT `

// termWay begins a way along the candidates of one term, which are in order.
var termWay = regexp.MustCompile(`^SELECT [^()]* FROM \(SELECT account AS id, account AS key FROM \(SELECT account FROM terms_\d+ WHERE term = \?\)`)

// planned are the steps of SQLite's that a statement of a search may have.
// None of them reads a table from end to end: a scan is one of what another
// step yields, which has a limit.
var planned = regexp.MustCompile(`^(` + strings.Join([]string{
	`CO-ROUTINE (w|\(subquery-\d+\))`, `SCAN (w|\(subquery-\d+\))`, `COMPOUND QUERY`, `LEFT-MOST SUBQUERY`, `UNION ALL`, `(REUSE )?LIST SUBQUERY \d+`,
	`CREATE BLOOM FILTER`,
	`SEARCH terms_\d+ USING PRIMARY KEY \(term=\?( AND account=\?| AND account>\? AND account<\?)?\)`,
	`SEARCH terms_\d+ USING PRIMARY KEY \(term>\? AND term<\?\)`,
	`SEARCH s USING INTEGER PRIMARY KEY \(rowid=\?\)`,
	`SEARCH search_\d+ USING INTEGER PRIMARY KEY \(rowid=\?\)`,
	`SEARCH search_\d+ USING INTEGER PRIMARY KEY \(rowid>\? AND rowid<\?\)`,
	`SEARCH search_\d+ USING COVERING INDEX search_(updated|login)_\d+ \((updated|login)>\? AND (updated|login)<\?\)`,
	`SEARCH search_\d+ USING COVERING INDEX search_(updated|login|name)_\d+ \(\((updated|login|name),place\)>\(\?,\?\) AND \((updated|login|name),place\)<\(\?,\?\)\)`,
}, `|`) + `)$`)

// TestSearchPlans holds that every statement a search can make goes by the
// index it is meant to, and sorts nothing but what was gathered. SQLite has no
// statistics of these tables, so its plans do not depend on what is in them.
func TestSearchPlans(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	stop := run(t, v)
	f.settle(t, v, 1)
	f.indexedFields(t, v)
	f.indexedUp(t, v)
	stop() // nothing changes meanwhile
	statements := map[string][]any{}
	v.search.asked = func(query string, args []any) { statements[query] = args }
	limits := []searchLimits{
		{sorted: -1, gathered: -1, walked: 10}, {sorted: -1, gathered: -1, walked: 10, counted: math.MaxInt32, distinct: math.MaxInt32},
		{sorted: 100, gathered: 100, walked: 10}, {sorted: 100, gathered: 100, walked: 10, counted: 100, distinct: 100}}
	rapid.Check(t, func(r *rapid.T) {
		q := drawQuery(r, []time.Time{time.Unix(0, 0), time.Now()})
		if rapid.Bool().Draw(r, "after") {
			q.After = &Place{ID: 1}
		}
		for _, v.search.limits = range limits {
			if _, err := v.Search().Find(t.Context(), q); err != nil {
				r.Fatal(err)
			}
		}
	})
	t.Logf("%d statements", len(statements))
	for query, args := range statements {
		rows, err := v.read.Query(`EXPLAIN QUERY PLAN `+query, args...)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var id, parent, unused int
			var step string
			if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
				t.Fatal(err)
			}
			sorts := strings.HasPrefix(step, "USE TEMP B-TREE") && strings.Contains(query, "IN (SELECT") && strings.Contains(query, " s NOT INDEXED ") ||
				step == "USE TEMP B-TREE FOR ORDER BY" && strings.Contains(query, candidateWay) && !termWay.MatchString(query) ||
				step == "USE TEMP B-TREE FOR count(DISTINCT)"
			whole := step == "SCAN s" && strings.HasPrefix(query, "SELECT count(*) FROM search_") // of few, see count
			if !planned.MatchString(step) && !sorts && !whole {
				t.Errorf("%s\ndoes: %s", query, step)
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
}
