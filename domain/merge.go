package domain

import (
	"bytes"
	"maps"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/eventstore"
)

// Combined is an account that was merged into the one that lists it, with what
// un-merging needs.
type Combined struct {
	Sub          string    `json:"sub" doc:"The account that was merged in."`
	Via          string    `json:"via,omitzero" doc:"The merged account through which this one came."`
	Status       Status    `json:"userStatus" doc:"Its status before the merge."`
	CreatedTime  time.Time `json:"createdTime" doc:"When it was created."`
	CombinedTime time.Time `json:"combinedTime" doc:"When it was merged in."`
	FilledFields []string  `json:"filledFields" doc:"Custom fields whose values came from it and have not changed since."`

	Groups   []Membership      `json:"groups,omitzero" doc:"Memberships that came from it and have not been set since."`
	Consents []ConsentDecision `json:"consents,omitzero" doc:"Consent decisions that came from it, if none has been made since."`

	// Its unique field values. They resolve to the surviving account, even if that
	// account has other values, until un-merging gives them back.
	CustomFields map[string]jsontext.Value `json:"customFields,omitzero" doc:"Its values of custom fields that are unique across accounts."`
	FieldClaims  map[string]Kind           `json:"fieldClaims,omitzero" doc:"The kind of identifier of each of these custom fields, by field key."`

	key eventstore.KeyID // encrypts its personal data
}

// AccountMerged moves another account's identities to this one and fills in its
// empty custom fields. The event is sealed under the other account's key, so that
// erasing that account erases its data here, too.
type AccountMerged struct {
	From         string                    `json:"from" pii:"clear"`
	Via          string                    `json:"via,omitzero" pii:"clear"`    // the account into which From had been merged before
	Status       Status                    `json:"userStatus" pii:"clear"`      // of From, before the merge
	CreatedTime  time.Time                 `json:"createdTime" pii:"clear"`     // of From
	IdentityIDs  []string                  `json:"identityIds" pii:"clear"`     // of Identities
	Identities   []Identity                `json:"identities" pii:"seal"`       // of From, before the merge
	CustomFields map[string]jsontext.Value `json:"customFields" pii:"seal"`     // all of From
	Filled       []string                  `json:"filledFields" pii:"clear"`    // keys of CustomFields that this account took over
	Conflicts    []string                  `json:"conflicts" pii:"clear"`       // keys in which this account had another value, and kept it
	Groups       []Membership              `json:"groups,omitzero" pii:"clear"` // memberships of From

	FieldClaims map[string]Kind `json:"fieldClaims,omitzero" pii:"clear"` // the unique ones of CustomFields

	Consents []ConsentDecision `json:"consents,omitzero" pii:"seal"` // decisions of From
}

func (AccountMerged) eventType() string { return "account.merged.v1" }

func (e AccountMerged) evolve(a Account, x Entry) Account {
	a.Identities = slices.Clone(a.Identities)
	for _, i := range e.Identities {
		if i.From == "" {
			i.From = e.From
		}
		a.Identities = append(a.Identities, i)
	}
	a.Identities = ranked(a.Identities)
	c := Combined{
		Sub: e.From, Via: e.Via, Status: e.Status, CreatedTime: e.CreatedTime, CombinedTime: x.OccurredTime(),
		FilledFields: e.Filled, Groups: e.Groups, Consents: e.Consents, key: x.keyID,
	}
	for key, kind := range e.FieldClaims {
		if value, left := e.CustomFields[key]; left {
			c.CustomFields, c.FieldClaims = with(c.CustomFields, key, value), with(c.FieldClaims, key, kind)
		}
	}
	a.CombinedFrom = append(slices.Clip(a.CombinedFrom), c)
	a.CustomFields, a.FieldClaims = maps.Clone(a.CustomFields), maps.Clone(a.FieldClaims)
	for _, key := range e.Filled {
		if value, ok := e.CustomFields[key]; ok {
			a.CustomFields[key] = value
		}
		if kind, ok := c.FieldClaims[key]; ok {
			a.FieldClaims = with(a.FieldClaims, key, kind)
		}
	}
	a.UserIDs = userIDs(a)
	return a.regroup().reconsent()
}

func (e AccountMerged) public(x Entry) []publicEvent {
	return []publicEvent{{"USER_COMBINED", combinedChanged{x.Sub(), e.From, e.IdentityIDs, prefixed("customFields.", e.Conflicts)}}}
}

func (AccountMerged) catalogue() []PublicType {
	return []PublicType{{Name: "USER_COMBINED", When: "another account is merged into the account", Data: combinedChanged{},
		Aliases: []Alias{{"COMBINED", "", nil}}}}
}

