package domain

import (
	"errors"
	"maps"
	"net/mail"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/nyaruka/phonenumbers"
	"golang.org/x/net/idna"
	"golang.org/x/text/cases"
	"golang.org/x/text/secure/precis"
	"golang.org/x/text/unicode/norm"
)

// Kind is a kind of identifier: the type of a UserID, which a refusal names if
// the identifier is taken.
type Kind string

// The kinds of identifiers.
const (
	KindEmail          Kind = "email"
	KindMobileNumber   Kind = "mobile_number"
	KindUsername       Kind = "username"
	KindProviderUserID Kind = "providerUserId"
)

// UserID is an identifier that leads to its account.
type UserID struct {
	Type       Kind   `json:"type" doc:"email, mobile_number, username or providerUserId."`
	Value      string `json:"value" doc:"The identifier in its display form."`
	Verified   bool   `json:"verified" doc:"Whether the person is verified to own the identifier."`
	IdentityID string `json:"identityId,omitzero" doc:"The identity the identifier belongs to."`
	Provider   string `json:"provider,omitzero" doc:"With type providerUserId: the provider."`
	FieldKey   string `json:"fieldKey,omitzero" doc:"For an identifier that is a custom field: the field's key."`
}

// Key returns the comparison key: two identifiers of one kind are the same if
// and only if their keys are equal.
func (u UserID) Key() string { return compareKey(u.Type, u.Provider, u.Value) }

func compareKey(kind Kind, provider, value string) string {
	switch kind {
	case KindEmail:
		return foldedEmail(value)
	case KindUsername:
		if key, err := precis.UsernameCaseMapped.CompareKey(value); err == nil {
			return key
		}
		return folded(value) // of a custom field, which allows more than usernames
	case KindProviderUserID:
		// Not normalized: a provider may give two people ids that differ only in
		// that (OpenID Connect Core 1.0, section 14).
		return provider + "\x00" + value
	case KindMobileNumber:
		return value
	}
	return folded(value) // of a unique custom field
}

