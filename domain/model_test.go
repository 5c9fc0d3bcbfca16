package domain

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// model is what accounts are, said a second time and otherwise: no events, no
// folding, no claims, but one map for the whole ledger. A change is made to a
// copy, which is thrown away if accounts then get in each other's way. The
// model knows the rules by the words of the specification only.
type model struct {
	now      time.Time
	accounts map[string]*modelAccount
	ways     map[string]modelWay // by identityId
}

type modelAccount struct {
	status Status
	erased bool
	into   string // COMBINED
	was    Status // before it was combined
	end    string // its scheduled deletion
	before Status // that

	fields    map[string]string
	filled    map[string]map[string]bool     // by the account that was merged
	groups    map[string][]string            // its own
	shared    map[string]map[string][]string // brought along, by the account that did
	decided   map[string]modelDecision       // its own, by consent
	brought   []modelBrought                 // likewise, as they were merged
	schedules map[string]modelSchedule       // auto ones by their setup
}

type modelDecision struct {
	version int
	status  ConsentStatus
	time    time.Time
}

type modelBrought struct {
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

// modelWay is an identity: whose it is by origin, and whose it is now.
type modelWay struct {
	origin, at        string
	provider, user    string
	email, name, nick string
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
		b.filled, b.shared, b.brought = map[string]map[string]bool{}, map[string]map[string][]string{}, slices.Clone(a.brought)
		for from, f := range a.filled {
			b.filled[from] = maps.Clone(f)
		}
		for from, s := range a.shared {
			b.shared[from] = maps.Clone(s)
		}
		for i := range b.brought {
			b.brought[i].decided = maps.Clone(b.brought[i].decided)
		}
		c.accounts[sub] = &b
	}
	return c
}

var errModel = errors.New("refused")

// change is a command as the model understands it.
type change func(m *model) error

// ask makes a change, or refuses it. It reports whether something is other
// than before.
func (m *model) ask(c change) (changed bool, err error) {
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

// open refuses what an account that is not there or has ended refuses.
func (m *model) open(sub string) (*modelAccount, error) {
	a, err := m.there(sub)
	if err != nil || a.status == StatusDeleted {
		return nil, errModel
	}
	return a, nil
}

// there is open, but to an account that waits for its deletion.
func (m *model) there(sub string) (*modelAccount, error) {
	a := m.accounts[sub]
	if a == nil || a.erased || a.status == StatusCombined {
		return nil, errModel
	}
	return a, nil
}

// survivor is the account that has what sub had.
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

// unique is a field of which no two accounts may have the same value.
const unique = "customFields.badge"

// identifiers says to which account each identifier leads; sound is false if
// one leads to two.
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
	for _, w := range m.ways {
		lead("email", w.email, w.at)
		lead("username", w.name, w.at)
		lead("providerUserId", w.provider+"\x00"+w.user, w.at)
	}
	for sub, a := range m.accounts { // what a combined account had leads to the survivor
		lead("username", strings.Trim(a.fields["login"], `"`), m.survivor(sub))
		lead(unique, a.fields["badge"], m.survivor(sub))
	}
	return leads, sound
}

// sound reports whether each identifier leads to one account, and each account
// has an e-mail or a username in an identity.
func (m *model) sound() bool {
	reachable := map[string]bool{}
	for _, w := range m.ways {
		reachable[w.at] = reachable[w.at] || w.email != "" || w.name != ""
	}
	for sub, a := range m.accounts {
		if !reachable[sub] && !a.erased && a.status != StatusCombined {
			return false
		}
	}
	_, sound := m.identifiers()
	return sound
}

// memberships are those of a, its own and what was brought along.
func (a *modelAccount) memberships() map[string][]string {
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

// consents are the decisions that stand: of each consent the latest, and of
// two at the same time the one that accepts less.
func (a *modelAccount) consents() map[string]modelDecision {
	all := maps.Clone(a.decided)
	for _, brought := range a.brought {
		for id, d := range brought.decided {
			o, other := all[id]
			if !other || d.time.After(o.time) || d.time.Equal(o.time) && o.status == ConsentAccepted {
				all[id] = d
			}
		}
	}
	return all
}

// cancel cancels what is planned and selected.
func (a *modelAccount) cancel(why string, which func(id string, s modelSchedule) bool) {
	for id, s := range a.schedules {
		if s.state == SchedulePending && which(id, s) {
			s.state, s.why = ScheduleAborted, why
			a.schedules[id] = s
		}
	}
}

// become gives a another status.
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

// erase ends sub, and all that was combined into it.
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

// execute does what a schedule says, if it is due.
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
