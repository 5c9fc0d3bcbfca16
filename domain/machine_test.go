package domain

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// model is what accounts are, said a second time and otherwise: no events, no
// folding, one map for the whole ledger. It knows the rules by the words of
// the specification only.
type model struct {
	accounts map[string]*modelAccount
	ways     map[string]*modelWay // by identityId
}

type modelAccount struct {
	status Status
	fields map[string]string
	into   string // COMBINED
	was    Status // before it was combined
	filled map[string]map[string]bool
	groups map[string][]string            // its own
	shared map[string]map[string][]string // brought along, by the account that did
}

// effective are the memberships of a.
func (a *modelAccount) effective() map[string][]string {
	all := maps.Clone(a.groups)
	for _, brought := range a.shared {
		for group, roles := range brought {
			both := slices.Concat(all[group], roles)
			slices.Sort(both)
			all[group] = slices.Compact(both)
		}
	}
	return all
}

// modelWay is an identity: whose it is by origin, and whose it is now.
type modelWay struct {
	origin, at        string
	provider, user    string
	email, name, nick string
}

func newModel() *model {
	return &model{accounts: map[string]*modelAccount{}, ways: map[string]*modelWay{}}
}

// taken reports whether an account other than sub has an identifier.
func (m *model) taken(sub string, w modelWay) bool {
	for _, o := range m.ways {
		if o.at == sub {
			continue
		}
		if w.email != "" && strings.EqualFold(o.email, w.email) || w.name != "" && o.name == w.name ||
			w.user != "" && o.provider == w.provider && o.user == w.user {
			return true
		}
	}
	return false
}