type combinedChanged struct {
	Sub         string   `json:"sub" doc:"The surviving account."`
	CombinedSub string   `json:"combinedSub" doc:"The account that was merged into it, or separated from it."`
	IdentityIDs []string `json:"identityIds" doc:"The identities of that account."`
	Conflicts   []string `json:"conflicts,omitzero" doc:"Members that differed and in which the surviving account kept its value."`
}

// AccountCombined ends an account that was merged into another one. That account
// has its identities now, and its identifiers resolve to it.
type AccountCombined struct {
	Into string `json:"into" pii:"clear"`
	From Status `json:"from" pii:"clear"` // the status before
}

func (AccountCombined) eventType() string { return "account.combined.v1" }

func (e AccountCombined) evolve(a Account, _ Entry) Account {
	a.Status, a.StatusReason, a.CombinedInto = StatusCombined, "", e.Into
	a.Identities, a.UserIDs = []Identity{}, []UserID{}
	return a
}

func (e AccountCombined) public(x Entry) []publicEvent {
	return []publicEvent{{"USER_STATUS_CHANGED", statusChanged{x.Sub(), e.From, StatusCombined, x.Meta.ReasonCode}}}
}

// AccountSeparated undoes a merge in the surviving account.
type AccountSeparated struct {
	From        string   `json:"from" pii:"clear"`        // the account that is restored
	IdentityIDs []string `json:"identityIds" pii:"clear"` // that go with it
	Unset       []string `json:"unset" pii:"clear"`       // custom fields it had filled and that have not changed since
}

func (AccountSeparated) eventType() string { return "account.separated.v1" }

func (e AccountSeparated) evolve(a Account, _ Entry) Account {
	a.Identities = ranked(slices.DeleteFunc(slices.Clone(a.Identities), func(i Identity) bool { return slices.Contains(e.IdentityIDs, i.IdentityID) }))
	a.CombinedFrom = slices.DeleteFunc(slices.Clone(a.CombinedFrom), func(c Combined) bool { return c.Sub == e.From || c.Via == e.From })
	if len(a.CombinedFrom) == 0 {
		a.CombinedFrom = nil // as before the first merge
	}
	a.CustomFields, a.FieldClaims = maps.Clone(a.CustomFields), maps.Clone(a.FieldClaims)
	for _, key := range e.Unset {
		delete(a.CustomFields, key)
		delete(a.FieldClaims, key)
	}
	if len(a.FieldClaims) == 0 {
		a.FieldClaims = nil
	}
	a.UserIDs = userIDs(a)
	return a.regroup().reconsent()
}

func (e AccountSeparated) public(x Entry) []publicEvent {
	return []publicEvent{{"USER_SEPARATED", combinedChanged{x.Sub(), e.From, e.IdentityIDs, nil}}}
}

func (AccountSeparated) catalogue() []PublicType {
	return []PublicType{{Name: "USER_SEPARATED", When: "a merge is undone", Data: combinedChanged{}}}
}

// AccountRestored undoes a merge in the merged account. Its identities are as they
// were last in the surviving account.
type AccountRestored struct {
	Survivor    string     `json:"survivor" pii:"clear"` // the account it had been merged into
	To          Status     `json:"to" pii:"clear"`
	IdentityIDs []string   `json:"identityIds" pii:"clear"`
	Identities  []Identity `json:"identities" pii:"seal"`
}

// Joined returns the other stream in whose order an event must be delivered, too.
// Merging two accounts and undoing it affects both: subscribers must receive such
// an event after all earlier events of either stream and before all later ones. For
// other events it is "".
func Joined(rec eventstore.Recorded) (stream string) {
	switch CurrentType(rec.Type) {
	case AccountMerged{}.eventType(), AccountCombined{}.eventType(), AccountSeparated{}.eventType(), AccountRestored{}.eventType():
	default:
		return ""
	}
	event, _, err := DecodeEvent(rec.Type, rec.Clear, nil)
	if err != nil {
		return "" // no subscriber receives it before it can be decoded
	}
	switch e := event.(type) {
	case AccountMerged:
		return AccountStream(e.From)
	case AccountCombined:
		return AccountStream(e.Into)
	case AccountSeparated:
		return AccountStream(e.From)
	case AccountRestored:
		return AccountStream(e.Survivor)
	}
	return ""
}

func (AccountRestored) eventType() string { return "account.restored.v1" }

func (e AccountRestored) evolve(a Account, _ Entry) Account {
	a.Status, a.CombinedInto = e.To, ""
	a.Identities = ranked(slices.Clone(e.Identities))
	a.UserIDs = userIDs(a)
	return a
}

