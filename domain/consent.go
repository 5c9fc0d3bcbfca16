package domain

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"accountledger/eventstore"
)

// ConsentVersion is one text that people are asked to consent to. Once it is
// published it never changes: it is what they agreed to.
type ConsentVersion struct {
	Version      int               `json:"version"`       // 1, 2, 3 ...
	Text         map[string]string `json:"text,omitzero"` // by language tag
	URL          string            `json:"url,omitzero"`
	RequiredFrom time.Time         `json:"requiredFrom,omitzero"` // from when a decision on it is asked for; zero: at once
}

// Consent is something people may consent to, with every version of its text.
type Consent struct {
	ConsentID  string              `json:"consentId"`
	Name       string              `json:"name"`
	Purpose    string              `json:"purpose,omitzero"`
	LegalBasis string              `json:"legalBasis,omitzero"`
	Versions   []ConsentVersion    `json:"versions"`
	Revision   eventstore.Revision `json:"revision"` // of the configuration, when it last changed
}

// Newest is the version published last.
func (c Consent) Newest() int { return len(c.Versions) }

// Due reports whether the account, whose latest decision on c is given, is to
// be asked again: there is a newer version, and it is required by now.
func (c Consent) Due(decided ConsentDecision, now time.Time) bool {
	return slices.ContainsFunc(c.Versions, func(v ConsentVersion) bool {
		return v.Version > decided.Version && !v.RequiredFrom.After(now)
	})
}

// ConsentDefinitionSet defines a consent, or changes it.
type ConsentDefinitionSet struct {
	ConsentID  string           `json:"consentId" pii:"clear"`
	Name       string           `json:"name" pii:"clear"`
	Purpose    string           `json:"purpose,omitzero" pii:"clear"`
	LegalBasis string           `json:"legalBasis,omitzero" pii:"clear"`
	Published  []ConsentVersion `json:"published,omitzero" pii:"clear"` // with this event; earlier ones stay
	Created    bool             `json:"created,omitzero" pii:"clear"`   // there was none of this id
	Fields     []string         `json:"fields" pii:"clear"`             // names of the members that changed
}

func (ConsentDefinitionSet) eventType() string { return "consent-definition.set.v1" }

func (e ConsentDefinitionSet) evolve(c *Config, x Entry) {
	versions := slices.Concat(c.Consents[e.ConsentID].Versions, e.Published)
	c.Consents[e.ConsentID] = Consent{e.ConsentID, e.Name, e.Purpose, e.LegalBasis, versions, x.Revision}
}

func (e ConsentDefinitionSet) public(Entry) []publicEvent {
	return objectSet("CONSENT_DEFINITION", e.Created, e.ConsentID, e.Fields)
}

func (ConsentDefinitionSet) catalogue() []PublicType {
	return objectSetTypes("CONSENT_DEFINITION", "a consent")
}

// ConsentDefinitionDeleted removes a consent nobody has decided on.
type ConsentDefinitionDeleted struct {
	ConsentID string `json:"consentId" pii:"clear"`
}

func (ConsentDefinitionDeleted) eventType() string { return "consent-definition.deleted.v1" }

func (e ConsentDefinitionDeleted) evolve(c *Config, _ Entry) { delete(c.Consents, e.ConsentID) }

func (e ConsentDefinitionDeleted) public(Entry) []publicEvent {
	return objectDeleted("CONSENT_DEFINITION", e.ConsentID)
}

func (ConsentDefinitionDeleted) catalogue() []PublicType {
	return objectDeletedTypes("CONSENT_DEFINITION", "a consent is deleted")
}

// PutConsent defines a consent, or changes it. Versions are all there are to
// be: those published, unchanged, and then new ones.
type PutConsent struct {
	ConsentID, Name, Purpose, LegalBasis string
	Versions                             []ConsentVersion
}

func (p PutConsent) revision(c *Config) eventstore.Revision { return consentRevision(c, p.ConsentID) }

func consentRevision(c *Config, id string) eventstore.Revision {
	if d, ok := c.Consents[id]; ok {
		return d.Revision
	}
	return eventstore.NoStream
}

// Limits of consents: what one publication holds is the clear part of one
// event.
const (
	maxConsents        = 200
	maxConsentVersions = 1000
)