func (m *model) at(sub string) (ids []string) {
	for id, w := range m.ways {
		if w.at == sub {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// reachable reports whether sub had an identifier left without the identity
// left out, and with another in the place of one it has.
func (m *model) reachable(sub, without string, instead map[string]modelWay) bool {
	for _, id := range m.at(sub) {
		w := *m.ways[id]
		if other, ok := instead[id]; ok {
			w = other
		}
		if id != without && (w.email != "" || w.name != "") {
			return true
		}
	}
	return false
}

var errModel = errors.New("refused")

// machine drives a world and a model side by side with random commands.
type machine struct {
	w *world
	m *model
	n int // identities made
}

func (c *machine) init(_ *rapid.T, w *world) { c.w, c.m = w, newModel() }

func (c *machine) subs() []string { return slices.Sorted(maps.Keys(c.w.accounts)) }

// open refuses what an account that is not there or has ended refuses.
func (m *model) open(sub string) (*modelAccount, error) {
	a := m.accounts[sub]
	if a == nil || a.status == StatusCombined || a.status == StatusDeleted {
		return nil, errModel
	}
	return a, nil
}

func (c *machine) way(t *rapid.T) (NewIdentity, modelWay) {
	c.n++
	w := modelWay{provider: rapid.SampledFrom([]string{"self", "google", "saml"}).Draw(t, "provider"),
		email: rapid.SampledFrom([]string{"", "a@example.com", "b@example.com", "c@example.com", "d@example.com", "E@example.com"}).Draw(t, "email"),
		name:  rapid.SampledFrom([]string{"", "", "ann", "bob", "cyd"}).Draw(t, "username")}
	if w.provider != ProviderSelf {
		w.user = rapid.SampledFrom([]string{"1", "2", "3", "4"}).Draw(t, "user")
	}
	return NewIdentity{IdentityID: fmt.Sprintf("i%03d", c.n), Provider: w.provider, ProviderUserID: w.user, Profile: Profile{Email: w.email, Username: w.name}}, w
}

// step asks one random command of both and compares what came of it.
func (c *machine) step(t *rapid.T) {
	sub := testSub(rapid.IntRange(1, 5).Draw(t, "sub"))
	commands := map[string]func() (Command, func() error){
		"create": func() (Command, func() error) { return c.create(t, sub) },
		"link":   func() (Command, func() error) { return c.link(t, sub) },
		"unlink": func() (Command, func() error) { return c.unlink(t, sub) },
		"update": func() (Command, func() error) { return c.update(t, sub) },
		"fields": func() (Command, func() error) { return c.fields(t, sub) },
		"status": func() (Command, func() error) { return c.status(t, sub) },
		"group":  func() (Command, func() error) { return c.group(t, sub) },
		"merge":  func() (Command, func() error) { return c.merge(t, sub) },
		"part":   func() (Command, func() error) { return c.separate(t, sub) },
	}
	name := rapid.SampledFrom(slices.Sorted(maps.Keys(commands))).Draw(t, "command")
	if !c.w.account(sub).Exists() {
		name = "create"
	}
	cmd, ask := commands[name]()
	_, got := c.w.execute(sub, cmd)
	want := ask()
	if (got == nil) != (want == nil) {
		t.Fatalf("%s of %s: %v, the model says %v", name, sub, got, want)
	}
	if got != nil && CodeOf(got) == "" {
		t.Fatalf("%s: %v is no refusal", name, got)
	}
	c.compare(t, name)
}

func (c *machine) compare(t failer, after string) {
	c.w.check(t)
	for sub, a := range c.w.accounts {
		m := c.m.accounts[sub]
		if m.status != a.Status || m.into != a.CombinedInto {
			t.Fatalf("after %s %s is %s into %q, the model says %s into %q", after, sub, a.Status, a.CombinedInto, m.status, m.into)
		}
		ways := map[string]modelWay{}
		for _, i := range a.Identities {
			origin := i.From
			if origin == "" {
				origin = sub
			}
			ways[i.IdentityID] = modelWay{origin, sub, i.Provider, i.ProviderUserID, i.Email, i.Username, i.Nickname}
		}
		want := map[string]modelWay{}
		for _, id := range c.m.at(sub) {
			want[id] = *c.m.ways[id]
		}
		if diff := cmp.Diff(want, ways, cmp.AllowUnexported(modelWay{})); diff != "" {
			t.Fatalf("after %s the identities of %s (-model +account):\n%s", after, sub, diff)
		}
		fields := map[string]string{}
		for key, v := range a.CustomFields {
			fields[key] = string(v)
		}
		if diff := cmp.Diff(m.fields, fields); diff != "" {
			t.Fatalf("after %s the fields of %s (-model +account):\n%s", after, sub, diff)
		}
		groups := map[string][]string{}
		for _, membership := range a.Groups {
			groups[membership.GroupID] = membership.Roles
		}
		if diff := cmp.Diff(m.effective(), groups, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("after %s the groups of %s (-model +account):\n%s", after, sub, diff)
		}
	}
}

func (c *machine) create(t *rapid.T, sub string) (Command, func() error) {
	n, w := c.way(t)
	status := rapid.SampledFrom([]Status{StatusPending, StatusVerified, StatusDeclined}).Draw(t, "status")
	return CreateAccount{Origin: OriginCreated, Status: status, Identities: []NewIdentity{n}}, func() error {
		if c.m.accounts[sub] != nil || w.email == "" && w.name == "" || c.m.taken(sub, w) {
			return errModel
		}
		c.m.accounts[sub] = &modelAccount{status: status, fields: map[string]string{}, filled: map[string]map[string]bool{},
			groups: map[string][]string{"CIDAAS_USERS": {"USER"}}, shared: map[string]map[string][]string{}}
		w.origin, w.at = sub, sub
		c.m.ways[n.IdentityID] = &w
		return nil
	}
}

func (c *machine) link(t *rapid.T, sub string) (Command, func() error) {
	n, w := c.way(t)
	return LinkIdentity{n}, func() error {
		if _, err := c.m.open(sub); err != nil {
			return err
		}
		for _, id := range c.m.at(sub) {
			o := c.m.ways[id]
			switch {
			case o.provider != w.provider:
			case w.provider == ProviderSelf && o.email == w.email && o.name == w.name && o.nick == "":
				return nil
			case w.provider == ProviderSelf:
				return errModel
			case o.user == w.user:
				return nil
			}
		}
		if c.m.taken(sub, w) {
			return errModel
		}
		w.origin, w.at = sub, sub
		c.m.ways[n.IdentityID] = &w
		return nil
	}
}

func (c *machine) pick(t *rapid.T, sub string) string {
	return rapid.SampledFrom(append(c.m.at(sub), "nobody")).Draw(t, "identity")
}

func (c *machine) unlink(t *rapid.T, sub string) (Command, func() error) {
	id := c.pick(t, sub)
	return UnlinkIdentity{id}, func() error {
		if _, err := c.m.open(sub); err != nil {
			return err
		}
		if id == "nobody" || !c.m.reachable(sub, id, nil) {
			return errModel
		}
		delete(c.m.ways, id)
		return nil
	}
}

func (c *machine) update(t *rapid.T, sub string) (Command, func() error) {
	id := c.pick(t, sub)
	member := rapid.SampledFrom([]string{"email", "username", "nickname"}).Draw(t, "member")
	to := rapid.SampledFrom([]string{"", "f@example.com", "a@example.com", "b@example.com"}).Draw(t, "to")
	if member != "email" {
		to, _, _ = strings.Cut(to, "@")
	}
	patch := fmt.Sprintf(`{%q:%q}`, member, to)
	if to == "" {
		patch = fmt.Sprintf(`{%q:null}`, member)
	}
	return UpdateProfile{IdentityID: id, Patch: value(patch)}, func() error {
		if _, err := c.m.open(sub); err != nil {
			return err
		}
		if id == "nobody" {
			return errModel
		}
		w := *c.m.ways[id]
		switch member {
		case "email":
			w.email = to
		case "username":
			w.name = to
		default:
			w.nick = to
		}
		if w == *c.m.ways[id] {
			return nil
		}
		if !c.m.reachable(sub, "", map[string]modelWay{id: w}) || c.m.taken(sub, w) {
			return errModel
		}
		c.m.ways[id] = &w
		return nil
	}
}

func (c *machine) fields(t *rapid.T, sub string) (Command, func() error) {
	key := rapid.SampledFrom([]string{"x", "y"}).Draw(t, "key")
	to := rapid.SampledFrom([]string{"1", "2", "null"}).Draw(t, "value")
	return SetCustomFields{Values: map[string]jsontext.Value{key: value(to)}}, func() error {
		a, err := c.m.open(sub)
		if err != nil {
			return err
		}
		old, had := a.fields[key]
		if !had && to == "null" || had && old == to {
			return nil
		}
		delete(a.fields, key)
		if to != "null" {
			a.fields[key] = to
		}
		for _, filled := range a.filled {
			delete(filled, key)
		}
		return nil
	}
}

func (c *machine) status(t *rapid.T, sub string) (Command, func() error) {
	to := rapid.SampledFrom([]Status{StatusPending, StatusVerified, StatusDeclined, StatusCombined, StatusDeleted}).Draw(t, "to")
	return SetStatus{Status: to}, func() error {
		a := c.m.accounts[sub]
		if a == nil || to == StatusCombined || to == StatusDeleted || a.status == StatusCombined {
			return errModel
		}
		a.status = to
		return nil
	}
}

func (c *machine) group(t *rapid.T, sub string) (Command, func() error) {
	group := rapid.SampledFrom([]string{"G", "H"}).Draw(t, "group")
	roles := rapid.SampledFrom([][]string{nil, {"ADMIN"}, {"CUSTOMER"}, {"ADMIN", "CUSTOMER"}, {"leave"}}).Draw(t, "roles")
	leave := slices.Equal(roles, []string{"leave"})
	var cmd Command = SetMembership{GroupID: group, Roles: roles}
	if leave {
		cmd = LeaveGroup{group}
	}
	return cmd, func() error {
		a, err := c.m.open(sub)
		if err != nil {
			return err
		}
		now, member := a.effective()[group]
		if leave && !member || !leave && member && slices.Equal(now, roles) {
			return nil
		}
		for _, brought := range a.shared {
			delete(brought, group)
		}
		delete(a.groups, group)
		if !leave {
			a.groups[group] = roles
		}
		return nil
	}
}

func (c *machine) merge(t *rapid.T, sub string) (Command, func() error) {
	from := testSub(rapid.IntRange(1, 5).Draw(t, "from"))
	return MergeAccount{From: from}, func() error {
		a, err := c.m.open(sub)
		if err != nil {
			return err
		}
		b := c.m.accounts[from]
		if b != nil && b.into == sub {
			return nil
		}
		if b == nil || from == sub || b.status == StatusCombined || b.status == StatusDeleted || a.status == StatusDeclined {
			return errModel
		}
		for _, id := range c.m.at(from) {
			c.m.ways[id].at = sub
		}
		a.filled[from] = map[string]bool{}
		a.shared[from] = b.effective()
		for key, v := range b.fields {
			if _, has := a.fields[key]; !has {
				a.fields[key] = v
				a.filled[from][key] = true
			}
		}
		b.was, b.status, b.into = b.status, StatusCombined, sub
		return nil
	}
}

func (c *machine) separate(t *rapid.T, sub string) (Command, func() error) {
	from := testSub(rapid.IntRange(1, 5).Draw(t, "from"))
	return UnmergeAccount{Sub: from}, func() error {
		a, err := c.m.open(sub)
		if err != nil {
			return err
		}
		b := c.m.accounts[from]
		if b == nil || b.into != sub {
			return errModel
		}
		// Whatever stems from b, or from what had been merged into b, goes.
		goes := map[string]bool{}
		stems := func(origin string) bool {
			for origin != from {
				o := c.m.accounts[origin]
				if o == nil || o.into == "" {
					return false
				}
				origin = o.into
			}
			return true
		}
		var stay, go_ int
		for _, id := range c.m.at(sub) {
			w := c.m.ways[id]
			goes[id] = w.origin != sub && stems(w.origin)
			if w.email != "" || w.name != "" {
				if goes[id] {
					go_++
				} else {
					stay++
				}
			}
		}
		if stay == 0 || go_ == 0 {
			return errModel
		}
		for x, gone := range goes {
			for y, other := range goes {
				v, w := c.m.ways[x], c.m.ways[y]
				if gone && !other && (v.email != "" && strings.EqualFold(v.email, w.email) || v.name != "" && v.name == w.name ||
					v.user != "" && v.provider == w.provider && v.user == w.user) {
					return errModel
				}
			}
		}
		for id, gone := range goes {
			if gone {
				c.m.ways[id].at = from
			}
		}
		for key := range a.filled[from] {
			delete(a.fields, key)
		}
		delete(a.filled, from)
		delete(a.shared, from)
		b.status, b.into = b.was, ""
		return nil
	}
}

// TestMachine drives random commands over a few accounts that want the same
// identifiers, and holds each outcome against the model.
func TestMachine(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		var c machine
		c.init(rt, newWorld())
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			c.step(rt)
		}
	})
}
