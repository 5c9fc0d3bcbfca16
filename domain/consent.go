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

// ConsentVersion is one version of a consent's text. A published version never
// changes, because people have agreed to it.
type ConsentVersion struct {
	Version      int               `json:"version" doc:"The version number: 1, 2, 3 and so on."`
	Text         map[string]string `json:"text,omitzero" doc:"The text, by language tag."`
	URL          string            `json:"url,omitzero" doc:"URL with further information."`
	RequiredFrom time.Time         `json:"requiredFrom,omitzero" doc:"When a decision on this version becomes due. Default: immediately."` // zero: immediately
}

// Consent is the definition of a consent, with all versions of its text.
type Consent struct {
	ConsentID  string              `json:"consentId" doc:"The consent's id."`
	Name       string              `json:"name" doc:"Display name."`
	Purpose    string              `json:"purpose,omitzero" doc:"What the consent is for."`
	LegalBasis string              `json:"legalBasis,omitzero" doc:"The legal basis for the processing."`
	Versions   []ConsentVersion    `json:"versions" doc:"All versions of the text, oldest first. A published version never changes."`
	Revision   eventstore.Revision `json:"revision" doc:"Revision of the configuration in which the consent last changed. Also the ETag."`
}

// Newest returns the number of the latest version.
func (c Consent) Newest() int { return len(c.Versions) }

// Due reports whether a new decision is needed after the given one: there is a
// newer version, and it is required by now.
func (c Consent) Due(decided ConsentDecision, now time.Time) bool {
	return slices.ContainsFunc(c.Versions, func(v ConsentVersion) bool {
		return v.Version > decided.Version && !v.RequiredFrom.After(now)
	})
}