func (p PutConsent) decide(c *Config, _ time.Time) ([]Event, error) {
	var f faults
	old, exists := c.Consents[p.ConsentID]
	if !objectID.MatchString(p.ConsentID) {
		f.add("/consentId", "a letter or digit and up to 63 letters, digits, '_', '.' or '-'")
	}
	if !exists && len(c.Consents) >= maxConsents {
		f.add("", "there are at most %d consents", maxConsents)
	}
	f.text("/name", p.Name, 255)
	f.text("/purpose", p.Purpose, 2048)
	f.text("/legalBasis", p.LegalBasis, 255)
	published := f.consentVersions(p.Versions, old.Versions)
	if err := f.err(); err != nil {
		return nil, err
	}
	e := ConsentDefinitionSet{ConsentID: p.ConsentID, Name: p.Name, Purpose: p.Purpose, LegalBasis: p.LegalBasis, Published: published, Created: !exists}
	e.Fields = changed(!exists, member{"name", old.Name != p.Name}, member{"purpose", old.Purpose != p.Purpose},
		member{"legalBasis", old.LegalBasis != p.LegalBasis}, member{"versions", len(published) > 0})
	if len(e.Fields) == 0 {
		return nil, nil
	}
	return []Event{e}, nil
}

// consentVersions checks all versions and returns those that are new.
func (f *faults) consentVersions(all, published []ConsentVersion) []ConsentVersion {
	if len(all) < max(1, len(published)) || len(all) > maxConsentVersions {
		f.add("/versions", "all published versions and new ones, 1 to %d", maxConsentVersions)
	}
	var fresh []ConsentVersion
	for i, v := range all {
		at := "/versions/" + strconv.Itoa(i)
		v.RequiredFrom = v.RequiredFrom.UTC().Truncate(time.Microsecond)
		if i < len(published) {
			if !v.same(published[i]) {
				f.add(at, "a published version never changes; append a new one")
			}
			continue
		}
		if v.Version != i+1 {
			f.add(at+"/version", "versions are numbered 1, 2, 3 and so on")
		}
		if len(v.Text) == 0 && v.URL == "" {
			f.add(at, "needs a text or a url")
		}
		f.labels(at+"/text", v.Text, 16<<10)
		f.url(at+"/url", v.URL)
		fresh = append(fresh, v)
	}
	return fresh
}

func (v ConsentVersion) same(w ConsentVersion) bool {
	return v.Version == w.Version && maps.Equal(v.Text, w.Text) && v.URL == w.URL && v.RequiredFrom.Equal(w.RequiredFrom)
}

// DeleteConsent removes a consent. It is refused once an account has decided
// on it: what was agreed to must stay known.
type DeleteConsent struct {
	ConsentID string

	inTheWay int64
}

func (d DeleteConsent) revision(c *Config) eventstore.Revision {
	return consentRevision(c, d.ConsentID)
}

func (d DeleteConsent) inspect(c *Config) func(Account) bool {
	if _, ok := c.Consents[d.ConsentID]; !ok {
		return nil
	}
	return func(a Account) bool { return a.Consent(d.ConsentID).Version > 0 }
}

func (d DeleteConsent) inspected(n int64) ConfigCommand {
	d.inTheWay = n
	return d
}

func (d DeleteConsent) decide(c *Config, _ time.Time) ([]Event, error) {
	if _, ok := c.Consents[d.ConsentID]; !ok {
		return nil, refuse(CodeConsentNotFound, "There is no such consent.")
	}
	if field, linked := c.linkedTo(d.ConsentID); linked {
		return nil, refuse(CodeInUse, "The custom field %s is linked to the consent.", field)
	}
	if d.inTheWay > 0 {
		return nil, refuse(CodeInUse, "%d accounts have decided on the consent.", d.inTheWay)
	}
	return []Event{ConsentDefinitionDeleted{d.ConsentID}}, nil
}

// ConsentStatus is what was decided.
type ConsentStatus string

// The decisions.
const (
	ConsentAccepted ConsentStatus = "accepted"
	ConsentDeclined ConsentStatus = "declined"
	ConsentRevoked  ConsentStatus = "revoked" // what was accepted before
)

// ConsentStatuses lists them.
var ConsentStatuses = []ConsentStatus{ConsentAccepted, ConsentDeclined, ConsentRevoked}

