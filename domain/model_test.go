package domain

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// model is a second, independent implementation of accounts: one map for the whole
// ledger, without events, folds and claims. It makes each change to a copy, and
// discards the copy if accounts conflict. Its rules come from the specification
// alone.
type model struct {
	now      time.Time
	accounts map[string]*modelAccount
	ways     map[string]modelWay // by identityId
}

type modelAccount struct {
	status Status
	erased bool
	into   string // if COMBINED: the surviving account
	was    Status // before the merge
	end    string // schedule of its deletion
	before Status // before the deletion was scheduled

	fields    map[string]string
	filled    map[string]map[string]bool     // fields filled by a merge, by the merged account
	groups    map[string][]string            // its own roles, by group
	shared    map[string]map[string][]string // those of merged accounts, by account
	decided   map[string]modelDecision       // its own decisions, by consent
	merged    []modelMerged                  // those of merged accounts, in the order of merging
	schedules map[string]modelSchedule       // by id, those of setups by setup
}

type modelDecision struct {
	version int
	status  ConsentStatus
	time    time.Time
}

type modelMerged struct {
	from    string
	decided map[string]modelDecision
}

type modelSchedule struct {
	kind   ScheduleKind
	due    time.Time
	state  ScheduleState
	period time.Duration
	auto   bool
	late   bool
	why    string
}

// modelWay is an identity, with its original and its present account.
type modelWay struct {
	origin, at        string
	provider, user    string
	email, name, nick string
	mobile            string
}

func newModel() *model {
	return &model{accounts: map[string]*modelAccount{}, ways: map[string]modelWay{}}
}

func newModelAccount(status Status) *modelAccount {
	return &modelAccount{status: status, fields: map[string]string{}, filled: map[string]map[string]bool{},
		groups: map[string][]string{}, shared: map[string]map[string][]string{},
		decided: map[string]modelDecision{}, schedules: map[string]modelSchedule{}}
}

func (m *model) clone() *model {
	c := &model{m.now, map[string]*modelAccount{}, maps.Clone(m.ways)}
	for sub, a := range m.accounts {
		b := *a
		b.fields, b.groups, b.decided, b.schedules = maps.Clone(a.fields), maps.Clone(a.groups), maps.Clone(a.decided), maps.Clone(a.schedules)
		b.filled, b.shared, b.merged = map[string]map[string]bool{}, map[string]map[string][]string{}, slices.Clone(a.merged)
		for from, f := range a.filled {
			b.filled[from] = maps.Clone(f)
		}
		for from, s := range a.shared {
			b.shared[from] = maps.Clone(s)
		}
		for i := range b.merged {
			b.merged[i].decided = maps.Clone(b.merged[i].decided)
		}
		c.accounts[sub] = &b
	}
	return c
}

var errModel = errors.New("refused")

// change is a command on the model.
type change func(m *model) error

// apply makes a change or refuses it. It reports whether the model has changed.
func (m *model) apply(c change) (changed bool, err error) {
	next := m.clone()
	if err := c(next); err != nil {
		return false, err
	}
	if !next.sound() {
		return false, errModel
	}
	changed = !reflect.DeepEqual(m, next)
	*m = *next
	return changed, nil
}

// open returns the account if it accepts ordinary commands.
func (m *model) open(sub string) (*modelAccount, error) {
	a, err := m.there(sub)
	if err != nil || a.status == StatusDeleted {
		return nil, errModel
	}
	return a, nil
}

// there is like open, but also accepts an account whose deletion is scheduled.
func (m *model) there(sub string) (*modelAccount, error) {
	a := m.accounts[sub]
	if a == nil || a.erased || a.status == StatusCombined {
		return nil, errModel
	}
	return a, nil
}

