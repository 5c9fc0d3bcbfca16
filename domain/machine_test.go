package domain

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// machine executes random commands in a world and in a model.
type machine struct {
	w     *world
	m     *model
	n     int // number of ids made
	steps int // number of steps made
	start time.Time
}

// The definitions: the number of versions of each consent, and the offsets of the
// schedule setups.
var (
	newestVersions = map[string]int{"news": 2, "terms": 1}
	setups         = map[ScheduleKind]time.Duration{ScheduleReminder: time.Hour, ScheduleStatusChange: 24 * time.Hour, ScheduleDeletion: 72 * time.Hour}
)

// init makes these definitions, and those of two fields that are identifiers.
func (c *machine) init(_ *rapid.T, w *world) {
	c.w, c.m, c.start = w, newModel(), w.now
	w.configure(PutField{FieldDefinition: FieldDefinition{FieldKey: "login", DataType: TypeUsername, Personal: true}})
	w.configure(PutField{FieldDefinition: FieldDefinition{FieldKey: "badge", DataType: TypeText, Unique: true}})
	for id, newest := range newestVersions {
		p := PutConsent{ConsentID: id, Name: id}
		for v := range newest {
			p.Versions = append(p.Versions, ConsentVersion{Version: v + 1, Text: map[string]string{"en": "?"}})
		}
		w.configure(p)
	}
	for kind, after := range setups {
		p := PutScheduleSetup{SetupID: string(kind), Kind: kind, OffsetSeconds: int64(after / time.Second)}
		switch kind {
		case ScheduleReminder:
			p.ReminderNo = 1
		case ScheduleStatusChange:
			p.TargetStatus = StatusDeclined
		}
		w.configure(p)
	}
}

func (c *machine) subs() []string { return slices.Sorted(maps.Keys(c.w.accounts)) }

// draw chooses one of several values.
func draw[T any](t *rapid.T, name string, some ...T) T { return rapid.SampledFrom(some).Draw(t, name) }

// sub draws an account. rapid prefers small numbers, so each step counts from
// another account.
func (c *machine) sub(t *rapid.T) string {
	c.steps++
	return testSub(1 + (c.steps+rapid.IntRange(0, 4).Draw(t, "sub"))%5)
}

// from draws an account, preferably one for which fit is true.
func (c *machine) from(t *rapid.T, fit func(sub string, a *modelAccount) bool) string {
	var fitting, others []string
	for i := range 5 {
		sub := testSub(1 + (c.steps+i)%5)
		if a := c.m.accounts[sub]; a != nil && fit(sub, a) {
			fitting = append(fitting, sub)
		} else {
			others = append(others, sub)
		}
	}
	return draw(t, "from", append(fitting, others...)...)
}

func (c *machine) id(prefix string) string {
	c.n++
	return fmt.Sprintf("%s%03d", prefix, c.n)
}

// step executes one random command in both and compares the outcomes.
func (c *machine) step(t *rapid.T) {
	sub := c.sub(t)
	commands := map[string]func(*rapid.T, string) (Command, change){
		"fields": c.fields, "merge": c.merge, "separate": c.separate, "link": c.link, "unlink": c.unlink, "update": c.update, "group": c.group,
		"consent": c.consent, "plan": c.plan, "execute": c.execute, "status": c.status, "postpone": c.postpone, "cancel": c.cancel,
		"delete": c.delete, "restore": c.restore, "erase": c.erase,
	}
	// rapid draws the first command most. An erased account refuses nearly all.
	name := draw(t, "command", "merge", "fields", "consent", "separate", "execute", "plan", "link", "update", "wait", "group",
		"unlink", "status", "postpone", "cancel", "delete", "restore", "erase")
	if name == "wait" {
		c.w.now = c.w.now.Add(draw(t, "for", time.Hour, 25*time.Hour))
		return
	}
	generate := commands[name]
	if !c.w.account(sub).Exists() {
		name, generate = "create", c.create
	}
	c.m.now = c.w.now
	cmd, expected := generate(t, sub)
	events, got := c.w.execute(sub, cmd)
	changed, want := c.m.apply(expected)
	if (got == nil) != (want == nil) {
		t.Fatalf("%s of %s: %v, the model says %v", name, sub, got, want)
	}
	if got != nil && CodeOf(got) == "" {
		t.Fatalf("%s: %v is not a refusal", name, got)
	}
	if changed != (len(events) > 0) {
		t.Fatalf("%s of %s: %d events, the model says it changes something: %t", name, sub, len(events), changed)
	}
	c.compare(t, name)
}

