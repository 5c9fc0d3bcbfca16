package projections

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"accountledger/domain"
)

// awaitIndexed waits until the search index has applied the whole log.
func (f *fixture) awaitIndexed(t testing.TB, v *Views) {
	t.Helper()
	if err := v.Await(t.Context(), SearchView, f.awaitHead(t, v)); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) configure(t testing.TB, commands ...domain.ConfigCommand) {
	t.Helper()
	for _, cmd := range commands {
		if _, err := f.ledger.Configure(t.Context(), request, cmd); err != nil {
			t.Fatalf("%T: %v", cmd, err)
		}
	}
}

func field(key string, dataType domain.DataType, options ...string) domain.PutField {
	return domain.PutField{FieldDefinition: domain.FieldDefinition{FieldKey: key, DataType: dataType, Searchable: true, Options: options}}
}

// samples are the values of which the test accounts have different combinations.
var samples = struct {
	given, family, domains, groups, roles, providers, tiers, tags, births []string
}{
	given:     []string{"Ada", "Adam", "Älva", "Grace Brewster", "李", "jean-luc", "Anna"},
	family:    []string{"Lovelace", "Love", "O'Neil", "Hopper", "Müller", "MULLER", ""},
	domains:   []string{"example.com", "example.org", "love.example.net"},
	groups:    []string{"EUROPE", "BERLIN", "CLUB"},
	roles:     []string{"ADMIN", "CUSTOMER"},
	providers: []string{"google", "facebook"},
	tiers:     []string{`"gold"`, `"Gold "`, `"silver"`, `"` + strings.Repeat("long", 60) + `"`},
	tags:      []string{`["a"]`, `["a","b"]`, `["c"]`},
	births:    []string{`"1990-01-01"`, `"2001-12-31"`, `"1969-07-20"`},
}

// createSamples creates n accounts.
func (f *fixture) createSamples(t *testing.T, v *Views, n int) []string {
	f.ledger = domain.NewLedger(domain.LedgerConfig{Log: f.log, Codec: domain.Codec{Keys: f.keys}, Census: v.Census()})
	f.configure(t, domain.PutGroupType{GroupType: "PLACE", RoleMode: domain.ModeAnyRoles},
		domain.PutGroup{GroupID: "EUROPE", GroupName: "Europe", GroupType: "PLACE"},
		domain.PutGroup{GroupID: "BERLIN", GroupName: "Berlin", GroupType: "PLACE", ParentID: "EUROPE"},
		domain.PutGroup{GroupID: "CLUB", GroupName: "Club", GroupType: "PLACE"},
		field("tier", domain.TypeText), field("visits", domain.TypeNumber), field("born", domain.TypeDate), field("tags", domain.TypeMultiselect, "a", "b", "c"))
	var subs []string
	for i := range n {
		subs = append(subs, f.execute(t, domain.NewID().String(), domain.CreateAccount{Origin: domain.OriginCreated,
			Identities: []domain.NewIdentity{newIdentity(domain.ProviderSelf, "", domain.Profile{GivenName: samples.given[i%7], FamilyName: samples.family[i/7%7],
				Email: fmt.Sprintf("%s%d@%s", []string{"ada.love", "x"}[i%2], i, samples.domains[i%3])})}}).Sub)
		for range i % 4 {
			f.mutate(t, subs[i], i*7+len(subs))
		}
	}
	return subs
}

