package projections

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"accountledger/domain"
	"accountledger/projections/projectionstest"
)

// population generates accounts whose names have a realistic distribution: the
// most common given name is that of every fifteenth account, the most common
// family name that of every hundredth.
type population struct{ given, family []string }

func newPopulation() population {
	r := rand.New(rand.NewPCG(1, 2))
	syllables := strings.Fields("an be chri da el fa ge han i jo ka lo mar ni o pa ri so ta u vi wal xa yo zo mül schmi len")
	name := func() string {
		var s string
		for range 2 + r.IntN(3) {
			s += syllables[r.IntN(len(syllables))]
		}
		return strings.ToUpper(s[:1]) + s[1:]
	}
	var c population
	for range 2_000 {
		c.given = append(c.given, name())
	}
	for range 40_000 {
		c.family = append(c.family, name())
	}
	return c
}

// common returns a random index below n; smaller ones are more common.
func common(r *rand.Rand, n int) int {
	x := r.Float64()
	return int(x * x * x * float64(n))
}

type person struct{ given, family, email, path, status string }

func (c population) person(i int) person {
	r := rand.New(rand.NewPCG(3, uint64(i)))
	p := person{given: c.given[common(r, len(c.given))], family: c.family[common(r, len(c.family))], status: "VERIFIED"}
	p.email = fmt.Sprintf("%s.%s%d@%s", strings.ToLower(p.given), strings.ToLower(p.family), i, []string{"gmail.com", "example.com", "example.org", "web.de"}[r.IntN(4)])
	p.path = fmt.Sprintf("/WORLD/REGION%d/CITY%d", common(r, 20), common(r, 3000))
	switch x := r.IntN(100); {
	case x < 2:
		p.status = "DECLINED"
	case x < 10:
		p.status = "PENDING"
	}
	return p
}

func (c population) body(account, _ int) (eventType string, clear, personal []byte) {
	p := c.person(account)
	city := p.path[strings.LastIndex(p.path, "/")+1:]
	clear = fmt.Appendf(nil, `{"meta":{"actor":{"kind":"import","id":"bench"}},"data":{"origin":"imported","userStatus":%q,"identityId":"i%d","provider":"self","groups":[{"groupId":"CIDAAS_USERS","groupType":"SYSTEM","path":"/CIDAAS_USERS","roles":["USER"]},{"groupId":%q,"groupType":"PLACE","path":%q}]}}`,
		p.status, account, city, p.path)
	personal = fmt.Appendf(nil, `{"data":{"profile":{"given_name":%q,"family_name":%q,"email":%q,"mobile_number":"+49151%08d","locale":"de-DE"}}}`, p.given, p.family, p.email, account)
	return "account.created.v1", clear, personal
}

// BenchmarkSearch measures how long each kind of query takes for a page of 50.
// ACCOUNTLEDGER_BENCH_EVENTS sets the number of accounts.
func BenchmarkSearch(b *testing.B) {
	n := 20_000
	if s := os.Getenv("ACCOUNTLEDGER_BENCH_EVENTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	f, c := newFixture(b), newPopulation()
	start := time.Now()
	projectionstest.History{Accounts: n, Events: n, Body: c.body}.Write(b, f.log, f.keys)
	v := f.open(b)
	b.Logf("written in %v", time.Since(start))
	start = time.Now()
	run(b, v)
	head, err := f.log.Head(b.Context())
	if err == nil {
		err = v.Await(b.Context(), AccountsView, head)
	}
	b.Logf("accounts in %v", time.Since(start))
	start = time.Now()
	if err == nil {
		err = v.Await(b.Context(), SearchView, head)
	}
	if err != nil {
		b.Fatal(err)
	}
	before, _ := os.Stat(f.path())
	b.Logf("indexed in %v, views.db %d MiB, peak %.0f MiB", time.Since(start), before.Size()>>20, peakMiB(b))
	prefix := func(s string, n int) string { return string([]rune(s)[:min(n, len([]rune(s)))]) }
	for _, kind := range []struct {
		name  string
		query func(p person) Query
	}{
		{"identifier", func(p person) Query {
			return Query{Identifier: []domain.Candidate{{Kind: domain.KindEmail, Key: p.email}}}
		}},
		{"email", func(p person) Query { return Query{Email: p.email} }},
		{"email-prefix", func(p person) Query { return Query{Email: prefix(p.email, 3+rand.IntN(8))} }},
		{"name-letter", func(p person) Query { return Query{Name: prefix(p.family, 1)} }},
		{"name-prefix", func(p person) Query { return Query{Name: prefix(p.family, 2+rand.IntN(6))} }},
		{"name", func(p person) Query { return Query{Name: p.family} }},
		{"two-words", func(p person) Query { return Query{Text: prefix(p.given, 4) + " " + prefix(p.family, 4)} }},
		{"status+group", func(p person) Query {
			return Query{Status: domain.Status(p.status), Group: p.path[strings.LastIndex(p.path, "/")+1:]}
		}},
		{"status+region", func(p person) Query {
			return Query{Status: domain.Status(p.status), Group: strings.Split(p.path, "/")[2]}
		}},
		{"all", func(person) Query { return Query{} }},
		{"updated-range", func(person) Query {
			from := time.Date(2026, 1, 1, 0, 0, rand.IntN(max(n/1000, 1)), 0, time.UTC)
			return Query{Updated: Period{from, from.Add(time.Second)}, Sort: SortUpdated}
		}},
		{"letter-by-name", func(p person) Query { return Query{Name: prefix(p.family, 1), Sort: SortName} }},
		{"worst", func(person) Query { // two common filters and no account that passes
			return Query{Group: "CIDAAS_USERS", Status: domain.StatusVerified, Created: Period{To: time.Unix(1, 0)}, Sort: SortLastLogin}
		}},
		{"worst-gathered", func(p person) Query {
			return Query{Name: prefix(p.family, 3), Text: "nobody", Email: prefix(p.email, 2), Sort: SortName}
		}},
	} {
		b.Run(kind.name, func(b *testing.B) {
			times := make([]time.Duration, 0, b.N)
			found, before := 0, cpu(b)
			for b.Loop() {
				q := kind.query(c.person(rand.IntN(n)))
				q.Limit, q.Descending = 50, true
				start := time.Now()
				page, err := v.Search().Find(b.Context(), q)
				if err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(start))
				found += len(page.Accounts)
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(len(times)), "cpu-us")
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-us")
			b.ReportMetric(float64(found)/float64(len(times)), "found")
		})
	}
}
