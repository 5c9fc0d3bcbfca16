package domain

import (
	"errors"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/text/language"
)

// ProviderSelf is the identity provider of the ledger's own installation. An
// account has at most one such identity, except after a merge.
const ProviderSelf = "self"

var providerKey = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,63}$`)

// Identity is one way to sign in to an account.
type Identity struct {
	IdentityID     string `json:"identityId" doc:"The identity's id in this ledger."`
	Provider       string `json:"provider" doc:"The identity provider: self, google, or any other lower-case key. It never changes."`
	ProviderUserID string `json:"providerUserId,omitzero" doc:"The person's user id at the provider."`
	Profile
	From        string    `json:"from,omitzero" doc:"The merged account this identity came from."`
	Secondary   bool      `json:"secondary,omitzero" doc:"Whether a merge added this identity as a second one of provider self."`
	CreatedTime time.Time `json:"createdTime" doc:"When the identity was added."`
	UpdatedTime time.Time `json:"updatedTime" doc:"When the identity was last changed."`
}

// Profile is an identity's data about a person: the claims of OpenID Connect Core
// 1.0, section 5.1, under their names. All of it is personal data.
type Profile struct {
	GivenName            string   `json:"given_name,omitzero" doc:"Given name."`
	FamilyName           string   `json:"family_name,omitzero" doc:"Family name."`
	MiddleName           string   `json:"middle_name,omitzero" doc:"Middle name."`
	Nickname             string   `json:"nickname,omitzero" doc:"Casual name."`
	Email                string   `json:"email,omitzero" doc:"E-mail address. Its domain is stored in lower-case ASCII."`
	EmailVerified        bool     `json:"email_verified" doc:"Whether the person is verified to own the e-mail address."`
	MobileNumber         string   `json:"mobile_number,omitzero" doc:"Mobile number in E.164 format."`
	MobileNumberVerified bool     `json:"mobile_number_verified" doc:"Whether the person is verified to own the mobile number."`
	Username             string   `json:"username,omitzero" doc:"Username, prepared according to RFC 8265."`
	Locale               string   `json:"locale,omitzero" doc:"Language tag (BCP 47)."`
	Zoneinfo             string   `json:"zoneinfo,omitzero" doc:"Time zone of the IANA database."`
	Birthdate            string   `json:"birthdate,omitzero" doc:"Date of birth, YYYY-MM-DD."`
	Gender               string   `json:"gender,omitzero" doc:"Gender, free text."`
	Picture              string   `json:"picture,omitzero" doc:"URL of a picture."`
	Website              string   `json:"website,omitzero" doc:"URL of a website."`
	Address              *Address `json:"address,omitzero" doc:"Postal address."`
}

// Address is the postal address of OpenID Connect Core 1.0, section 5.1.1.
type Address struct {
	Formatted     string `json:"formatted,omitzero" doc:"The full address as on a mailing label, with lines separated by newlines."`
	StreetAddress string `json:"street_address,omitzero" doc:"Street, house number and further delivery details."`
	Locality      string `json:"locality,omitzero" doc:"City or town."`
	Region        string `json:"region,omitzero" doc:"State, province or region."`
	PostalCode    string `json:"postal_code,omitzero" doc:"Postal code."`
	Country       string `json:"country,omitzero" doc:"Country."`
}

func newIdentity(id, provider, providerUserID string, p Profile, x Entry) Identity {
	return Identity{IdentityID: id, Provider: provider, ProviderUserID: providerUserID, Profile: p,
		CreatedTime: x.OccurredTime(), UpdatedTime: x.OccurredTime()}
}

// IdentityLinked adds a way to sign in to the account.
type IdentityLinked struct {
	IdentityID     string  `json:"identityId" pii:"clear"`
	Provider       string  `json:"provider" pii:"clear"`
	ProviderUserID string  `json:"providerUserId,omitzero" pii:"seal"`
	Profile        Profile `json:"profile,omitzero" pii:"seal"`
}

func (IdentityLinked) eventType() string { return "account.identity-linked.v1" }

func (e IdentityLinked) evolve(a Account, x Entry) Account {
	// The account's own identities come first, then those of each merge.
	own := slices.IndexFunc(a.Identities, func(i Identity) bool { return i.From != "" })
	if own < 0 {
		own = len(a.Identities)
	}
	a.Identities = slices.Insert(slices.Clone(a.Identities), own, newIdentity(e.IdentityID, e.Provider, e.ProviderUserID, e.Profile, x))
	a.UserIDs = userIDs(a)
	return a
}

func (e IdentityLinked) public(x Entry) []publicEvent {
	return []publicEvent{{"IDENTITY_LINKED", identityChanged{x.Sub(), e.IdentityID, e.Provider}}}
}

func (IdentityLinked) catalogue() []PublicType {
	return []PublicType{{Name: "IDENTITY_LINKED", When: "a way to sign in is added", Data: identityChanged{},
		Aliases: []Alias{{"ACCOUNT_CIDAASIDENTITY_ADDED", "of provider self", ofSelf}, {"ACCOUNT_SOCIALIDENTITY_ADDED", "of another provider", ofOthers}}}}
}

type identityChanged struct {
	Sub        string `json:"sub" doc:"The account."`
	IdentityID string `json:"identityId" doc:"The identity."`
	Provider   string `json:"provider" doc:"The identity's provider."`
}

func ofSelf(data any) bool   { return data.(identityChanged).Provider == ProviderSelf }
func ofOthers(data any) bool { return !ofSelf(data) }

// IdentityUnlinked removes a way to sign in from the account.
type IdentityUnlinked struct {
	IdentityID string `json:"identityId" pii:"clear"`
	Provider   string `json:"provider" pii:"clear"`
}

func (IdentityUnlinked) eventType() string { return "account.identity-unlinked.v1" }

func (e IdentityUnlinked) evolve(a Account, _ Entry) Account {
	a.Identities = ranked(slices.DeleteFunc(slices.Clone(a.Identities), func(i Identity) bool { return i.IdentityID == e.IdentityID }))
	a.UserIDs = userIDs(a)
	return a
}

func (e IdentityUnlinked) public(x Entry) []publicEvent {
	return []publicEvent{{"IDENTITY_UNLINKED", identityChanged{x.Sub(), e.IdentityID, e.Provider}}}
}

func (IdentityUnlinked) catalogue() []PublicType {
	return []PublicType{{Name: "IDENTITY_UNLINKED", When: "a way to sign in is removed", Data: identityChanged{},
		Aliases: []Alias{{"ACCOUNT_CIDAASIDENTITY_REMOVED", "of provider self", ofSelf}, {"ACCOUNT_SOCIALIDENTITY_REMOVED", "of another provider", ofOthers}}}}
}

// ProfileUpdated changes the profile of an identity.
type ProfileUpdated struct {
	IdentityID string         `json:"identityId" pii:"clear"`
	Fields     []string       `json:"fields" pii:"clear"`          // names of the members of Changes
	Changes    jsontext.Value `json:"changes,omitzero" pii:"seal"` // object: the new values of the changed members, null for removed ones
}

func (ProfileUpdated) eventType() string { return "account.profile-updated.v1" }

func (e ProfileUpdated) evolve(a Account, x Entry) Account {
	a.Identities = slices.Clone(a.Identities)
	for i := range a.Identities {
		if id := &a.Identities[i]; id.IdentityID == e.IdentityID {
			id.Profile = id.Profile.with(e)
			id.UpdatedTime = x.OccurredTime()
		}
	}
	a.UserIDs = userIDs(a)
	return a
}

func (e ProfileUpdated) public(x Entry) []publicEvent {
	return []publicEvent{{"USER_UPDATED", userUpdated{x.Sub(), e.IdentityID, x.OccurredTime(), e.Fields, e.Changes}}}
}

func (ProfileUpdated) catalogue() []PublicType {
	return []PublicType{{Name: "USER_UPDATED", When: "the profile, an identifier, a custom field or a verification changes", Data: userUpdated{},
		From: typesOf(ProfileUpdated{}, CustomFieldsUpdated{}),
		Aliases: []Alias{
			{"ACCOUNT_EMAIL_VERIFIED", "that verify an e-mail address", func(data any) bool { return data.(userUpdated).verified("email_verified") }},
			{"ACCOUNT_MOBILE_NO_VERIFIED", "that verify a mobile number", func(data any) bool { return data.(userUpdated).verified("mobile_number_verified") }},
			{"ACCOUNT_MODIFIED", "", nil},
		}}}
}

type userUpdated struct {
	Sub        string    `json:"sub" doc:"The account."`
	IdentityID string    `json:"identityId,omitzero" doc:"The identity that changed; absent if custom fields changed."`
	Timestamp  time.Time `json:"timestamp" doc:"When the change took effect."`
	Fields     []string  `json:"fields" doc:"The members that changed."`
	Changes    any       `json:"changes,omitzero" doc:"The new values, by member; null for removed ones. Absent once they are erased."`
}

// verified reports whether the change set a flag.
func (u userUpdated) verified(flag string) bool {
	changes, ok := u.Changes.(jsontext.Value)
	if !ok || !slices.Contains(u.Fields, flag) {
		return false
	}
	var members map[string]jsontext.Value
	return json.Unmarshal(changes, &members, trusted) == nil && string(members[flag]) == "true"
}

// NewIdentity is an identity to create with an account or to link.
type NewIdentity struct {
	IdentityID     string // a new id, see NewID
	Provider       string
	ProviderUserID string // required unless Provider is self
	Profile        Profile
}

// LinkIdentity adds an identity to the account. Linking a linked identity again
// changes nothing.
type LinkIdentity struct{ Identity NewIdentity }

func (LinkIdentity) command() {}

func (c LinkIdentity) decide(_ Setting, a Account) ([]Event, error) {
	var f faults
	n := f.identity("", c.Identity)
	if err := f.err(); err != nil {
		return nil, err
	}
	self := false // whether there is one of provider self; merges may have added more
	for _, i := range a.Identities {
		if i.Provider == n.Provider && i.ProviderUserID == n.ProviderUserID && (n.Provider != ProviderSelf || i.Profile.equal(n.Profile)) {
			return nil, nil
		}
		self = self || i.Provider == ProviderSelf
	}
	if self && n.Provider == ProviderSelf {
		return nil, refuse(CodeIdentityConflict, "An account can have at most one identity of provider self.")
	}
	return []Event{IdentityLinked(n)}, nil
}

// UnlinkIdentity removes an identity. The account must keep an e-mail address, a
// mobile number or a username.
type UnlinkIdentity struct{ IdentityID string }

func (UnlinkIdentity) command() {}

func (c UnlinkIdentity) decide(_ Setting, a Account) ([]Event, error) {
	i, ok := a.identity(c.IdentityID)
	if !ok {
		return nil, refuse(CodeIdentityNotFound, "The account has no such identity.")
	}
	left := Account{CustomFields: a.CustomFields}
	for _, other := range a.Identities {
		if other.IdentityID != i.IdentityID {
			left.Identities = append(left.Identities, other)
		}
	}
	if !reachable(left.Identities) {
		return nil, refuse(CodeIdentifierRequired, "Without this identity the account would have no e-mail address, mobile number or username.")
	}
	return []Event{IdentityUnlinked{IdentityID: i.IdentityID, Provider: i.Provider}}, nil
}

// UpdateProfile changes members of one identity's profile.
type UpdateProfile struct {
	IdentityID string         // may be empty if the account has one identity
	Patch      jsontext.Value // RFC 7396 merge patch of a Profile
}

func (UpdateProfile) command() {}

func (c UpdateProfile) decide(_ Setting, a Account) ([]Event, error) {
	id := c.IdentityID
	if id == "" && len(a.Identities) == 1 {
		id = a.Identities[0].IdentityID
	}
	old, ok := a.identity(id)
	if !ok && c.IdentityID == "" {
		return nil, faults{{"/identityId", "required if the account has more than one identity"}}.err()
	}
	if !ok {
		return nil, refuse(CodeIdentityNotFound, "The account has no such identity.")
	}
	p, stated, err := old.Profile.patched(c.Patch)
	if err != nil {
		return nil, err
	}
	var f faults
	p = f.profile("", p)
	if err := f.err(); err != nil {
		return nil, err
	}
	// A verification applies to one value: a new value is unverified unless the
	// patch says otherwise.
	if p.Email != old.Email && !stated["email_verified"] {
		p.EmailVerified = false
	}
	if p.MobileNumber != old.MobileNumber && !stated["mobile_number_verified"] {
		p.MobileNumberVerified = false
	}
	fields, changes := old.Profile.changes(p)
	if len(fields) == 0 {
		return nil, nil
	}
	after := append([]Identity{}, a.Identities...)
	for i := range after {
		if after[i].IdentityID == id {
			after[i].Profile = p
		}
	}
	if !reachable(after) {
		return nil, refuse(CodeIdentifierRequired, "The account would have no e-mail address, mobile number or username left.")
	}
	return []Event{ProfileUpdated{IdentityID: id, Fields: fields, Changes: changes}}, nil
}

// reachable reports whether identities have an e-mail address, a mobile number or a
// username: every account must have one.
func reachable(identities []Identity) bool {
	for _, i := range identities {
		if i.Email != "" || i.MobileNumber != "" || i.Username != "" {
			return true
		}
	}
	return false
}

// patched applies an RFC 7396 merge patch and returns which members the patch has.
// Unmarshalling an object into a struct of plain values is exactly such a merge,
// also for null.
func (p Profile) patched(patch jsontext.Value) (patched Profile, stated map[string]bool, err error) {
	var members map[string]jsontext.Value
	if err := json.Unmarshal(patch, &members); err != nil || members == nil {
		return p, nil, faults{{"", "must be an object"}}.err()
	}
	stated = make(map[string]bool, len(members))
	for name := range members {
		stated[name] = true
	}
	if p.Address != nil {
		address := *p.Address // the merge changes it, and p shares it with the account
		p.Address = &address
	}
	if err := json.Unmarshal(patch, &p, json.RejectUnknownMembers(true)); err != nil {
		var at string
		if e, ok := errors.AsType[*json.SemanticError](err); ok {
			at = string(e.JSONPointer)
		}
		return p, nil, faults{{at, "is unknown or has a value of the wrong type"}}.err()
	}
	return p, stated, nil
}

// with returns p after e. If the changes of e were erased, it returns p.
func (p Profile) with(e ProfileUpdated) Profile {
	if len(e.Changes) == 0 {
		return p
	}
	if slices.Contains(e.Fields, "address") {
		p.Address = nil // the event has the whole address, not a patch
	}
	if err := json.Unmarshal(e.Changes, &p); err != nil {
		panic("domain: recorded profile changes do not fit a profile")
	}
	return p
}

func (p Profile) equal(q Profile) bool { return reflect.DeepEqual(p, q) }

// changes returns the members in which p and q differ, with q's values.
func (p Profile) changes(q Profile) (fields []string, object jsontext.Value) {
	pv, qv := reflect.ValueOf(p), reflect.ValueOf(q)
	values := map[string]any{}
	for i := range pv.NumField() {
		if reflect.DeepEqual(pv.Field(i).Interface(), qv.Field(i).Interface()) {
			continue
		}
		name, _, _ := strings.Cut(pv.Type().Field(i).Tag.Get("json"), ",")
		fields = append(fields, name)
		values[name] = nil
		if f := qv.Field(i); !f.IsZero() || f.Kind() == reflect.Bool {
			values[name] = f.Interface()
		}
	}
	object, err := json.Marshal(values, json.Deterministic(true))
	if err != nil {
		panic("domain: a profile does not marshal: " + err.Error())
	}
	return fields, object
}

// identity checks and normalizes one new identity.
func (f *faults) identity(pointer string, n NewIdentity) NewIdentity {
	if !providerKey.MatchString(n.Provider) {
		f.add(pointer+"/provider", "must be a lower-case letter followed by up to 63 lower-case letters, digits, '_' or '-'")
	}
	if n.Provider != ProviderSelf && n.ProviderUserID == "" {
		f.add(pointer+"/providerUserId", "required unless the provider is self")
	}
	f.text(pointer+"/providerUserId", n.ProviderUserID, 255)
	n.Profile = f.profile(pointer, n.Profile)
	return n
}

// profile checks and normalizes a profile. It reports every fault.
func (f *faults) profile(pointer string, p Profile) Profile {
	for name, value := range map[string]string{"given_name": p.GivenName, "family_name": p.FamilyName,
		"middle_name": p.MiddleName, "nickname": p.Nickname, "gender": p.Gender} {
		f.text(pointer+"/"+name, value, 255)
	}
	f.identifier(pointer+"/email", KindEmail, &p.Email)
	f.identifier(pointer+"/mobile_number", KindMobileNumber, &p.MobileNumber)
	f.identifier(pointer+"/username", KindUsername, &p.Username)
	if p.EmailVerified && p.Email == "" {
		p.EmailVerified = false
	}
	if p.MobileNumberVerified && p.MobileNumber == "" {
		p.MobileNumberVerified = false
	}
	if _, err := time.Parse(time.DateOnly, p.Birthdate); p.Birthdate != "" && err != nil {
		f.add(pointer+"/birthdate", "must be a date, YYYY-MM-DD")
	}
	if _, err := language.Parse(p.Locale); p.Locale != "" && err != nil {
		f.add(pointer+"/locale", "must be a language tag (BCP 47)")
	}
	if _, err := time.LoadLocation(p.Zoneinfo); p.Zoneinfo == "Local" || err != nil {
		f.add(pointer+"/zoneinfo", "must be a time zone of the IANA database")
	}
	f.url(pointer+"/picture", p.Picture)
	f.url(pointer+"/website", p.Website)
	if a := p.Address; a != nil {
		for name, value := range map[string]string{"formatted": a.Formatted, "street_address": a.StreetAddress,
			"locality": a.Locality, "region": a.Region, "postal_code": a.PostalCode, "country": a.Country} {
			f.text(pointer+"/address/"+name, value, 512)
		}
		if *a == (Address{}) {
			p.Address = nil
		}
	}
	return p
}

func (f *faults) text(pointer, value string, most int) {
	switch {
	case !utf8.ValidString(value) || strings.ContainsRune(value, 0):
		f.add(pointer, "must be text in UTF-8 without NUL")
	case utf8.RuneCountInString(value) > most:
		f.add(pointer, "must have at most %d characters", most)
	}
}

func (f *faults) url(pointer, value string) {
	if value == "" {
		return
	}
	u, err := url.Parse(value)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || len(value) > 2048 {
		f.add(pointer, "must be an http or https URL of at most 2048 bytes")
	}
}

// maxIdentities is the maximum number of identities. It keeps an account a small
// document.
const maxIdentities = 50

// identities checks and normalizes the identities of a new account.
func (f *faults) identities(given []NewIdentity) []NewIdentity {
	var all []NewIdentity
	var ways []Identity
	selfs := 0
	for i, n := range given {
		n = f.identity("/identities/"+strconv.Itoa(i), n)
		if n.Provider == ProviderSelf {
			selfs++
		}
		all, ways = append(all, n), append(ways, Identity{Profile: n.Profile})
	}
	if selfs > 1 {
		f.add("/identities", "an account can have at most one identity of provider self")
	}
	if !reachable(ways) {
		f.add("/identities", "at least one of email, mobile_number and username is required")
	}
	return all
}
