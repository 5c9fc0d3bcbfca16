package importer

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestParseMapping(t *testing.T) {
	t.Parallel()
	const good = "source: s\nkey: /id\nidentities:\n  - provider: self\n    email: /mail\n"
	for _, tt := range []struct{ name, file, want string }{
		{"good", good, ""},
		{"empty", "", "the file is empty"},
		{"not YAML", "source: [", "yaml: line 1"},
		{"unknown member", good + "ignored: [/x]\n", `line 6: mapping: unknown member "ignored"`},
		{"member twice", good + "source: t\n", `line 6: mapping: duplicate member "source"`},
		{"no source", "key: /id\nidentities: [{provider: self}]\n", "line 1: mapping: source is required"},
		{"no key", "source: s\nidentities: [{provider: self}]\n", "line 1: mapping: either key or sub is required"},
		{"key and sub", good + "sub: /uuid\n", "line 1: mapping: either key or sub is required"},
		{"no identities", "source: s\nkey: /id\n", "identities is required"},
		{"no provider", "source: s\nkey: /id\nidentities:\n  - email: /mail\n", "line 4: identities[0]: provider is required"},
		{"misspelled profile member", good + "    emial: /mail\n", "line 6: identities[0].emial: unknown member of an identity"},
		{"misspelled address member", good + "    address: {city: /c}\n", "line 6: identities[0].address.city: unknown member of an identity"},
		{"misspelled field option", good + "    username: {form: /x}\n", `line 6: identities[0].username: unknown member "form"`},
		{"from and value", good + "    username: {from: /x, value: y}\n", "line 6: identities[0].username: either from or value is required"},
		{"list without join", good + "    nickname: {from: [/x, /y]}\n", "line 6: identities[0].nickname: join is required with several pointers"},
		{"not a pointer", good + "    nickname: {from: x}\n", "line 6: identities[0].nickname.from: must be a JSON pointer"},
		{"unknown transform", good + "    nickname: {from: /x, transform: [upper]}\n", "line 6: identities[0].nickname.transform.upper: unknown transform"},
		{"argument for trim", good + "    nickname: {from: /x, transform: [{trim: 1}]}\n", "takes no argument"},
		{"lookup without table", good + "    nickname: {from: /x, transform: [lookup]}\n", "requires a table"},
		{"unknown order", good + "    birthdate: {from: /x, transform: [{date: ydm}]}\n", "must be one of ymd, dmy, mdy"},
		{"unknown region", good + "    mobile_number: {from: /x, transform: [{phone: Germany}]}\n", "must be a region"},
		{"unknown policy", good + "    nickname: {from: /x, onInvalid: ignore}\n", "line 6: identities[0].nickname.onInvalid: must be fail, drop"},
		{"keep elsewhere", good + "    nickname: {from: /x, onInvalid: {keep: nickname}}\n", "must be {keep: customFields.<key>}"},
		{"keep written twice", good + "    nickname: {from: /x, onInvalid: {keep: customFields.a}}\ncustomFields: {a: /y}\n", "customFields.a: the mapping must write a field only once"},
		{"keep of many", good + "  - each: /l\n    provider: x\n    nickname: {from: /x, onInvalid: {keep: customFields.a}}\n", "line 8: identities[1].nickname: keep cannot be used with each"},
		{"unknown origin", good + "origin: import\n", "line 6: origin: must be one of imported"},
		{"format", good + "format: xml\n", "line 6: format: must be one of json, ndjson, csv"},
		{"delimiter", good + "delimiter: ';;'\n", "line 6: delimiter: must be one character"},
		{"ignore", good + "ignore: /password\n", "line 6: ignore: must be a list"},
		{"groups without a type", good + "groups: {members: /g}\n", "line 6: groups: members and groupType are required"},
		{"groups of the ledger's type", good + "groups: {members: /g, groupType: SYSTEM}\n", "line 6: groups.groupType: must not be a system group type"},
		{"definitions without a name", good + "groups: {members: /g, groupType: G, definitions: /groups}\n", "definitions requires name"},
		{"misspelled member of groups", good + "groups: {member: /g}\n", `line 6: groups: unknown member "member"`},
		{"roles without members", good + "roles: {definitions: /r, name: /name}\n", "line 6: roles: members is required"},
		{"misspelled member of roles", good + "roles: {members: /r, below: /b}\n", `line 6: roles: unknown member "below"`},
		{"several faults", good + "    emial: /mail\nignored: []\n", "line 6: identities[0].emial: unknown member of an identity; line 7: mapping: unknown"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := ParseMapping([]byte(tt.file))
			if got := fmt.Sprint(err); tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(got, tt.want)) {
				t.Errorf("ParseMapping = %v, %v, want an error with %q", m, err, tt.want)
			}
		})
	}
}

