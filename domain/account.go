package domain

import (
	"maps"
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
	CreatedTime      time.Time                 `json:"createdTime"`
	UpdatedTime      time.Time                 `json:"updatedTime"`
	LastLoggedInTime time.Time                 `json:"lastLoggedInTime,omitzero"`
	LastUsedIdentity string                    `json:"lastUsedIdentity,omitzero"`
	ErasedTime       time.Time                 `json:"erasedTime,omitzero"` // when its personal data was destroyed
	Revision         eventstore.Revision       `json:"revision"`
	Position         eventstore.Position       `json:"position"`

	key      eventstore.KeyID // of the account's personal data; zero until there is some
	commands []command        // commands seen, newest last; bounded
}

// command remembers what a command id led to, so that a repetition is
// answered and not executed.
type command struct {
	id, requestHash string
	revision        eventstore.Revision
}

// maxCommands is how many commands of one account can be repeated safely. A
// client repeats within seconds; it does not first send 128 other commands.
const maxCommands = 128

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
}

func (AccountCreated) eventType() string { return "account.created.v1" }

// Situation is where a person was when they acted. All of it is personal data.
type Situation struct {
	Client   string `json:"client,omitzero"`
	Device   string `json:"device,omitzero"`
	Location string `json:"location,omitzero"`
}

// AccountErased ends an account: its personal data is gone.
type AccountErased struct {
	KeyID string `json:"kid" pii:"clear"` // the destroyed key, in hexadecimal
}

func (AccountErased) eventType() string { return ErasedType }

// ErasedType is the type of the event that explains why the sealed parts of
// a stream are missing.
const ErasedType = "account.erased.v1"

// Evolve returns a after x. It never refuses: x has happened.
func Evolve(a Account, x Entry) Account {
	switch e := x.Event.(type) {
	case AccountCreated:
		a.Status = e.Status
		a.CreatedTime = x.OccurredTime()
		a.Identities = []Identity{newIdentity(e.IdentityID, e.Provider, e.ProviderUserID, e.Profile, x)}
		a.CustomFields = e.CustomFields
		if a.CustomFields == nil {
			a.CustomFields = map[string]jsontext.Value{}
		}
		a.UserIDs = userIDs(a)
	case IdentityLinked:
		a.Identities = append(slices.Clip(a.Identities), newIdentity(e.IdentityID, e.Provider, e.ProviderUserID, e.Profile, x))
		a.UserIDs = userIDs(a)
	case IdentityUnlinked:
		a.Identities = slices.DeleteFunc(slices.Clone(a.Identities), func(i Identity) bool { return i.IdentityID == e.IdentityID })
		a.UserIDs = userIDs(a)
	case ProfileUpdated:
		a.Identities = slices.Clone(a.Identities)
		for i := range a.Identities {
			if id := &a.Identities[i]; id.IdentityID == e.IdentityID {
				id.Profile = id.Profile.with(e)
				id.UpdatedTime = x.OccurredTime()
			}
		}
		a.UserIDs = userIDs(a)
	case StatusChanged:
		a.Status, a.StatusReason = e.To, e.Reason
	case CustomFieldsUpdated:
		a.CustomFields = maps.Clone(a.CustomFields)
		for key, value := range e.Values {
			if value.Kind() == 'n' {
				delete(a.CustomFields, key)
			} else {
				a.CustomFields[key] = value
			}
		}
		a.UserIDs = userIDs(a)
	case AccountErased:
		a = Account{Sub: a.Sub, Status: StatusDeleted, CreatedTime: a.CreatedTime, ErasedTime: x.Time, commands: a.commands}
	default:
		panic("domain: " + x.Type + " does not belong to an account")
	}
	return a.at(x)
}

// at moves a to the place of x in its stream and in the log.
func (a Account) at(x Entry) Account {
	a.UpdatedTime = x.Time
	a.Revision, a.Position = x.Revision, x.Position
	if x.keyID != (eventstore.KeyID{}) {
		a.key = x.keyID
	}
	if id := x.Meta.CommandID; id != "" {
		if n := len(a.commands); n > 0 && a.commands[n-1].id == id {
			a.commands = slices.Clone(a.commands)
			a.commands[n-1].revision = x.Revision
		} else {
			a.commands = append(a.commands[max(0, n+1-maxCommands):n:n], command{id, x.Meta.requestHash, x.Revision})
		}
	}
	return a
}

// NewID makes an id that sorts by time (RFC 9562 version 7): for subs,
// identities, events and whatever else the ledger names.
func NewID() uuid.UUID { return uuid.Must(uuid.NewV7()) }