// shown is the part of an account that the comparison covers.
type shown struct {
	status    Status
	erased    bool
	into, end string
	before    Status
	ways      map[string]modelWay
	fields    map[string]string
	groups    map[string][]string
	consents  map[string]modelDecision
	schedules map[string]modelSchedule
}

func (m *model) shown(sub string) shown {
	a := m.accounts[sub]
	s := shown{a.status, a.erased, a.into, a.end, a.before, map[string]modelWay{}, a.fields, a.memberships(), a.consents(), a.schedules}
	for _, id := range m.at(sub) {
		s.ways[id] = m.ways[id]
	}
	return s
}

func shownAccount(a Account) shown {
	s := shown{a.Status, a.Erased(), a.CombinedInto, a.Deletion.ScheduleID, a.Deletion.From, map[string]modelWay{},
		map[string]string{}, map[string][]string{}, map[string]modelDecision{}, map[string]modelSchedule{}}
	for _, i := range a.Identities {
		s.ways[i.IdentityID] = modelWay{cmp.Or(i.From, a.Sub), a.Sub, i.Provider, i.ProviderUserID, i.Email, i.Username, i.Nickname, i.MobileNumber}
	}
	for key, v := range a.CustomFields {
		s.fields[key] = string(v)
	}
	for _, m := range a.Groups {
		s.groups[m.GroupID] = m.Roles
	}
	for _, d := range a.Consents {
		s.consents[d.ConsentID] = modelDecision{d.Version, d.Status, d.Time}
	}
	for _, x := range a.Schedules {
		s.schedules[cmp.Or(x.SetupID, x.ScheduleID)] = modelSchedule{x.Kind, x.DueTime, x.State,
			time.Duration(x.PeriodSeconds) * time.Second, x.Origin == ScheduleAuto, x.Late, x.Reason}
	}
	return s
}

func (c *machine) compare(t failer, after string) {
	c.w.check(t)
	for sub, a := range c.w.accounts {
		want, got := c.m.shown(sub), shownAccount(a)
		if reflect.DeepEqual(want, got) {
			continue
		}
		if diff := gocmp.Diff(want, got, gocmp.AllowUnexported(shown{}, modelWay{}, modelDecision{}, modelSchedule{}), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("after %s, %s (-model +account):\n%s", after, sub, diff)
		}
	}
	// Identifiers lead where the model says, and there are no other claims.
	want, _ := c.m.identifiers()
	leads, held := map[string]string{}, map[string]string{}
	for sub, a := range c.w.accounts {
		for _, u := range a.UserIDs {
			leads[string(u.Type)+"\x00"+u.Key()] = sub
		}
	}
	for id, owner := range c.w.claims {
		sub, _ := strings.CutPrefix(owner, accountPrefix)
		held[id] = c.m.survivor(sub)
	}
	if !maps.Equal(want, held) {
		t.Fatalf("after %s the claims (-model +ledger):\n%s", after, gocmp.Diff(want, held))
	}
	// Those of a unique field, or as which a username is read, lead nowhere.
	maps.DeleteFunc(want, func(id, _ string) bool {
		_, address := leads["username\x00"+strings.TrimPrefix(id, "email\x00")]
		_, shown := leads[id]
		return strings.HasPrefix(id, unique+"\x00") || !shown && address || !shown && strings.HasPrefix(id, "mobile_number\x00")
	})
	if !maps.Equal(want, leads) {
		t.Fatalf("after %s the identifiers (-model +ledger):\n%s", after, gocmp.Diff(want, leads))
	}
}

func (c *machine) way(t *rapid.T, sub string) (NewIdentity, modelWay) {
	w := modelWay{origin: sub, at: sub, provider: draw(t, "provider", "self", "google", "saml"),
		email:  draw(t, "email", "", "a@example.com", "b@example.com", "c@example.com", "d@example.com", "E@example.com"),
		name:   draw(t, "username", "", "", "ann", "bob", "Cyd", "A@example.com", "e@example.com", "+4915112345678"),
		mobile: draw(t, "mobile", "", "", "", "+4915112345678", "+4915112345679")}
	if w.provider != ProviderSelf {
		w.user = draw(t, "user", "1", "2", "3", "4")
	}
	return NewIdentity{IdentityID: c.id("i"), Provider: w.provider, ProviderUserID: w.user, Profile: Profile{Email: w.email, Username: w.name, MobileNumber: w.mobile}}, w
}

