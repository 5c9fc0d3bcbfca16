package domain

import (
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"accountledger/eventstore"
)

func TestNormalize(t *testing.T) {
	tests := []struct {
		kind        Kind
		value, want string // want is empty: refused
	}{
		{KindEmail, "ada@example.com", "ada@example.com"},
		{KindEmail, "Ada.Lovelace+x@EXAMPLE.Com", "Ada.Lovelace+x@example.com"},
		{KindEmail, "ada@bücher.example", "ada@xn--bcher-kva.example"},
		{KindEmail, "zoë@example.com", "zoë@example.com"},
		{KindEmail, "ada@localhost", ""},
		{KindEmail, "ada", ""},
		{KindEmail, "@example.com", ""},
		{KindEmail, "ada@@example.com", ""},
		{KindEmail, "Ada <ada@example.com>", ""},
		{KindEmail, `"ada x"@example.com`, ""},
		{KindEmail, "ada@example.com, bob@example.com", ""},
		{KindEmail, "ada@example.com (comment)", ""},
		{KindEmail, "ada@exam ple.com", ""},
		{KindEmail, "ada@example.com\r\nBcc: x@example.com", ""},
		{KindEmail, strings.Repeat("a", 65) + "@example.com", ""},
		{KindEmail, "ada@-example.com", ""},
		{KindMobileNumber, "+49 1511 2345678", "+4915112345678"},
		{KindMobileNumber, "+1 (202) 555-0123", "+12025550123"},
		{KindMobileNumber, "01511 2345678", ""},
		{KindMobileNumber, "+49 12", ""},
		{KindMobileNumber, "+4915112345678 ext. 7", ""},
		{KindUsername, "Ada", "Ada"},
		{KindUsername, "ada lovelace", ""},
		{KindUsername, "ada\x00", ""},
		{KindUsername, "", ""},
		{KindProviderUserID, "1095", "1095"},
		{KindProviderUserID, strings.Repeat("1", 256), ""},
	}
	for _, tt := range tests {
		got, err := Normalize(tt.kind, tt.value)
		if (err != nil) != (tt.want == "") || got != tt.want {
			t.Errorf("Normalize(%s, %q) = %q, %v; want %q", tt.kind, tt.value, got, err, tt.want)
		}
		if err != nil && tt.value != "" && strings.Contains(err.Error(), tt.value) {
			t.Errorf("Normalize(%s, %q) echoes the value: %v", tt.kind, tt.value, err)
		}
		if err == nil {
			if again, err := Normalize(tt.kind, got); again != got || err != nil {
				t.Errorf("Normalize(%s, %q) is %q the second time, %v", tt.kind, got, again, err)
			}
		}
	}
}

// TestSameIdentifier checks which spellings are the same identifier.
func TestSameIdentifier(t *testing.T) {
	same := func(kind Kind, a, b string) bool {
		x, err1 := Normalize(kind, a)
		y, err2 := Normalize(kind, b)
		return err1 == nil && err2 == nil && UserID{Type: kind, Value: x}.Key() == UserID{Type: kind, Value: y}.Key()
	}
	for _, tt := range []struct {
		kind Kind
		a, b string
		want bool
	}{
		{KindEmail, "Ada@Example.com", "ada@example.COM", true},
		{KindEmail, "ada@bücher.example", "ADA@xn--bcher-kva.example", true},
		{KindEmail, "ada@example.com", "ada@example.org", false},
		{KindEmail, "zo\u00eb@example.com", "ZOE\u0308@example.com", true}, // NFC and NFD, RFC 6532 section 3.1
		{KindEmail, "ada@b\u00fccher.example", "ada@bu\u0308cher.example", true},
		{KindEmail, "\u0390@example.com", "\u0399\u0308\u0301@example.com", true}, // folding one of them decomposes it
		{KindEmail, "\uff46in@example.com", "fin@example.com", false},             // equal only in NFKC, which is lossy
		{KindUsername, "zo\u00eb", "zoe\u0308", true},
		{KindProviderUserID, "zo\u00eb", "zoe\u0308", false}, // the provider's own comparison counts
		{KindMobileNumber, "+49 1511-234 5678", "+4915112345678", true},
		{KindUsername, "ADA", "ada", true},
		{KindUsername, "ａｄａ", "ada", true}, // full width, RFC 8265 section 3.3.2
		{KindUsername, "ada", "adá", false},
	} {
		if got := same(tt.kind, tt.a, tt.b); got != tt.want {
			t.Errorf("%s %q and %q the same: %v, want %v", tt.kind, tt.a, tt.b, got, tt.want)
		}
	}
}

