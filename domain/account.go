package domain

import (
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"accountledger/eventstore"
)

// Account is the fold of one account's events. Decisions and readers use the
// same fold, so that the two cannot disagree. Its JSON is the account on the
// wire. Accounts may share maps and slices: Evolve never changes those of an
// older Account.
type Account struct {
	Sub              string                    `json:"sub" doc:"The account's identifier, a UUID. It never changes and is never reused."`
	Status           Status                    `json:"userStatus" doc:"PENDING, VERIFIED, DECLINED, COMBINED or DELETED. Only a VERIFIED account may log in."`
	StatusReason     string                    `json:"user_status_reason,omitzero" doc:"Free text given with the last status change."`
	Identities       []Identity                `json:"identities" doc:"The account's identities: the ways to sign in."`
	UserIDs          []UserID                  `json:"userIds" doc:"Every identifier that resolves to this account."`
	CustomFields     map[string]jsontext.Value `json:"customFields" doc:"The application's custom fields: values by field key."`
	CombinedInto     string                    `json:"combinedInto,omitzero" doc:"The account this one was merged into; that account now has its identities."`
	CombinedFrom     []Combined                `json:"combinedFrom,omitzero" doc:"The accounts that were merged into this one."`
	Groups           []Membership              `json:"groups" doc:"The account's group memberships, in the order of joining."`
	Schedules        []Schedule                `json:"schedules" doc:"The last hundred schedules that ended, then the planned ones."`
	Deletion         Deletion                  `json:"deletion,omitzero" doc:"The scheduled deletion, while the account is DELETED and not yet erased."`
	FieldClaims      map[string]Kind           `json:"fieldClaims,omitzero" doc:"Custom fields whose values are unique across accounts: the kind of identifier by field key."`
	Consents         []ConsentDecision         `json:"consents" doc:"The latest decision on each consent."` // sorted by consentId
	CreatedTime      time.Time                 `json:"createdTime" doc:"When the account was created."`
	UpdatedTime      time.Time                 `json:"updatedTime" doc:"When the account's last event was recorded."`
	LastLoggedInTime time.Time                 `json:"lastLoggedInTime,omitzero" doc:"When the account last logged in."`
	LastUsedIdentity string                    `json:"lastUsedIdentity,omitzero" doc:"The identityId of the last login."`
	ErasedTime       time.Time                 `json:"erasedTime,omitzero" doc:"When the account's personal data was destroyed."`
	Revision         eventstore.Revision       `json:"revision" doc:"The account's version: the number of its last event, counted from 0. Also the ETag."`
	Position         eventstore.Position       `json:"position" doc:"The log position of the account's last event."`

	key      eventstore.KeyID // encrypts the account's personal data; zero until there is some
	commands commands

	erasureCompleted bool // no personal data is left to remove
}

// NewAccount returns the account before its first event.
func NewAccount(sub string) Account {
	return Account{Sub: sub, Revision: eventstore.NoStream, CustomFields: map[string]jsontext.Value{}}
}

// Exists reports whether the account has been created.
func (a Account) Exists() bool { return a.Revision >= 0 }

// Erased reports whether the account has ended and its personal data is destroyed.
func (a Account) Erased() bool { return !a.ErasedTime.IsZero() }

// JSON returns the account as the API shows it. Equal accounts give equal bytes.
func (a Account) JSON() ([]byte, error) { return json.Marshal(a, json.Deterministic(true)) }

func (a Account) head() head {
	h := head{stream: AccountStream(a.Sub), revision: a.Revision, position: a.Position, key: a.key, commands: a.commands,
		repeatable: a.Exists() && !a.Erased()}
	if len(a.CombinedFrom) > 0 {
		h.combinedSubs = strings.Join(a.subs()[1:], " ")
	}
	return h
}

func (a Account) with(entries ...Entry) Account {
	for _, x := range entries {
		a = Evolve(a, x)
	}
	return a
}

func (a Account) initial() Account { return NewAccount(a.Sub) }

// ParseAccount is the inverse of Account.JSON, for views that store it.
func ParseAccount(data []byte) (Account, error) {
	var a Account
	err := json.Unmarshal(data, &a)
	return a, err
}

func (a Account) identity(id string) (Identity, bool) {
	i := slices.IndexFunc(a.Identities, func(x Identity) bool { return x.IdentityID == id })
	if i < 0 {
		return Identity{}, false
	}
	return a.Identities[i], true
}

// accountPrefix starts the name of every account's stream.
const accountPrefix = "account-"

// AccountStream returns the name of the stream that holds the account's events.
func AccountStream(sub string) string { return accountPrefix + sub }

// Origin says how an account was created.
type Origin string

// The origins.
const (
	OriginRegistered Origin = "registered" // by the person
	OriginCreated    Origin = "created"    // by a caller of the API
	OriginImported   Origin = "imported"   // by a batch import
)

// AccountCreated creates an account with its first identity. Further identities
// of the same command follow as IdentityLinked in the same commit.
type AccountCreated struct {
	Origin         Origin                    `json:"origin" pii:"clear"`
	Status         Status                    `json:"userStatus" pii:"clear"`
	IdentityID     string                    `json:"identityId" pii:"clear"`
	Provider       string                    `json:"provider" pii:"clear"`
	ProviderUserID string                    `json:"providerUserId,omitzero" pii:"seal"`
	Profile        Profile                   `json:"profile,omitzero" pii:"seal"`
	CustomFields   map[string]jsontext.Value `json:"customFields,omitzero" pii:"seal"`
	Registration   Situation                 `json:"registration,omitzero" pii:"seal"`
	Groups         []GroupJoined             `json:"groups,omitzero" pii:"clear"` // its first memberships

	ClearCustomFields map[string]jsontext.Value `json:"clearCustomFields,omitzero" pii:"clear"` // see CustomFieldsUpdated
	FieldClaims       map[string]Kind           `json:"fieldClaims,omitzero" pii:"clear"`
}

