package domain

import (
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"accountledger/eventstore"
)

// Account is what the events of one account add up to: what decisions read
// and what readers are shown are the same fold, so the two cannot disagree.
// Its JSON is the account on the wire. Values are shared freely; Evolve never
// changes what an older Account refers to.
type Account struct {
	Sub              string                    `json:"sub"`
	Status           Status                    `json:"userStatus"`
	StatusReason     string                    `json:"user_status_reason,omitzero"`
	Identities       []Identity                `json:"identities"`
	UserIDs          []UserID                  `json:"userIds"`
	CustomFields     map[string]jsontext.Value `json:"customFields"`
	CombinedInto     string                    `json:"combinedInto,omitzero"` // the sub of the account that has its identities now
	CombinedFrom     []Combined                `json:"combinedFrom,omitzero"`
	Groups           []Membership              `json:"groups"`               // in the order of joining
	Schedules        []Schedule                `json:"schedules"`            // those that ended first, then the planned ones
	Deletion         Deletion                  `json:"deletion,omitzero"`    // while it is scheduled
	FieldClaims      map[string]Kind           `json:"fieldClaims,omitzero"` // fields of which no other account may have the same value
	Consents         []ConsentDecision         `json:"consents"`             // the latest of each consent, by consentId
	CreatedTime      time.Time                 `json:"createdTime"`
	UpdatedTime      time.Time                 `json:"updatedTime"`
	LastLoggedInTime time.Time                 `json:"lastLoggedInTime,omitzero"`
	LastUsedIdentity string                    `json:"lastUsedIdentity,omitzero"`
	ErasedTime       time.Time                 `json:"erasedTime,omitzero"` // when its personal data was destroyed
	Revision         eventstore.Revision       `json:"revision"`
	Position         eventstore.Position       `json:"position"`

	key      eventstore.KeyID // of the account's personal data; zero until there is some
	commands commands

	erasureCompleted bool // nothing is left to remove
}

// NewAccount is the account before its first event.
func NewAccount(sub string) Account {
	return Account{Sub: sub, Revision: eventstore.NoStream, CustomFields: map[string]jsontext.Value{}}
}

// Exists reports whether the account has been created.
func (a Account) Exists() bool { return a.Revision >= 0 }

// Erased reports whether the account has ended and its personal data is gone.
func (a Account) Erased() bool { return !a.ErasedTime.IsZero() }

// JSON renders the account as it goes over the wire. Equal accounts give equal
// bytes.
func (a Account) JSON() ([]byte, error) { return json.Marshal(a, json.Deterministic(true)) }

// ParseAccount is the inverse of Account.JSON, for views that keep it.
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

// AccountStream is the stream that holds the account's events.
func AccountStream(sub string) string { return accountPrefix + sub }

// Origin says how an account came to be.
type Origin string

// The origins.
const (
	OriginRegistered Origin = "registered" // by its own registration
	OriginCreated    Origin = "created"    // by a caller of the API
	OriginImported   Origin = "imported"   // by a batch
)

// AccountCreated opens an account with its first identity. Further identities
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
	Groups         []GroupJoined             `json:"groups,omitzero" pii:"clear"` // the memberships it begins with

	ClearCustomFields map[string]jsontext.Value `json:"clearCustomFields,omitzero" pii:"clear"` // see CustomFieldsUpdated
	FieldClaims       map[string]Kind           `json:"fieldClaims,omitzero" pii:"clear"`
}

func (AccountCreated) eventType() string { return "account.created.v1" }

// Situation is where a person was when they acted. All of it is personal data.
type Situation struct {
	Client   string `json:"client,omitzero"`
	Device   string `json:"device,omitzero"`
	Location string `json:"location,omitzero"`
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
		if _, left := a.CustomFields[key]; left { // not erased
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
		{Name: "USER_CREATED", When: "there is a new account, however it came about", Data: UserCreated{}, Aliases: []Alias{
			{"ACCOUNT_CREATED_WITH_CIDAAS_IDENTITY", "with an identity of provider self", func(data any) bool { return data.(UserCreated).Provider == ProviderSelf }},
			{"ACCOUNT_CREATED_WITH_SOCIAL_IDENTITY", "with an identity of another provider", func(data any) bool { return data.(UserCreated).Provider != ProviderSelf }},
		}},
		{Name: "USER_REGISTERED", When: "somebody registered; USER_CREATED is told beside it", Data: userRegistered{}},
	}
}

// UserCreated is the data of USER_CREATED. It is exported because USER_REGISTERED
// embeds it, and schemas leave out embedded types that are not exported.
type UserCreated struct {
	Sub           string                    `json:"sub"`
	Email         string                    `json:"email,omitzero"`
	EmailVerified bool                      `json:"email_verified"`
	MobileNumber  string                    `json:"mobile_number,omitzero"`
	Locale        string                    `json:"locale,omitzero"`
	GivenName     string                    `json:"given_name,omitzero"`
	FamilyName    string                    `json:"family_name,omitzero"`
	Status        Status                    `json:"userStatus"`
	Provider      string                    `json:"provider"`
	CreatedTime   time.Time                 `json:"createdTime"`
	CustomFields  map[string]jsontext.Value `json:"customFields"`
}

type userRegistered struct {
	UserCreated
	Situation
}

// accountEvent is an event of an account's stream.
type accountEvent interface {
	Event
	// evolve returns a after x, whose event this is. It shares with a what it
	// leaves alone, and never changes what a refers to.
	evolve(a Account, x Entry) Account
}

// Evolve returns a after x. It never refuses: x has happened.
func Evolve(a Account, x Entry) Account {
	e, ok := x.Event.(accountEvent)
	if !ok {
		panic("domain: " + x.Type + " does not belong to an account")
	}
	return e.evolve(a, x).at(x)
}

// at moves a to the place of x in its stream and in the log.
func (a Account) at(x Entry) Account {
	a.UpdatedTime = x.Time
	a.Revision, a.Position = x.Revision, x.Position
	if a.key == (eventstore.KeyID{}) {
		a.key = x.keyID // the first sealed event of a stream is sealed under its own account's key
	}
	a.commands = a.commands.with(x)
	return a
}

// NewID makes an id that sorts by time (RFC 9562 version 7): for subs,
// identities, events and whatever else the ledger names.
func NewID() uuid.UUID { return uuid.Must(uuid.NewV7()) }
