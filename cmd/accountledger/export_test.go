package main

import (
	"bytes"
	"encoding/csv"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
	"accountledger/projections"
)

// TestCSVColumns holds the columns to the types whose members they are: a new
// member must not be left out of an export without anybody noticing.
func TestCSVColumns(t *testing.T) {
	members := func(types ...any) (names []string) {
		for _, v := range types {
			for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
				if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
					names = append(names, name)
				}
			}
		}
		return names
	}
	sorted := func(names []string) []string { return slices.Sorted(slices.Values(names)) }
	if diff := cmp.Diff(sorted(members(domain.Account{})), sorted(append([]string{"sub"}, csvAccount...))); diff != "" {
		t.Errorf("of an account (-member +column):\n%s", diff)
	}
	if diff := cmp.Diff(sorted(members(domain.Profile{})), sorted(csvIdentity[1:])); diff != "" {
		t.Errorf("of an identity's profile (-member +column):\n%s", diff)
	}
}

func TestCSVAccounts(t *testing.T) {
	var out bytes.Buffer
	w := csvAccounts(&out)
	for _, document := range []string{
		`{"sub":"s1","identities":[{"provider":"self","email":"a,b@example.com","email_verified":true,"family_name":"O\"Neill\nLord","address":{"country":"DE"}},{"provider":"google"}],"customFields":{"tier":"gold"},"revision":3}`,
		`{"sub":"s2","identities":[],"erasedTime":"2026-01-01T00:00:00Z","position":7}`,
	} {
		if err := w.write(projections.AccountRow{Sub: document[8:10], JSON: []byte(document)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	records, err := csv.NewReader(&out).ReadAll()
	if err != nil || len(records) != 3 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	for n, want := range []map[string]string{
		{"sub": "s1", "provider": "self", "email": "a,b@example.com", "email_verified": "true", "family_name": "O\"Neill\nLord",
			"address": `{"country":"DE"}`, "customFields": `{"tier":"gold"}`, "revision": "3", "erasedTime": "", "gender": ""},
		{"sub": "s2", "provider": "", "email_verified": "", "erasedTime": "2026-01-01T00:00:00Z", "position": "7"},
	} {
		for column, value := range want {
			if got := records[n+1][slices.Index(records[0], column)]; got != value {
				t.Errorf("%s of account %d = %q, want %q", column, n+1, got, value)
			}
		}
	}
}