func (e AccountRestored) public(x Entry) []publicEvent {
	return []publicEvent{{"USER_STATUS_CHANGED", statusChanged{x.Sub(), StatusCombined, e.To, x.Meta.ReasonCode}}}
}

// IdentitiesReturned follows AccountRestored for each account that had been merged
// into the restored one before. It is sealed under that account's key.
type IdentitiesReturned struct {
	From        string     `json:"from" pii:"clear"`
	IdentityIDs []string   `json:"identityIds" pii:"clear"`
	Identities  []Identity `json:"identities" pii:"seal"`
}

func (IdentitiesReturned) eventType() string { return "account.identities-returned.v1" }

func (e IdentitiesReturned) evolve(a Account, _ Entry) Account {
	a.Identities = ranked(slices.Concat(a.Identities, e.Identities))
	a.UserIDs = userIDs(a)
	return a
}

func (IdentitiesReturned) public(Entry) []publicEvent { return internal } // USER_SEPARATED has them

// ranked marks all identities of provider self except the first as secondary. It
// changes the slice in place.
func ranked(identities []Identity) []Identity {
	self := false
	for i := range identities {
		own := identities[i].Provider == ProviderSelf
		identities[i].Secondary = own && self
		self = self || own
	}
	return identities
}

// changedSince returns merged without fields among their filled ones, because their
// values no longer come from the merge.
func changedSince(merged []Combined, fields []string) []Combined {
	changed := func(key string) bool { return slices.Contains(fields, key) }
	if !slices.ContainsFunc(merged, func(c Combined) bool { return slices.ContainsFunc(c.FilledFields, changed) }) {
		return merged
	}
	merged = slices.Clone(merged)
	for i := range merged {
		merged[i].FilledFields = slices.DeleteFunc(slices.Clone(merged[i].FilledFields), changed)
	}
	return merged
}

// combined returns the record of an account that was merged into a.
func (a Account) combined(sub string) (Combined, bool) {
	i := slices.IndexFunc(a.CombinedFrom, func(c Combined) bool { return c.Sub == sub })
	if i < 0 {
		return Combined{}, false
	}
	return a.CombinedFrom[i], true
}

// subs returns a's own sub, followed by those of all accounts merged into it.
func (a Account) subs() []string {
	all := []string{a.Sub}
	for _, c := range a.CombinedFrom {
		all = append(all, c.Sub)
	}
	return all
}

// owner returns the account whose personal data e holds and under whose key it is
// sealed. That may be an account that was merged into a.
func owner(a Account, e Event) string {
	switch e := e.(type) {
	case AccountMerged:
		return e.From
	case IdentitiesReturned:
		return e.From
	case ProfileUpdated:
		if i, ok := a.identity(e.IdentityID); ok && i.From != "" {
			return i.From
		}
	}
	return a.Sub
}

// MergeAccount merges the account From into the account of the command.
type MergeAccount struct{ From string }

func (MergeAccount) command() {}

func (MergeAccount) proven() {}

func (MergeAccount) decide(Setting, Account) ([]Event, error) {
	panic("domain: merging is decided jointly")
}

func (c MergeAccount) others(Account) []string { return []string{c.From} }