// survivor returns the account into which sub was merged, directly or indirectly.
func (m *model) survivor(sub string) string {
	for m.accounts[sub].into != "" {
		sub = m.accounts[sub].into
	}
	return sub
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

// unique is the key of a unique field.
const unique = "customFields.badge"

// identifiers returns the account to which each identifier leads, also those as
// which a username is read. sound is false if one leads to two accounts.
func (m *model) identifiers() (leads map[string]string, sound bool) {
	leads, sound = map[string]string{}, true
	lead := func(kind, value, to string) {
		if value == "" || value == ProviderSelf+"\x00" {
			return
		}
		id := kind + "\x00" + strings.ToLower(value)
		if other, ok := leads[id]; ok && other != to {
			sound = false
		}
		leads[id] = to
	}
	username := func(value, to string) {
		lead("username", value, to)
		switch {
		case strings.Contains(value, "@"):
			lead("email", value, to)
		case strings.HasPrefix(value, "+"):
			lead("mobile_number", strings.ReplaceAll(value, " ", ""), to)
		}
	}
	for _, w := range m.ways {
		lead("email", w.email, w.at)
		lead("mobile_number", w.mobile, w.at)
		username(w.name, w.at)
		lead("providerUserId", w.provider+"\x00"+w.user, w.at)
	}
	for sub, a := range m.accounts { // the identifiers of a combined account lead to the surviving one
		username(strings.Trim(a.fields["login"], `"`), m.survivor(sub))
		lead(unique, a.fields["badge"], m.survivor(sub))
	}
	return leads, sound
}

// sound reports whether each identifier leads to one account, and each account has
// an identity with an e-mail address, a mobile number or a username.
func (m *model) sound() bool {
	reachable := map[string]bool{}
	for _, w := range m.ways {
		reachable[w.at] = reachable[w.at] || w.email != "" || w.name != "" || w.mobile != ""
	}
	for sub, a := range m.accounts {
		if !reachable[sub] && !a.erased && a.status != StatusCombined {
			return false
		}
	}
	_, sound := m.identifiers()
	return sound
}

// memberships returns a's own memberships and those of merged accounts.
func (a *modelAccount) memberships() map[string][]string {
	all := maps.Clone(a.groups)
	for _, merged := range a.shared {
		for group, roles := range merged {
			both := slices.Concat(all[group], roles)
			slices.Sort(both)
			all[group] = slices.Compact(both)
		}
	}
	return all
}

// consents returns the effective decisions: the latest on each consent, and of two
// at the same time the one that accepts less.
func (a *modelAccount) consents() map[string]modelDecision {
	all := maps.Clone(a.decided)
	for _, merged := range a.merged {
		for id, d := range merged.decided {
			o, other := all[id]
			if !other || d.time.After(o.time) || d.time.Equal(o.time) && o.status == ConsentAccepted {
				all[id] = d
			}
		}
	}
	return all
}

// cancel cancels the planned schedules that which selects.
func (a *modelAccount) cancel(why string, which func(id string, s modelSchedule) bool) {
	for id, s := range a.schedules {
		if s.state == SchedulePending && which(id, s) {
			s.state, s.why = ScheduleAborted, why
			a.schedules[id] = s
		}
	}
}

// become changes the status of a.
func (a *modelAccount) become(status Status) {
	if a.end != "" {
		a.cancel("deletion-cancelled", func(id string, _ modelSchedule) bool { return id == a.end })
		a.end, a.before = "", ""
	}
	a.status = status
	if status == StatusVerified {
		a.cancel("verified", func(_ string, s modelSchedule) bool { return s.auto })
	}
}

// erase ends sub and all accounts merged into it.
func (m *model) erase(sub string) {
	for id, w := range m.ways {
		if w.at == sub {
			delete(m.ways, id)
		}
	}
	var gone []string
	for other := range m.accounts {
		if m.survivor(other) == sub {
			gone = append(gone, other)
		}
	}
	for _, other := range gone {
		m.accounts[other] = newModelAccount(StatusDeleted)
		m.accounts[other].erased = true
	}
}

// execute executes a schedule if it is due.
func (m *model) execute(sub, id string) {
	a := m.accounts[sub]
	s, ok := a.schedules[id]
	if !ok || s.state != SchedulePending || s.due.After(m.now) {
		return
	}
	s.state, s.why, s.late = ScheduleDone, "", m.now.Sub(s.due) > time.Second
	switch {
	case a.status == StatusDeleted && id != a.end:
		s.state, s.why = ScheduleNeedless, "account-deleted"
	case s.kind == ScheduleDeletion:
		m.erase(sub)
		return
	case s.kind == ScheduleStatusChange && a.status == StatusDeclined:
		s.state, s.why = ScheduleNeedless, "unchanged"
	case s.kind == ScheduleStatusChange:
		a.status = StatusDeclined
	}
	if s.period > 0 {
		for s.state = SchedulePending; !s.due.After(m.now); {
			s.due = s.due.Add(s.period)
		}
	}
	a.schedules[id] = s
}