// foldedEmail returns a key that ignores case, and the normalization form as
// RFC 6532, section 3.1 advises. It keeps compatibility characters apart, which
// NFKC would not. The domain is lower-case ASCII already.
func foldedEmail(value string) string {
	if isASCII(value) {
		return strings.ToLower(value)
	}
	return norm.NFC.String(cases.Fold().String(norm.NFC.String(value)))
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// folded returns a key that ignores case and Unicode normalization form.
func folded(value string) string {
	return norm.NFKC.String(cases.Fold().String(norm.NFKC.String(value)))
}

// userIDs lists every identifier that leads to a.
func userIDs(a Account) []UserID {
	ids := make([]UserID, 0, 4*len(a.Identities))
	for _, i := range a.Identities {
		for _, u := range []UserID{
			{Type: KindEmail, Value: i.Email, Verified: i.EmailVerified},
			{Type: KindMobileNumber, Value: i.MobileNumber, Verified: i.MobileNumberVerified},
			{Type: KindUsername, Value: i.Username},
			{Type: KindProviderUserID, Value: i.ProviderUserID, Provider: i.Provider, Verified: true},
		} {
			if u.Value != "" {
				u.IdentityID = i.IdentityID
				ids = append(ids, u)
			}
		}
	}
	own := len(ids)
	ids = append(ids, fieldIDs(a.CustomFields, a.FieldClaims, true)...)
	for _, c := range a.CombinedFrom {
		for _, u := range fieldIDs(c.CustomFields, c.FieldClaims, true) {
			if !slices.Contains(ids[own:], u) { // a value that the merge filled in is listed already
				ids = append(ids, u)
			}
		}
	}
	return ids
}

// fieldIDs returns the custom fields that are identifiers: with leading only
// those that lead to their account, otherwise all that are unique.
func fieldIDs(fields map[string]jsontext.Value, claims map[string]Kind, leading bool) []UserID {
	var ids []UserID
	for _, key := range slices.Sorted(maps.Keys(claims)) {
		u := UserID{Type: claims[key], Value: string(fields[key]), FieldKey: key}
		switch {
		case u.Type == KindUsername:
			u.Value, _ = text(fields[key])
		case leading:
			continue
		}
		ids = append(ids, u)
	}
	return ids
}

// Normalize checks an identifier and returns the form that is stored and shown.
// The error names the rule and not the value.
func Normalize(kind Kind, value string) (string, error) {
	switch kind {
	case KindEmail:
		return normalizeEmail(value)
	case KindMobileNumber:
		return normalizeMobileNumber(value)
	case KindUsername:
		return normalizeUsername(value)
	}
	if value == "" || len(value) > 255 {
		return "", errors.New("1 to 255 bytes")
	}
	return value, nil
}

// normalizeEmail accepts an addr-spec (RFC 5322 with the characters of RFC 6532,
// without comments and quoted local parts). It converts the domain to lower-case
// ASCII (IDNA 2008, lookup) and keeps the local part as typed.
func normalizeEmail(value string) (string, error) {
	bad := errors.New("must be an e-mail address")
	a, err := mail.ParseAddress(value)
	if err != nil || a.Address != value || a.Name != "" {
		return "", bad
	}
	at := strings.LastIndexByte(value, '@')
	local, domain := value[:at], value[at+1:]
	domain, err = idna.Lookup.ToASCII(domain)
	if err != nil || len(local) > 64 || len(domain) > 253 || !strings.Contains(domain, ".") || strings.HasSuffix(domain, ".") {
		return "", bad
	}
	return local + "@" + strings.ToLower(domain), nil
}

// normalizeMobileNumber accepts an international number in any grouping and
// returns it in E.164. The number must be valid in its country's numbering plan.
func normalizeMobileNumber(value string) (string, error) {
	bad := errors.New("must be a valid telephone number with its country code, like +4915112345678")
	if len(value) > 40 {
		return "", bad
	}
	n, err := phonenumbers.Parse(value, phonenumbers.UNKNOWN_REGION)
	if err != nil || !phonenumbers.IsValidNumber(n) || n.GetExtension() != "" {
		return "", bad
	}
	return phonenumbers.Format(n, phonenumbers.E164), nil
}

// normalizeUsername checks the profile UsernameCaseMapped of PRECIS (RFC 8265,
// section 3.3) and keeps the case as typed.
func normalizeUsername(value string) (string, error) {
	shown, err := precis.UsernameCasePreserved.String(value)
	if err == nil {
		_, err = precis.UsernameCaseMapped.CompareKey(value)
	}
	if err != nil || shown == "" || len(shown) > 255 {
		return "", errors.New("must be a username (RFC 8265) of at most 255 bytes: letters, digits and punctuation, no spaces")
	}
	return shown, nil
}

// identifier normalizes *value in place. An empty value stays empty.
func (f *faults) identifier(pointer string, kind Kind, value *string) {
	if *value == "" {
		return
	}
	normal, err := Normalize(kind, *value)
	if err != nil {
		f.add(pointer, "%s", err)
		return
	}
	*value = normal
}

// Candidate is an identifier to look up: a kind and a comparison key.
type Candidate struct {
	Kind Kind
	Key  string
}

// Candidates returns the identifiers that a typed value may stand for, most
// likely first. With an empty kind it tries e-mail, mobile number and username;
// a providerUserId needs its kind and provider. A value that cannot be an
// identifier has no candidates.
func Candidates(kind Kind, provider, value string) []Candidate {
	kinds := []Kind{kind}
	if kind == "" {
		kinds = []Kind{KindEmail, KindMobileNumber, KindUsername}
	}
	var found []Candidate
	value = strings.TrimSpace(value)
	for _, k := range kinds {
		normal, err := Normalize(k, value)
		if err != nil && k == KindUsername && value != "" && len(value) <= 255 {
			normal, err = value, nil // a custom field of type USERNAME may hold it
		}
		if err == nil {
			found = append(found, Candidate{k, compareKey(k, provider, normal)})
		}
	}
	return found
}
