package projections

import (
	"math"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// candidateWalk is the beginning of a walk over candidates. SQLite has to sort
// them if they are of more than one term.
const candidateWalk = `FROM (SELECT account AS id, account AS key FROM (SELECT `

// termWalk matches a walk over the candidates of one term, which are in order.
var termWalk = regexp.MustCompile(`^SELECT [^()]* FROM \(SELECT account AS id, account AS key FROM \(SELECT account FROM terms_\d+ WHERE term = \?\)`)

// planned matches the steps of SQLite's query plans that a search may have. None
// of them reads a whole table: SCAN only reads the limited result of another step.
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

// TestSearchPlans checks that every statement of a search uses the intended
// index, and sorts only gathered accounts or candidates. SQLite has no statistics
// of these tables, so its plans do not depend on their contents.
func TestSearchPlans(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	stop := run(t, v)
	f.createSamples(t, v, 1)
	f.awaitIndexedFields(t, v)
	f.awaitIndexed(t, v)
	stop() // so that the generation does not change
	statements := map[string][]any{}
	v.search.onQuery = func(query string, args []any) { statements[query] = args }
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
				step == "USE TEMP B-TREE FOR ORDER BY" && strings.Contains(query, candidateWalk) && !termWalk.MatchString(query) ||
				step == "USE TEMP B-TREE FOR count(DISTINCT)"
			whole := step == "SCAN s" && strings.HasPrefix(query, "SELECT count(*) FROM search_") // only below the limit counted, see count
			if !planned.MatchString(step) && !sorts && !whole {
				t.Errorf("%s\nhas the step %s", query, step)
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
}