func TestTransforms(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		transform, text string
		want            any // nil: refused
	}{
		{"trim", "  Ada ", "Ada"},
		{"lower", "ADA", "ada"},
		{"[trim, lower]", " ADA ", "ada"},
		{"date", "1996-5-30", "1996-05-30"},
		{"date", "1996/05/30", "1996-05-30"},
		{"date", "1996.5.3", "1996-05-03"},
		{"date", "19960530", "1996-05-30"},
		{"date", "1996-05-30T00:00:00.000Z", "1996-05-30"},
		{"date", "1996-05-30 00:00:00+00:00", "1996-05-30"},
		{"date", "1996-05-30T23:00:00Z", nil}, // the time of day would be lost, and the day may be the next one in local time
		{"date", "30.5.1996", nil},
		{"date", "1996-02-30", nil},
		{"date", "96-5-30", nil},
		{"date", "tomorrow", nil},
		{"{date: dmy}", "30.5.1996", "1996-05-30"},
		{"{date: dmy}", "3/4/1996", "1996-04-03"},
		{"{date: mdy}", "3/4/1996", "1996-03-04"},
		{"{date: mdy}", "1996-05-30", "1996-05-30"}, // a first part with four digits is the year
		{"{date: dmy}", "30.5.96", nil},
		{"phone", "+81 90-5252-7319", "+819052527319"},
		{"phone", "0049 (151) 1234 5678", "+4915112345678"},
		{"phone", "0151 12345678", nil},
		{"{phone: DE}", "0151 12345678", "+4915112345678"},
		{"{phone: DE}", "+1 202 555 0143", "+12025550143"},
		{"{phone: DE}", "call me", nil},
		{"[{lookup: {true: VERIFIED, m: male}}]", "true", "VERIFIED"},
		{"[{lookup: {true: VERIFIED, m: male}}]", "female", nil},
		{"json", "12.50", "12.50"},
		{"json", "true", true},
		{"json", "1 2", nil},
		{"json", "{", nil},
		{"json", "abc", nil},
	} {
		m, err := ParseMapping([]byte("source: s\nkey: /id\nidentities: [{provider: self}]\ncustomFields: {x: {from: /x, transform: " + tt.transform + "}}\n"))
		check(t, err)
		value, _, _, err := m.customFields[0].read(map[string]any{"x": tt.text})
		if text, isText := tt.want.(string); isText {
			if got, _ := textOf(value); got != text || err != nil {
				t.Errorf("%s of %q = %v, %v, want %v", tt.transform, tt.text, value, err, tt.want)
			}
		} else if (err == nil) != (tt.want != nil) || err == nil && value != tt.want {
			t.Errorf("%s of %q = %v, %v, want %v", tt.transform, tt.text, value, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), tt.text) {
			t.Errorf("the error of %s shows the value: %v", tt.transform, err)
		}
	}
}

func TestParseTime(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ text, want string }{
		{"2020-05-07T22:01:28.123456789+02:00", "2020-05-07T20:01:28.123456Z"},
		{"1588888888", "2020-05-07T22:01:28Z"},
		{"1588888888123", "2020-05-07T22:01:28.123Z"},
		{"2026-11-22T12:00:01Z", ""}, // a second after now
		{"99999999999999999", ""},
		{"yesterday", ""},
	} {
		got, err := parseTime(tt.text, now())
		if (err == nil) != (tt.want != "") || err == nil && got.Format(time.RFC3339Nano) != tt.want {
			t.Errorf("parseTime(%q) = %v, %v, want %q", tt.text, got, err, tt.want)
		}
	}
}

func TestDecimal(t *testing.T) {
	t.Parallel()
	for _, same := range [][]string{{"0", "-0", "0.000", "0e99999999999999999999"}, {"1.10", "1.1", "11e-1", "0.11E1"}, {"100", "1e2", "1E+2"}, {"-1.5"}, {"1e999999999"}} {
		for _, number := range same {
			if decimal(number) != decimal(same[0]) {
				t.Errorf("decimal(%s) differs from decimal(%s)", number, same[0])
			}
		}
	}
	if decimal("9007199254740993") == decimal("9007199254740992") || decimal("1") == decimal("10") || decimal("1") == decimal("-1") {
		t.Error("decimal is the same for different numbers")
	}
}