// ConsentDecision is what an account's person decided on one version of a
// consent, and how that is known.
type ConsentDecision struct {
	ConsentID string         `json:"consentId"`
	Version   int            `json:"version"`
	Status    ConsentStatus  `json:"status"`
	Time      time.Time      `json:"time"`
	Channel   string         `json:"channel,omitzero"` // where: web, phone, paper
	Client    string         `json:"client,omitzero"`  // the application
	Evidence  jsontext.Value `json:"evidence,omitzero"`

	// Where an account that was merged into this one decided later, its
	// decision stands here, and under Own the account's own.
	From string           `json:"from,omitzero"`
	Own  *ConsentDecision `json:"own,omitzero"`
}

// over reports whether d stands against o: the later decision does, and of two
// made at the same time the one that consents to less.
func (d ConsentDecision) over(o ConsentDecision) bool {
	if !d.Time.Equal(o.Time) {
		return d.Time.After(o.Time)
	}
	return d.Status != ConsentAccepted && o.Status == ConsentAccepted
}

// ConsentDecided records a decision.
type ConsentDecided struct {
	ConsentID string         `json:"consentId" pii:"clear"`
	Version   int            `json:"version" pii:"clear"`
	Status    ConsentStatus  `json:"status" pii:"clear"`
	Time      time.Time      `json:"time,omitzero" pii:"clear"` // if it was not made when it was recorded
	Channel   string         `json:"channel,omitzero" pii:"seal"`
	Client    string         `json:"client,omitzero" pii:"seal"`
	Evidence  jsontext.Value `json:"evidence,omitzero" pii:"seal"`
}

func (ConsentDecided) eventType() string { return "account.consent-decided.v1" }

// Decision is what x, of a ConsentDecided, says was decided.
func (e ConsentDecided) Decision(x Entry) ConsentDecision {
	at := e.Time
	if at.IsZero() {
		at = x.OccurredTime()
	}
	return ConsentDecision{ConsentID: e.ConsentID, Version: e.Version, Status: e.Status, Time: at, Channel: e.Channel, Client: e.Client, Evidence: e.Evidence}
}

func (e ConsentDecided) evolve(a Account, x Entry) Account {
	i, known := findConsent(a.Consents, e.ConsentID)
	a.Consents = slices.Clone(a.Consents)
	if known {
		a.Consents[i] = e.Decision(x)
	} else {
		a.Consents = slices.Insert(a.Consents, i, e.Decision(x))
	}
	a.CombinedFrom = decidedSince(a.CombinedFrom, e.ConsentID)
	return a
}

func (e ConsentDecided) public(x Entry) []publicEvent {
	return []publicEvent{{"CONSENT_" + strings.ToUpper(string(e.Status)), consentDecided{x.Sub(), e.ConsentID, e.Version, e.Decision(x).Time}}}
}

func (ConsentDecided) catalogue() []PublicType {
	return []PublicType{
		{Name: "CONSENT_ACCEPTED", When: "a version of a consent is accepted", Data: consentDecided{}},
		{Name: "CONSENT_DECLINED", When: "a version of a consent is declined", Data: consentDecided{}},
		{Name: "CONSENT_REVOKED", When: "an accepted consent is revoked", Data: consentDecided{}},
	}
}

type consentDecided struct {
	Sub       string    `json:"sub"`
	ConsentID string    `json:"consentId"`
	Version   int       `json:"version"`
	Time      time.Time `json:"time"`
}

// decidedSince returns merged without what they brought along of a consent:
// the person has decided since.
func decidedSince(merged []Combined, consentID string) []Combined {
	on := func(d ConsentDecision) bool { return d.ConsentID == consentID }
	if !slices.ContainsFunc(merged, func(c Combined) bool { return slices.ContainsFunc(c.Consents, on) }) {
		return merged
	}
	merged = slices.Clone(merged)
	for i := range merged {
		merged[i].Consents = slices.DeleteFunc(slices.Clone(merged[i].Consents), on)
	}
	return merged
}