func (AccountCreated) eventType() string { return "account.created.v1" }

// Situation says where a person was when they acted. All of it is personal
// data.
type Situation struct {
	Client   string `json:"client,omitzero" doc:"The application."`
	Device   string `json:"device,omitzero" doc:"The device."`
	Location string `json:"location,omitzero" doc:"The location."`
}

func (e AccountCreated) evolve(a Account, x Entry) Account {
	a.Status = e.Status
	a.CreatedTime = x.OccurredTime()
	a.Identities = []Identity{newIdentity(e.IdentityID, e.Provider, e.ProviderUserID, e.Profile, x)}
	a.CustomFields = merged(e.CustomFields, e.ClearCustomFields)
	if a.CustomFields == nil {
		a.CustomFields = map[string]jsontext.Value{}
	}
	for _, g := range e.Groups {
		a.Groups = append(slices.Clip(a.Groups), g.membership(x))
	}
	for key, kind := range e.FieldClaims {
		if _, left := a.CustomFields[key]; left { // it is missing once it is erased
			a.FieldClaims = with(a.FieldClaims, key, kind)
		}
	}
	a.UserIDs = userIDs(a)
	return a
}

func (e AccountCreated) public(x Entry) []publicEvent {
	created := UserCreated{
		Sub: x.Sub(), Email: e.Profile.Email, GivenName: e.Profile.GivenName, FamilyName: e.Profile.FamilyName,
		EmailVerified: e.Profile.EmailVerified, MobileNumber: e.Profile.MobileNumber, Locale: e.Profile.Locale, Status: e.Status, Provider: e.Provider,
		CreatedTime: x.OccurredTime(), CustomFields: merged(e.CustomFields, e.ClearCustomFields),
	}
	events := []publicEvent{{"USER_CREATED", created}}
	if e.Origin == OriginRegistered {
		events = append(events, publicEvent{"USER_REGISTERED", userRegistered{created, e.Registration}})
	}
	for _, g := range e.Groups {
		events = append(events, g.public(x)...)
	}
	return events
}

func (AccountCreated) catalogue() []PublicType {
	return []PublicType{
		{Name: "USER_CREATED", When: "an account is created in any way", Data: UserCreated{}, Aliases: []Alias{
			{"ACCOUNT_CREATED_WITH_CIDAAS_IDENTITY", "with an identity of provider self", func(data any) bool { return data.(UserCreated).Provider == ProviderSelf }},
			{"ACCOUNT_CREATED_WITH_SOCIAL_IDENTITY", "with an identity of another provider", func(data any) bool { return data.(UserCreated).Provider != ProviderSelf }},
		}},
		{Name: "USER_REGISTERED", When: "a person registers; USER_CREATED is also sent", Data: userRegistered{}},
	}
}

// UserCreated is the data of USER_CREATED. It is exported because USER_REGISTERED
// embeds it, and schemas leave out embedded types that are not exported.
type UserCreated struct {
	Sub           string                    `json:"sub" doc:"The account."`
	Email         string                    `json:"email,omitzero" doc:"E-mail address of the first identity."`
	EmailVerified bool                      `json:"email_verified" doc:"Whether the person is verified to own the e-mail address."`
	MobileNumber  string                    `json:"mobile_number,omitzero" doc:"Mobile number of the first identity in E.164 format."`
	Locale        string                    `json:"locale,omitzero" doc:"Language tag (BCP 47)."`
	GivenName     string                    `json:"given_name,omitzero" doc:"Given name."`
	FamilyName    string                    `json:"family_name,omitzero" doc:"Family name."`
	Status        Status                    `json:"userStatus" doc:"The initial status."`
	Provider      string                    `json:"provider" doc:"Provider of the first identity."`
	CreatedTime   time.Time                 `json:"createdTime" doc:"When the account was created; for an imported account, the original time if known."`
	CustomFields  map[string]jsontext.Value `json:"customFields" doc:"The application's custom fields: values by field key, without internal fields."`
}

type userRegistered struct {
	UserCreated
	Situation
}

// accountEvent is an event of an account's stream.
type accountEvent interface {
	Event
	// evolve returns a after x, whose event this is. The result may share maps
	// and slices with a, so evolve copies those that it changes.
	evolve(a Account, x Entry) Account
}

// Evolve returns a after x. It cannot fail, because x has happened.
func Evolve(a Account, x Entry) Account {
	e, ok := x.Event.(accountEvent)
	if !ok {
		panic("domain: " + x.Type + " does not belong to an account")
	}
	return e.evolve(a, x).at(x)
}

// at sets the revision and the position of a to those of x.
func (a Account) at(x Entry) Account {
	a.UpdatedTime = x.Time
	a.Revision, a.Position = x.Revision, x.Position
	if a.key == (eventstore.KeyID{}) {
		a.key = x.keyID // an account's first sealed event is sealed under its own key
	}
	a.commands = a.commands.with(x)
	return a
}

// NewID returns an id that sorts by time (RFC 9562 version 7), for subs,
// identities, events and the like.
func NewID() uuid.UUID { return uuid.Must(uuid.NewV7()) }