func TestClaims(t *testing.T) {
	claim := func(kind, value, owner string) eventstore.Claim {
		return eventstore.Claim{Kind: kind, Key: value, Owner: owner}
	}
	keys := func(claims []eventstore.Claim) []string {
		var keys []string
		for _, c := range claims {
			keys = append(keys, c.Kind+" "+c.Key)
		}
		return keys
	}
	created := fold(adaCreated)
	linked := fold(adaCreated, adaLinked)
	twice := fold(adaCreated, IdentityLinked{IdentityID: "i3", Provider: "saml", ProviderUserID: "7", Profile: Profile{Email: "ADA@example.com"}})
	named := func(username string) Account {
		return fold(adaCreated, ProfileUpdated{IdentityID: "i1", Fields: []string{"username"}, Changes: value(`{"username":` + strconv.Quote(username) + `}`)})
	}
	withField := func(kind Kind, v string) Account {
		return fold(adaCreated, CustomFieldsUpdated{Fields: []string{"login"}, Values: fieldValues("login", v), FieldClaims: map[string]Kind{"login": kind}})
	}
	tests := []struct {
		name          string
		before, after Account
		take, release []string
	}{
		{"create", NewAccount(created.Sub), created, []string{"email ada@example.com"}, nil},
		{"link", created, linked, []string{"email ada@gmail.com", "providerUserId google\x001095"}, nil},
		{"unlink", linked, created, nil, []string{"email ada@gmail.com", "providerUserId google\x001095"}},
		{"link with an e-mail the account has", created, twice, []string{"providerUserId saml\x007"}, nil},
		{"erase", linked, fold(adaCreated, adaLinked, AccountErased{}), nil, []string{"email ada@example.com", "email ada@gmail.com", "providerUserId google\x001095"}},
		{"nothing", linked, linked, nil, nil},
		{"a username like an e-mail address", created, named("Pat@Example.com"), []string{"username pat@example.com", "email pat@example.com"}, nil},
		{"drop it", named("Pat@Example.com"), created, nil, []string{"username pat@example.com", "email pat@example.com"}},
		{"a username with an internationalized domain", created, named("pat@b\u00fccher.example"), []string{"username pat@b\u00fccher.example", "email pat@xn--bcher-kva.example"}, nil},
		// The username also leads to the account where it is written in half width.
		{"a username in full width", created, named("\uff50\uff41\uff54@example.com"),
			[]string{"username pat@example.com", "email \uff50\uff41\uff54@example.com", "email pat@example.com"}, nil},
		{"a username like a mobile number", created, named("+4915112345678"), []string{"username +4915112345678", "mobile_number +4915112345678"}, nil},
		{"a username that is neither", created, named("pat@localhost+1"), []string{"username pat@localhost+1"}, nil},
		{"the account's own address as its username", created, named("ada@example.com"), []string{"username ada@example.com"}, nil},
		{"a field like a mobile number", created, withField(KindUsername, `"+49 1511 2345678"`), []string{"username +49 1511 2345678", "mobile_number +4915112345678"}, nil},
		{"a user id at provider self", created, fold(adaCreated, IdentityLinked{IdentityID: "i4", Provider: ProviderSelf, ProviderUserID: "Pat@Example.com"}),
			[]string{"providerUserId self\x00Pat@Example.com", "username pat@example.com", "email pat@example.com"}, nil},
		{"a unique field that leads nowhere", created, withField("customFields.login", `"pat@example.com"`), []string{"customFields.login \"pat@example.com\""}, nil},
	}
	for _, tt := range tests {
		take, release := claims([]Account{tt.before}, []Account{tt.after}, claim)
		if diff := cmp.Diff(tt.take, keys(take), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("claims taken by %s (-want +got):\n%s", tt.name, diff)
		}
		if diff := cmp.Diff(tt.release, keys(release), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("claims released by %s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestCandidates(t *testing.T) {
	for _, tt := range []struct {
		kind            Kind
		provider, value string
		want            []Candidate
	}{
		{"", "", "Ada@Example.com", []Candidate{{KindEmail, "ada@example.com"}, {KindUsername, "ada@example.com"}}},
		{"", "", "+49 1511 2345678", []Candidate{{KindMobileNumber, "+4915112345678"}, {KindUsername, "+49 1511 2345678"}}},
		{"", "", " Ada  Straße ", []Candidate{{KindUsername, "ada  strasse"}}}, // of a custom field
		{KindUsername, "", " ", nil},
		{"", "", "Countess", []Candidate{{KindUsername, "countess"}}},
		{KindProviderUserID, "google", "1095", []Candidate{{KindProviderUserID, "google\x001095"}}},
		{KindEmail, "", "Countess", nil},
	} {
		if diff := cmp.Diff(tt.want, Candidates(tt.kind, tt.provider, tt.value)); diff != "" {
			t.Errorf("Candidates(%s, %q) (-want +got):\n%s", tt.kind, tt.value, diff)
		}
	}
}