// field draws a custom field's key and value, and the value as it is stored.
func field(t *rapid.T) (key, given, kept string) {
	key = draw(t, "key", "login", "badge", "x", "y")
	switch key {
	case "login":
		given = draw(t, "value", `"ann"`, `"Bob"`, `"cyd"`, `" bob "`, `"b@example.com"`, `"+49 1511 2345678"`, "null")
	case "badge":
		given = draw(t, "value", `"b1"`, `"B1"`, `"b2"`, "null")
	default:
		given = draw(t, "value", "1", "2", "null")
	}
	return key, given, strings.ReplaceAll(strings.ReplaceAll(given, `" `, `"`), ` "`, `"`)
}

func (c *machine) create(t *rapid.T, sub string) (Command, change) {
	n, w := c.way(t, sub)
	key, given, kept := field(t)
	status := draw(t, "status", StatusPending, StatusVerified, StatusDeclined)
	return CreateAccount{Origin: OriginCreated, Status: status, Identities: []NewIdentity{n}, CustomFields: fieldValues(key, given)}, func(m *model) error {
		if m.accounts[sub] != nil {
			return errModel
		}
		a := newModelAccount(status)
		a.groups["CIDAAS_USERS"] = []string{"USER"}
		if kept != "null" {
			a.fields[key] = kept
		}
		for kind, after := range setups {
			if status != StatusVerified {
				a.schedules[string(kind)] = modelSchedule{kind: kind, due: m.now.Add(after), state: SchedulePending, auto: true}
			}
		}
		m.accounts[sub], m.ways[n.IdentityID] = a, w
		return nil
	}
}

func (c *machine) link(t *rapid.T, sub string) (Command, change) {
	n, w := c.way(t, sub)
	return LinkIdentity{n}, func(m *model) error {
		if _, err := m.open(sub); err != nil {
			return err
		}
		self := false
		for _, id := range m.at(sub) {
			o := m.ways[id]
			if o.provider == w.provider && o.user == w.user && (w.user != "" || o.email == w.email && o.name == w.name && o.mobile == w.mobile && o.nick == "") {
				return nil
			}
			self = self || o.provider == ProviderSelf
		}
		if self && w.provider == ProviderSelf {
			return errModel
		}
		m.ways[n.IdentityID] = w
		return nil
	}
}

func (c *machine) pick(t *rapid.T, sub string) string {
	return draw(t, "identity", append(c.m.at(sub), "nobody")...)
}

func (c *machine) unlink(t *rapid.T, sub string) (Command, change) {
	id := c.pick(t, sub)
	return UnlinkIdentity{id}, func(m *model) error {
		if _, err := m.open(sub); err != nil || id == "nobody" {
			return errModel
		}
		delete(m.ways, id)
		return nil
	}
}

func (c *machine) update(t *rapid.T, sub string) (Command, change) {
	id := c.pick(t, sub)
	member := draw(t, "member", "email", "username", "nickname")
	to := draw(t, "to", "", "f@example.com", "a@example.com", "b@example.com")
	if member != "email" && rapid.Bool().Draw(t, "cut") {
		to, _, _ = strings.Cut(to, "@")
	}
	patch := fmt.Sprintf(`{%q:%q}`, member, to)
	if to == "" {
		patch = fmt.Sprintf(`{%q:null}`, member)
	}
	return UpdateProfile{IdentityID: id, Patch: value(patch)}, func(m *model) error {
		if _, err := m.open(sub); err != nil || id == "nobody" {
			return errModel
		}
		w := m.ways[id]
		switch member {
		case "email":
			w.email = to
		case "username":
			w.name = to
		default:
			w.nick = to
		}
		m.ways[id] = w
		return nil
	}
}

func (c *machine) fields(t *rapid.T, sub string) (Command, change) {
	key, given, kept := field(t)
	return SetCustomFields{Values: map[string]jsontext.Value{key: value(given)}}, func(m *model) error {
		a, err := m.open(sub)
		if err != nil {
			return err
		}
		old, had := a.fields[key]
		if !had && kept == "null" || had && old == kept {
			return nil
		}
		delete(a.fields, key)
		if kept != "null" {
			a.fields[key] = kept
		}
		for _, filled := range a.filled {
			delete(filled, key)
		}
		return nil
	}
}

func (c *machine) status(t *rapid.T, sub string) (Command, change) {
	to := draw(t, "to", Statuses...)
	return SetStatus{Status: to}, func(m *model) error {
		a, err := m.there(sub)
		if err != nil || to == StatusCombined || to == StatusDeleted || a.status == StatusDeleted && to != StatusVerified {
			return errModel
		}
		if to != a.status {
			a.become(to)
		}
		return nil
	}
}