// awaitIndexedFields waits until the index has the searchable fields.
func (f *fixture) awaitIndexedFields(t *testing.T, v *Views) {
	t.Helper()
	until(t, func() bool {
		stale, err := v.search.stale(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return !stale
	})
}

// mutate applies a change to an account; n selects which.
func (f *fixture) mutate(t *testing.T, sub string, n int) {
	t.Helper()
	a, err := f.ledger.Account(t.Context(), sub)
	if err != nil || a.Erased() || a.Status == domain.StatusCombined || a.Status == domain.StatusDeleted {
		return
	}
	pick := func(from []string) string { return from[n/11%len(from)] }
	switch n % 11 {
	case 0:
		f.execute(t, sub, domain.UpdateProfile{IdentityID: a.Identities[0].IdentityID, Patch: jsontext.Value(fmt.Sprintf(`{"given_name":%q,"family_name":%q}`, pick(samples.given), pick(samples.family)))})
	case 1, 2:
		f.execute(t, sub, domain.SetMembership{GroupID: pick(samples.groups), Roles: samples.roles[:n/11%3]})
	case 3:
		f.execute(t, sub, domain.LeaveGroup{GroupID: pick(samples.groups)})
	case 4:
		f.execute(t, sub, domain.LinkIdentity{Identity: newIdentity(pick(samples.providers), domain.NewID().String(), domain.Profile{GivenName: pick(samples.given)})})
	case 5, 6, 7:
		f.execute(t, sub, domain.SetCustomFields{Values: map[string]jsontext.Value{"tier": jsontext.Value(pick(samples.tiers)),
			"visits": jsontext.Value(fmt.Sprint(n%5 - 2)), "born": jsontext.Value(pick(samples.births)), "tags": jsontext.Value(pick(samples.tags))}})
	case 8:
		f.execute(t, sub, domain.SetStatus{Status: []domain.Status{domain.StatusDeclined, domain.StatusPending}[n/11%2]})
	case 9:
		f.execute(t, sub, domain.Login{Provider: domain.ProviderSelf})
	case 10:
		f.execute(t, sub, domain.SetCustomFields{Values: map[string]jsontext.Value{"tier": jsontext.Value("null")}})
	}
}

// passes reports whether an account matches a query, without the index.
func passes(a domain.Account, q Query) bool {
	if a.Status == domain.StatusCombined { // its other data belongs to the surviving account
		a = domain.Account{Status: a.Status, CreatedTime: a.CreatedTime, UpdatedTime: a.UpdatedTime}
	}
	begins := func(all []string, word string) bool {
		return slices.ContainsFunc(all, func(s string) bool { return strings.HasPrefix(s, word) })
	}
	var names, mails []string
	providers := map[string]bool{}
	for _, i := range a.Identities {
		names = slices.Concat(names, words(i.GivenName), words(i.FamilyName), words(i.MiddleName), words(i.Nickname))
		mails = append(mails, foldText(i.Email))
		providers[i.Provider] = true
	}
	everything := slices.Concat(names, mails)
	for _, m := range mails {
		everything = append(everything, words(m)...)
	}
	for _, word := range searchWords(q.Text) {
		if !begins(everything, word) {
			return false
		}
	}
	for _, word := range words(q.Name) {
		if !begins(names, word) {
			return false
		}
	}
	member := func(m domain.Membership) bool {
		return (q.Group == "" || strings.Contains(m.Path+"/", "/"+q.Group+"/")) && (q.Role == "" || slices.Contains(m.Roles, q.Role))
	}
	within := func(t time.Time, p Period) bool {
		return p == Period{} || !t.IsZero() && !t.Before(p.From) && (p.To.IsZero() || t.Before(p.To))
	}
	for _, f := range q.Fields {
		value, has := a.CustomFields[f.Key]
		var v, from, to any
		if !has {
			return false
		}
		plain := func(j jsontext.Value) any {
			if f.Type == domain.TypeNumber {
				var n float64
				fmt.Sscan(string(j), &n)
				return n
			}
			return strings.TrimSpace(strings.ToLower(string(j[1 : len(j)-1])))
		}
		switch {
		case f.Type == domain.TypeMultiselect:
			if !strings.Contains(string(value), string(f.Value)) {
				return false
			}
		case f.Value != nil:
			if strings.ReplaceAll(plainText(value), " ", "") != strings.ReplaceAll(plainText(f.Value), " ", "") {
				return false
			}
		default:
			v = plain(value)
			if f.From != nil {
				from = plain(f.From)
			}
			if f.To != nil {
				to = plain(f.To)
			}
			if less(v, from) || to != nil && !less(v, to) {
				return false
			}
		}
	}
	return !a.Erased() && (a.Status != domain.StatusCombined || q.Status == domain.StatusCombined) &&
		(q.Status == "" || a.Status == q.Status) && (q.Provider == "" || providers[q.Provider]) &&
		(q.Group == "" && q.Role == "" || slices.ContainsFunc(a.Groups, member)) &&
		(q.Email == "" || begins(mails, q.Email)) &&
		within(a.CreatedTime, q.Created) && within(a.UpdatedTime, q.Updated) && within(a.LastLoggedInTime, q.LastLogin)
}

func plainText(v jsontext.Value) string { return strings.ToLower(string(v)) }

func less(a, b any) bool {
	switch b := b.(type) {
	case float64:
		return a.(float64) < b
	case string:
		return a.(string) < b
	}
	return false
}

// compare returns the comparison function of a query's order.
func compare(q Query) func(a, b domain.Account) int {
	return func(a, b domain.Account) int {
		x, y := a, b
		if q.Descending {
			x, y = b, a
		}
		switch q.Sort {
		case SortUpdated:
			return x.UpdatedTime.Compare(y.UpdatedTime)
		case SortLastLogin:
			return x.LastLoggedInTime.Compare(y.LastLoggedInTime)
		case SortName:
			name := func(a domain.Account) string {
				for _, i := range a.Identities {
					if s := strings.TrimSpace(i.FamilyName + " " + i.GivenName); s != "" {
						return foldText(s)
					}
				}
				return ""
			}
			return cmp.Compare(name(x), name(y))
		}
		return cmp.Compare(x.CreatedTime.UnixMilli(), y.CreatedTime.UnixMilli())
	}
}

// drawQuery draws a query, mostly with one or two conditions.
func drawQuery(t *rapid.T, times []time.Time) Query {
	maybe := func(name string, from ...string) string {
		if rapid.IntRange(0, 7).Draw(t, name) > 0 {
			return ""
		}
		return rapid.SampledFrom(from).Draw(t, name)
	}
	q := Query{Sort: rapid.SampledFrom(Sorts).Draw(t, "sort"), Descending: rapid.Bool().Draw(t, "descending"), Limit: rapid.IntRange(1, 9).Draw(t, "limit"),
		Text: maybe("text", "a", "ad lo", "love", "ada.love", "ADA.LOVE1", "ada.love2@ex", "mul", "ne", "x1 com", "李", "luc", "example", "nobody"),
		Name: maybe("name", "a", "al", "Love", "o neil", "com", "grace b"), Email: maybe("email", "a", "ada.love1", "x", "example"),
		Status: domain.Status(maybe("status", "VERIFIED", "DECLINED", "PENDING", "COMBINED", "DELETED")),
		Group:  maybe("group", "EUROPE", "BERLIN", "CLUB", domain.GroupUsers, "NONE"), Role: maybe("role", "ADMIN", "CUSTOMER", "USER"),
		Provider: maybe("provider", "self", "google", "facebook"),
	}
	if tier := maybe("tier", append(samples.tiers, `"x"`)...); tier != "" {
		q.Fields = append(q.Fields, FieldQuery{Key: "tier", Type: domain.TypeText, Value: jsontext.Value(tier)})
	}
	if tag := maybe("tag", `"a"`, `"b"`); tag != "" {
		q.Fields = append(q.Fields, FieldQuery{Key: "tags", Type: domain.TypeMultiselect, Value: jsontext.Value(tag)})
	}
	ends := func(key string, dataType domain.DataType, values []string) {
		if maybe(key, "yes") == "" {
			return
		}
		f := FieldQuery{Key: key, Type: dataType}
		end := func(name string) jsontext.Value { return jsontext.Value(rapid.SampledFrom(values).Draw(t, key+name)) }
		switch rapid.IntRange(0, 3).Draw(t, key+"what") {
		case 0:
			f.Value = end("value")
		case 1:
			f.From = end("from")
		case 2:
			f.To = end("to")
		default:
			f.From, f.To = end("from"), end("to")
		}
		q.Fields = append(q.Fields, f)
	}
	ends("visits", domain.TypeNumber, []string{"-2", "-1", "0", "0.5", "2", "1e300"})
	ends("born", domain.TypeDate, append(samples.births, `"1980-05-05"`))
	for name, p := range map[string]*Period{"created": &q.Created, "updated": &q.Updated, "login": &q.LastLogin} {
		if maybe(name, "yes") != "" {
			if rapid.Bool().Draw(t, name+"from") {
				p.From = rapid.SampledFrom(times).Draw(t, name+"from")
			}
			if rapid.Bool().Draw(t, name+"to") {
				p.To = rapid.SampledFrom(times).Draw(t, name+"to")
			}
		}
	}
	return q
}

// accounts returns all accounts of the account view, by sub.
func accounts(t testing.TB, v *Views) map[string]domain.Account {
	t.Helper()
	_, _, rows, err := v.Accounts().All(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]domain.Account{}
	for row, err := range rows {
		if err != nil {
			t.Fatal(err)
		}
		if all[row.Sub], err = row.Account(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestSearch compares random queries with a check of all accounts, page by page
// while accounts change: every result matches, no unchanged account is missing
// or returned twice, and each page is in order.
func TestSearch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	v := f.open(t)
	run(t, v)
	subs := f.createSamples(t, v, 84)
	f.execute(t, subs[5], domain.EraseAccount{})
	f.execute(t, subs[7], domain.ScheduleAccountDeletion{ScheduleID: domain.NewID().String(), Grace: time.Hour})
	for i, status := range []domain.Status{domain.StatusVerified, domain.StatusPending} {
		f.execute(t, subs[8+i], domain.SetStatus{Status: status})
	}
	f.execute(t, subs[8], domain.MergeAccount{From: subs[9]})
	f.awaitIndexedFields(t, v)
	f.awaitIndexed(t, v)
	var times []time.Time
	for _, a := range accounts(t, v) {
		times = append(times, a.CreatedTime, a.UpdatedTime, a.UpdatedTime.Add(time.Nanosecond))
	}
	slices.SortFunc(times, time.Time.Compare)
	changes := 0
	kinds := map[string]int{}
	rapid.Check(t, func(r *rapid.T) {
		// Small limits, so that few accounts are enough to exceed them.
		v.search.limits = searchLimits{sorted: rapid.Int64Range(0, 40).Draw(r, "sorted"), gathered: rapid.Int64Range(0, 40).Draw(r, "gathered"), walked: rapid.Int64Range(3, 100).Draw(r, "walked"), counted: rapid.Int64Range(0, 100).Draw(r, "counted"), distinct: rapid.Int64Range(0, 40).Draw(r, "distinct")}
		q := drawQuery(r, times)
		f.awaitIndexed(t, v)
		before := accounts(t, v)
		want := maps.Clone(before)
		maps.DeleteFunc(want, func(_ string, a domain.Account) bool { return !passes(a, q) })
		writing := rapid.IntRange(0, 9).Draw(r, "writing") == 0
		changed := map[string]bool{}
		got := map[string]int{}
		for pages := 0; ; pages++ {
			found, err := v.Search().Find(t.Context(), q)
			if err != nil {
				r.Fatalf("Find(%+v) = %v", q, err)
			}
			if len(found.Accounts) > q.Limit || pages > 200 {
				r.Fatalf("page %d has %d accounts, limit %d", pages, len(found.Accounts), q.Limit)
			}
			if !writing && (found.Exact && found.Count != int64(len(want)) || found.Count < int64(len(want))) {
				r.Fatalf("Find(%+v) counts %d, exact %t, want %d", q, found.Count, found.Exact, len(want))
			}
			var page []domain.Account
			for _, row := range found.Accounts {
				a, err := row.Account()
				if err != nil {
					t.Fatal(err)
				}
				page = append(page, a)
				got[a.Sub]++
				if !passes(a, q) {
					r.Fatalf("Find(%+v) has %s", q, row.JSON)
				}
			}
			if !slices.IsSortedFunc(page, compare(q)) {
				r.Fatalf("Find(%+v): a page is not in order", q)
			}
			kinds[fmt.Sprint(len(page) == q.Limit, found.Next != nil)]++
			if q.After = found.Next; q.After == nil {
				break
			}
			if writing && pages < 100 { // a query sorted by update time would otherwise never end
				sub := subs[changes*13%len(subs)]
				changes++
				changed[sub] = true
				f.mutate(t, sub, changes)
				f.awaitIndexed(t, v)
			}
		}
		for sub := range want {
			if got[sub] != 1 && !changed[sub] {
				r.Fatalf("Find(%+v) has %s %d times, want once", q, sub, got[sub])
			}
		}
		for sub, n := range got {
			_, ok := want[sub]
			if !ok && !changed[sub] || n > 1 && q.Sort == SortCreated {
				r.Fatalf("Find(%+v) has %s %d times", q, sub, n)
			}
		}
	})
	if kinds[fmt.Sprint(true, true)] == 0 || kinds[fmt.Sprint(false, true)] == 0 {
		t.Errorf("numbers of pages, by whether they are full and whether another follows: %v; want both full and short pages that another follows", kinds)
	}

	// The index written change by change equals one built at once.
	f.awaitIndexed(t, v)
	live := dumpSearch(t, f.path())
	if err := v.Rebuild(t.Context(), SearchView, nil); err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(live, dumpSearch(t, f.path())); diff != "" {
		t.Errorf("(-live +rebuilt):\n%s", diff)
	}
}