// reconsent makes each of a's decisions the one that stands among its own and
// those that the accounts merged into it brought along.
func (a Account) reconsent() Account {
	var decisions []ConsentDecision
	for _, d := range a.Consents {
		switch {
		case d.From == "":
			decisions = append(decisions, d)
		case d.Own != nil:
			decisions = append(decisions, *d.Own)
		}
	}
	for _, c := range a.CombinedFrom {
		for _, brought := range c.Consents {
			brought.From = c.Sub
			i, known := findConsent(decisions, brought.ConsentID)
			switch {
			case !known:
				decisions = slices.Insert(decisions, i, brought)
			case brought.over(decisions[i]):
				if brought.Own = decisions[i].Own; decisions[i].From == "" {
					own := decisions[i]
					brought.Own = &own
				}
				decisions[i] = brought
			}
		}
	}
	a.Consents = decisions
	return a
}

func findConsent(decisions []ConsentDecision, id string) (int, bool) {
	return slices.BinarySearchFunc(decisions, id, func(d ConsentDecision, id string) int { return strings.Compare(d.ConsentID, id) })
}

// Consent is the account's latest decision on a consent, zero if there is none.
func (a Account) Consent(id string) ConsentDecision {
	if i, ok := findConsent(a.Consents, id); ok {
		return a.Consents[i]
	}
	return ConsentDecision{}
}

// DecideConsent records what the account's person decided. The same decision
// again changes nothing.
type DecideConsent struct {
	ConsentID string
	Version   int
	Status    ConsentStatus
	Time      time.Time      // zero: now
	Channel   string         // at most 64 characters
	Client    string         // at most 255 characters
	Evidence  jsontext.Value // any JSON, at most 16 KiB
}

func (DecideConsent) command() {}

func (c DecideConsent) decide(s Setting, a Account) ([]Event, error) {
	consent, ok := s.Config.Consents[c.ConsentID]
	if !ok {
		return nil, refuse(CodeConsentNotFound, "There is no such consent.")
	}
	now := a.Consent(c.ConsentID)
	if now.Version == c.Version && now.Status == c.Status {
		return nil, nil
	}
	var f faults
	if c.Version < 1 || c.Version > consent.Newest() {
		f.add("/version", "there is no such version of the consent")
	} else if c.Version < now.Version && c.Status != ConsentRevoked {
		f.add("/version", "a later version was decided on already")
	}
	if !slices.Contains(ConsentStatuses, c.Status) {
		f.add("/status", "must be accepted, declined or revoked")
	}
	at := c.Time.UTC().Truncate(time.Microsecond)
	if at.After(s.Now) || !at.IsZero() && at.Before(now.Time) {
		f.add("/time", "must not be in the future, nor before the latest decision on the consent")
	}
	f.text("/channel", c.Channel, 64)
	f.text("/client", c.Client, 255)
	evidence := c.Evidence.Clone()
	if len(evidence) > maxCustomFieldValue || evidence != nil && evidence.Canonicalize() != nil {
		f.add("/evidence", "must be JSON of at most %d bytes", maxCustomFieldValue)
	}
	if evidence.Kind() == 'n' {
		evidence = nil
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	if c.Status == ConsentRevoked && (now.Status != ConsentAccepted || now.Version != c.Version) {
		return nil, refuse(CodeConsentNotAccepted, "This version of the consent is not accepted, so it cannot be revoked.")
	}
	return []Event{ConsentDecided{c.ConsentID, c.Version, c.Status, at, c.Channel, c.Client, evidence}}, nil
}

// linkedDecisions are the decisions that go with changes of fields linked to a
// consent: true accepts its newest version, anything else revokes what was
// accepted.
func linkedDecisions(s Setting, a Account, changes map[string]jsontext.Value) []Event {
	var events []Event
	for _, key := range slices.Sorted(maps.Keys(changes)) {
		consent, linked := s.Config.Consents[s.Config.Fields[key].LinkedConsent]
		if !linked {
			continue
		}
		now := a.Consent(consent.ConsentID)
		e := ConsentDecided{ConsentID: consent.ConsentID, Version: consent.Newest(), Status: ConsentAccepted, Channel: string(fieldClaim(key))}
		if changes[key].Kind() != 't' {
			e.Version, e.Status = now.Version, ConsentRevoked
		}
		switch {
		case e.Status == ConsentRevoked && now.Status != ConsentAccepted:
		case e.Status == now.Status && e.Version == now.Version:
		default:
			events = append(events, e)
		}
	}
	return events
}
