package domain

import (
	"cmp"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Command is a command on one account.
type Command interface {
	// decide returns the events c causes in a, none if it changes nothing.
	decide(s Setting, a Account) ([]Event, error)
	command()
}

// Setting is the input of a decision besides the account and the command.
type Setting struct {
	Config *Config   // read-only
	Now    time.Time // UTC, microseconds
	Admin  bool      // the caller may do what users may not, see Request.Admin
}

// Decide returns the events cmd causes: none if it changes nothing, an *Error
// if the account's rules refuse it.
func Decide(s Setting, a Account, cmd Command) ([]Event, error) {
	if err := admit(a, cmd); err != nil {
		return nil, err
	}
	return cmd.decide(s, a)
}

// admit refuses a command that an account in a's state does not accept.
func admit(a Account, cmd Command) error {
	_, creating := cmd.(CreateAccount)
	_, completing := cmd.(CompleteErasure)
	ended, ok := cmd.(interface{ admits(Status) bool })
	switch {
	case creating && a.Exists():
		return refuse(CodeAccountExists, "There is an account with this sub already.")
	case creating:
		return nil
	case !a.Exists():
		return refuse(CodeAccountNotFound, "There is no account with this sub.")
	case completing && a.Erased():
		return nil
	case a.Erased():
		return refuse(CodeAccountErased, "The account was erased.")
	case ok && ended.admits(a.Status):
		return nil
	case a.Status == StatusCombined:
		return refuse(CodeAccountCombined, "The account was combined into another one.")
	case a.Status == StatusDeleted:
		return refuse(CodeAccountDeleted, "The account is scheduled for deletion.")
	}
	return nil
}

// CreateAccount opens an account.
type CreateAccount struct {
	Origin       Origin
	Status       Status // empty: VERIFIED, or PENDING for a registration
	Identities   []NewIdentity
	CustomFields map[string]jsontext.Value
	Groups       []SetMembership // in addition to the group of every account, whose roles an entry may replace
	Registration Situation       // of OriginRegistered
}

func (CreateAccount) command() {}

func (c CreateAccount) decide(s Setting, a Account) ([]Event, error) {
	var f faults
	status := c.Status
	switch {
	case status == "" && c.Origin == OriginRegistered:
		status = StatusPending
	case status == "":
		status = StatusVerified
	case !slices.Contains(Statuses, status):
		f.add("/userStatus", "must be PENDING, VERIFIED or DECLINED")
	case status.systemManaged():
		return nil, refuse(CodeStatusSystemManaged, "An account cannot be created as %s.", status)
	}
	if !slices.Contains([]Origin{OriginRegistered, OriginCreated, OriginImported}, c.Origin) {
		f.add("/origin", "must be registered, created or imported")
	}
	if len(c.Identities) == 0 || len(c.Identities) > maxIdentities {
		f.add("/identities", "an account has 1 to %d identities", maxIdentities)
		return nil, f.err()
	}
	f.text("/registration/client", c.Registration.Client, 255)
	f.text("/registration/device", c.Registration.Device, 255)
	f.text("/registration/location", c.Registration.Location, 255)
	fields := f.customFields(s, "/customFields", nil, c.CustomFields)
	f.requiredFields(s, c.Origin, c.CustomFields)
	identities := f.identities(c.Identities)
	first, joined, err := f.newMemberships(s, c.Groups)
	if err := cmp.Or(err, f.err()); err != nil {
		return nil, err
	}
	primary := identities[0]
	set := s.Config.customFieldsUpdated(fields)
	events := []Event{AccountCreated{
		Origin: c.Origin, Status: status, Registration: c.Registration,
		CustomFields: set.Values, ClearCustomFields: set.ClearValues, FieldClaims: set.FieldClaims,
		IdentityID: primary.IdentityID, Provider: primary.Provider, ProviderUserID: primary.ProviderUserID, Profile: primary.Profile,
		Groups: first,
	}}
	for _, n := range identities[1:] {
		events = append(events, IdentityLinked(n))
	}
	for _, e := range joined {
		events = append(events, e)
	}
	events = append(events, linkedDecisions(s, a, fields)...)
	return append(events, autoSchedules(s, a.Sub, status)...), nil
}