func (c MergeAccount) decideJoint(s Setting, a Account, others []Account) ([]Event, [][]Event, error) {
	b := others[0]
	switch {
	case !b.Exists():
		return nil, nil, refuse(CodeAccountNotFound, "The account to merge does not exist.")
	case b.CombinedInto == a.Sub:
		return nil, [][]Event{nil}, nil
	case a.Sub == b.Sub:
		return nil, nil, refuse(CodeMergeRefused, "An account cannot be merged into itself.")
	case b.Erased():
		return nil, nil, refuse(CodeMergeRefused, "The account to merge was erased.")
	case !allowed(b.Status, StatusCombined, CauseMerge):
		return nil, nil, refuse(CodeMergeRefused, "An account with status %s cannot be merged into another one.", b.Status)
	case a.Status != StatusVerified && a.Status != StatusPending:
		return nil, nil, refuse(CodeMergeRefused, "No account can be merged into one with status %s.", a.Status)
	case len(a.Identities)+len(b.Identities) > maxIdentities:
		return nil, nil, refuse(CodeMergeRefused, "The account would have more than %d identities.", maxIdentities)
	}
	if _, admin := b.membership(GroupAdmins); admin && !s.Admin {
		return nil, nil, refuse(CodeAdminRequired, "Only an administrator may merge an administrator's account into another one.")
	}
	merged := AccountMerged{From: b.Sub, Status: b.Status, CreatedTime: b.CreatedTime, CustomFields: b.CustomFields, FieldClaims: b.FieldClaims}
	for _, m := range b.Groups {
		m.OwnRoles, m.Merged = nil, false
		merged.Groups = append(merged.Groups, m)
	}
	for _, d := range b.Consents {
		d.From, d.Own = "", nil
		merged.Consents = append(merged.Consents, d)
	}
	for _, key := range slices.Sorted(maps.Keys(b.CustomFields)) {
		kept, has := a.CustomFields[key]
		switch {
		case !has:
			merged.Filled = append(merged.Filled, key)
		case !bytes.Equal(kept, b.CustomFields[key]):
			merged.Conflicts = append(merged.Conflicts, key)
		}
	}
	if len(a.Groups)+len(b.Groups) > maxGroups {
		return nil, nil, refuse(CodeMergeRefused, "The two accounts have more than %d group memberships together.", maxGroups)
	}
	if len(a.CustomFields)+len(merged.Filled) > maxCustomFields {
		return nil, nil, refuse(CodeMergeRefused, "The account would have more than %d custom fields.", maxCustomFields)
	}
	merged.Identities, merged.IdentityIDs = b.identitiesOf("")
	events := []Event{merged}
	for _, n := range b.CombinedFrom {
		nested := AccountMerged{From: n.Sub, Via: b.Sub, Status: n.Status, CreatedTime: n.CreatedTime, CustomFields: n.CustomFields, FieldClaims: n.FieldClaims}
		nested.Identities, nested.IdentityIDs = b.identitiesOf(n.Sub)
		events = append(events, nested)
	}
	ended := cancelPlanned(b, reasonCombined, func(Schedule) bool { return true })
	return events, [][]Event{append(ended, AccountCombined{Into: a.Sub, From: b.Status})}, nil
}

// identitiesOf returns the identities that came to a from another account, or with
// "" its own.
func (a Account) identitiesOf(from string) (all []Identity, ids []string) {
	for _, i := range a.Identities {
		if i.From == from {
			all, ids = append(all, i), append(ids, i.IdentityID)
		}
	}
	return all, ids
}

// UnmergeAccount restores the account Sub, which was merged into the account of the
// command.
type UnmergeAccount struct{ Sub string }

func (UnmergeAccount) command() {}

func (UnmergeAccount) proven() {}

func (UnmergeAccount) decide(Setting, Account) ([]Event, error) {
	panic("domain: un-merging is decided jointly")
}

func (c UnmergeAccount) others(Account) []string { return []string{c.Sub} }

func (c UnmergeAccount) decideJoint(_ Setting, a Account, others []Account) ([]Event, [][]Event, error) {
	b := others[0]
	was, ok := a.combined(b.Sub)
	switch {
	case !ok:
		return nil, nil, refuse(CodeMergeRefused, "No account with this sub was merged into this account.")
	case was.Via != "":
		return nil, nil, refuse(CodeMergeRefused, "The account came with another merged account; un-merge that one first.")
	}
	separated := AccountSeparated{From: b.Sub, Unset: was.FilledFields}
	restored := AccountRestored{Survivor: a.Sub, To: was.Status}
	restored.Identities, restored.IdentityIDs = a.identitiesOf(b.Sub)
	for i := range restored.Identities {
		restored.Identities[i].From = ""
	}
	separated.IdentityIDs = slices.Clone(restored.IdentityIDs)
	events := []Event{restored}
	for _, n := range a.CombinedFrom {
		if n.Via != b.Sub {
			continue
		}
		returned := IdentitiesReturned{From: n.Sub}
		returned.Identities, returned.IdentityIDs = a.identitiesOf(n.Sub)
		separated.IdentityIDs = append(separated.IdentityIDs, returned.IdentityIDs...)
		if len(returned.IdentityIDs) > 0 {
			events = append(events, returned)
		}
	}
	left, back := separated.evolve(a, Entry{}), b
	for _, e := range events {
		back = e.(accountEvent).evolve(back, Entry{})
	}
	both := map[identifier]bool{}
	for _, h := range holdings(back) {
		both[h.identifier] = true
	}
	for _, h := range holdings(left) {
		if both[h.identifier] {
			return nil, nil, refuse(CodeIdentifierTaken, "Both accounts would have the same %s; change it in one of them first.", h.kind)
		}
	}
	if !reachable(left.Identities) || !reachable(back.Identities) {
		return nil, nil, refuse(CodeIdentifierRequired, "One of the accounts would have no e-mail address, mobile number or username.")
	}
	return []Event{separated}, [][]Event{events}, nil
}