func (c *machine) group(t *rapid.T, sub string) (Command, change) {
	group := draw(t, "group", "G", "H")
	roles := draw(t, "roles", nil, []string{"ADMIN"}, []string{"CUSTOMER"}, []string{"ADMIN", "CUSTOMER"}, []string{"leave"})
	leave := slices.Equal(roles, []string{"leave"})
	var cmd Command = SetMembership{GroupID: group, Roles: roles}
	if leave {
		cmd = LeaveGroup{group}
	}
	return cmd, func(m *model) error {
		a, err := m.open(sub)
		if err != nil {
			return err
		}
		now, member := a.memberships()[group]
		if leave && !member || !leave && member && slices.Equal(now, roles) {
			return nil
		}
		for _, merged := range a.shared {
			delete(merged, group)
		}
		delete(a.groups, group)
		if !leave {
			a.groups[group] = roles
		}
		return nil
	}
}

// consent decides now, at the time of another decision, or in the future.
func (c *machine) consent(t *rapid.T, sub string) (Command, change) {
	id, version := draw(t, "consent", "news", "news", "terms", "none"), draw(t, "version", 1, 2)
	status := draw(t, "decision", ConsentStatuses...)
	times := []time.Time{{}, c.start, c.start.Add(time.Hour), c.w.now.Add(time.Hour)}
	for _, other := range c.subs() { // so that a merge has to choose
		if d, ok := c.m.accounts[other].decided[id]; ok && other != sub {
			times = slices.Insert(times, 0, d.time)
		}
	}
	at := draw(t, "at", times...)
	return DecideConsent{ConsentID: id, Version: version, Status: status, Time: at}, func(m *model) error {
		a, err := m.open(sub)
		if err != nil {
			return err
		}
		now := a.consents()[id]
		d := modelDecision{version, status, at}
		if at.IsZero() {
			d.time = m.now
		}
		switch {
		case version > newestVersions[id]:
			return errModel
		case version == now.version && status == now.status:
			return nil
		case version < now.version && status != ConsentRevoked, d.time.After(m.now), d.time.Before(now.time),
			status == ConsentRevoked && (now.status != ConsentAccepted || now.version != version):
			return errModel
		}
		a.decided[id] = d
		for _, merged := range a.merged {
			delete(merged.decided, id)
		}
		return nil
	}
}

func (c *machine) merge(t *rapid.T, sub string) (Command, change) {
	from := c.from(t, func(from string, a *modelAccount) bool {
		return from != sub && a.status != StatusCombined && a.status != StatusDeleted
	})
	return MergeAccount{From: from}, func(m *model) error {
		a, err := m.open(sub)
		if err != nil {
			return err
		}
		b := m.accounts[from]
		if b != nil && b.into == sub {
			return nil
		}
		if b, err = m.open(from); err != nil || from == sub || a.status == StatusDeclined {
			return errModel
		}
		for _, id := range m.at(from) {
			w := m.ways[id]
			w.at = sub
			m.ways[id] = w
		}
		a.filled[from] = map[string]bool{}
		a.shared[from] = b.memberships()
		a.merged = append(a.merged, modelMerged{from, b.consents()})
		for key, v := range b.fields {
			if _, has := a.fields[key]; !has {
				a.fields[key] = v
				a.filled[from][key] = true
			}
		}
		b.cancel("combined", func(string, modelSchedule) bool { return true })
		b.was, b.status, b.into = b.status, StatusCombined, sub
		return nil
	}
}

func (c *machine) separate(t *rapid.T, sub string) (Command, change) {
	from := c.from(t, func(_ string, a *modelAccount) bool { return a.into == sub })
	return UnmergeAccount{Sub: from}, func(m *model) error {
		a, err := m.open(sub)
		if err != nil {
			return err
		}
		b := m.accounts[from]
		if b == nil || b.into != sub {
			return errModel
		}
		b.status, b.into = b.was, ""
		for _, id := range m.at(sub) { // those that originate from b or from accounts merged into b
			if w := m.ways[id]; m.survivor(w.origin) == from {
				w.at = from
				m.ways[id] = w
			}
		}
		for key := range a.filled[from] {
			delete(a.fields, key)
		}
		delete(a.filled, from)
		delete(a.shared, from)
		a.merged = slices.DeleteFunc(a.merged, func(b modelMerged) bool { return b.from == from })
		return nil
	}
}

// TestMachine executes random commands on a few accounts that compete for the same
// identifiers, and compares each outcome with the model.
func TestMachine(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		var c machine
		c.init(rt, newWorld())
		for range rapid.IntRange(20, 60).Draw(rt, "steps") {
			c.step(rt)
		}
	})
}