// ConsentDefinitionSet defines or changes a consent.
type ConsentDefinitionSet struct {
	ConsentID  string           `json:"consentId" pii:"clear"`
	Name       string           `json:"name" pii:"clear"`
	Purpose    string           `json:"purpose,omitzero" pii:"clear"`
	LegalBasis string           `json:"legalBasis,omitzero" pii:"clear"`
	Published  []ConsentVersion `json:"published,omitzero" pii:"clear"` // versions that are new with this event
	Created    bool             `json:"created,omitzero" pii:"clear"`   // the id was new
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

// ConsentDefinitionDeleted removes a consent on which no account has decided.
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

// PutConsent defines or changes a consent. Versions holds all versions: the
// published ones, unchanged, followed by new ones.
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

// Limits of consents.
const (
	maxConsents        = 200
	maxConsentVersions = 1000
)

func (p PutConsent) decide(c *Config, _ time.Time) ([]Event, error) {
	var f faults
	old, exists := c.Consents[p.ConsentID]
	if !objectID.MatchString(p.ConsentID) {
		f.add("/consentId", objectIDRule)
	}
	if !exists && len(c.Consents) >= maxConsents {
		f.add("", "at most %d consents can be defined", maxConsents)
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
		f.add("/versions", "must list all published versions and then new ones, 1 to %d in all", maxConsentVersions)
	}
	var fresh []ConsentVersion
	for i, v := range all {
		at := "/versions/" + strconv.Itoa(i)
		v.RequiredFrom = v.RequiredFrom.UTC().Truncate(time.Microsecond)
		if i < len(published) {
			if !v.same(published[i]) {
				f.add(at, "a published version cannot change; append a new one")
			}
			continue
		}
		if v.Version != i+1 {
			f.add(at+"/version", "versions must be numbered 1, 2, 3 and so on")
		}
		if len(v.Text) == 0 && v.URL == "" {
			f.add(at, "must have a text or a url")
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

// DeleteConsent removes a consent. One on which an account has decided cannot be
// removed: its text must stay known.
type DeleteConsent struct {
	ConsentID string

	conflicting int64 // accounts that have decided on it
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
	d.conflicting = n
	return d
}

func (d DeleteConsent) decide(c *Config, _ time.Time) ([]Event, error) {
	if _, ok := c.Consents[d.ConsentID]; !ok {
		return nil, refuse(CodeConsentNotFound, "There is no such consent.")
	}
	if field, linked := c.linkedTo(d.ConsentID); linked {
		return nil, refuse(CodeInUse, "The custom field %s is linked to this consent.", field)
	}
	if d.conflicting > 0 {
		return nil, refuse(CodeInUse, "%d accounts have decided on this consent.", d.conflicting)
	}
	return []Event{ConsentDefinitionDeleted{d.ConsentID}}, nil
}

// ConsentStatus is the outcome of a decision on a consent.
type ConsentStatus string

// The outcomes.
const (
	ConsentAccepted ConsentStatus = "accepted"
	ConsentDeclined ConsentStatus = "declined"
	ConsentRevoked  ConsentStatus = "revoked" // after it was accepted
)

// ConsentStatuses lists every outcome.
var ConsentStatuses = []ConsentStatus{ConsentAccepted, ConsentDeclined, ConsentRevoked}

// ConsentDecision is a person's decision on one version of a consent, with its
// evidence.
type ConsentDecision struct {
	ConsentID string         `json:"consentId" doc:"The consent's id."`
	Version   int            `json:"version" doc:"The version decided on."`
	Status    ConsentStatus  `json:"status" doc:"accepted, declined or revoked."`
	Time      time.Time      `json:"time" doc:"When the decision was made."`
	Channel   string         `json:"channel,omitzero" doc:"Where the decision was made, such as web, phone or paper."`
	Client    string         `json:"client,omitzero" doc:"The application that recorded the decision."`
	Evidence  jsontext.Value `json:"evidence,omitzero" doc:"Proof of the decision: any JSON."`

	// If an account that was merged into this one decided later, this is its
	// decision, and Own is the account's own.
	From string           `json:"from,omitzero" doc:"The merged account that made this decision."`
	Own  *ConsentDecision `json:"own,omitzero" doc:"The account's own decision, which a later decision of a merged account overrides."`
}

// over reports whether d overrides o: the later decision does, and of two made at
// the same time the one that consents to less.
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
	Time      time.Time      `json:"time,omitzero" pii:"clear"` // zero: the time of the event
	Channel   string         `json:"channel,omitzero" pii:"seal"`
	Client    string         `json:"client,omitzero" pii:"seal"`
	Evidence  jsontext.Value `json:"evidence,omitzero" pii:"seal"`
}

func (ConsentDecided) eventType() string { return "account.consent-decided.v1" }

// Decision returns the decision that e, the event of x, records.
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
	Sub       string    `json:"sub" doc:"The account."`
	ConsentID string    `json:"consentId" doc:"The consent."`
	Version   int       `json:"version" doc:"The version decided on."`
	Time      time.Time `json:"time" doc:"When the decision was made."`
}

// decidedSince returns merged without their decisions on a consent, because the
// person has decided on it since the merge.
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

// reconsent returns a with the overriding decision on each consent, among its own
// decisions and those of the accounts merged into it.
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
		for _, theirs := range c.Consents {
			theirs.From = c.Sub
			i, known := findConsent(decisions, theirs.ConsentID)
			switch {
			case !known:
				decisions = slices.Insert(decisions, i, theirs)
			case theirs.over(decisions[i]):
				if theirs.Own = decisions[i].Own; decisions[i].From == "" {
					own := decisions[i]
					theirs.Own = &own
				}
				decisions[i] = theirs
			}
		}
	}
	a.Consents = decisions
	return a
}

func findConsent(decisions []ConsentDecision, id string) (int, bool) {
	return slices.BinarySearchFunc(decisions, id, func(d ConsentDecision, id string) int { return strings.Compare(d.ConsentID, id) })
}

// Consent returns the account's latest decision on a consent, zero if there is none.
func (a Account) Consent(id string) ConsentDecision {
	if i, ok := findConsent(a.Consents, id); ok {
		return a.Consents[i]
	}
	return ConsentDecision{}
}

// DecideConsent records a person's decision on a consent. Repeating the present
// decision changes nothing.
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
		f.add("/version", "the consent has no such version")
	} else if c.Version < now.Version && c.Status != ConsentRevoked {
		f.add("/version", "there is a decision on a later version already")
	}
	if !slices.Contains(ConsentStatuses, c.Status) {
		f.add("/status", "must be accepted, declined or revoked")
	}
	at := c.Time.UTC().Truncate(time.Microsecond)
	if at.After(s.Now) || !at.IsZero() && at.Before(now.Time) {
		f.add("/time", "must not be in the future or before the latest decision on this consent")
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
		return nil, refuse(CodeConsentNotAccepted, "Only an accepted version can be revoked, and this version is not accepted.")
	}
	return []Event{ConsentDecided{c.ConsentID, c.Version, c.Status, at, c.Channel, c.Client, evidence}}, nil
}

// linkedDecisions returns the decisions that follow from changes of fields that
// are linked to a consent: true accepts its newest version, any other value
// revokes the accepted one.
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
