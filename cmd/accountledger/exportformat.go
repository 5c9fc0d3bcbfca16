package main

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/projections"
)

// accountWriter writes accounts in a format.
type accountWriter struct {
	write func(projections.AccountRow) error
	flush func() error
}

var accountFormats = map[string]func(io.Writer) accountWriter{
	"ndjson": ndjsonAccounts,
	"csv":    csvAccounts,
}

func ndjsonAccounts(w io.Writer) accountWriter {
	buffer := bufio.NewWriterSize(w, 64<<10)
	return accountWriter{
		write: func(row projections.AccountRow) error {
			buffer.Write(row.JSON) // an error stays until Flush
			return buffer.WriteByte('\n')
		},
		flush: buffer.Flush,
	}
}

// The columns of an account as CSV: the members of its primary identity, which
// is the first, and then its own. A test holds them to the domain's types.
var (
	csvIdentity = []string{
		"provider", "given_name", "family_name", "middle_name", "nickname", "email", "email_verified", "mobile_number", "mobile_number_verified",
		"username", "locale", "zoneinfo", "birthdate", "gender", "picture", "website", "address",
	}
	csvAccount = []string{
		"userStatus", "user_status_reason", "createdTime", "updatedTime", "lastLoggedInTime", "lastUsedIdentity", "erasedTime",
		"identities", "userIds", "customFields", "fieldClaims", "groups", "consents", "schedules", "deletion", "combinedInto", "combinedFrom",
		"revision", "position",
	}
)

// csvAccounts writes RFC 4180: a string is itself, anything else is JSON, and
// what an account does not have is empty.
func csvAccounts(w io.Writer) accountWriter {
	out := csv.NewWriter(w)
	header := slices.Concat([]string{"sub"}, csvIdentity, csvAccount)
	record := make([]string, 0, len(header))
	failed := out.Write(header) // into a buffer: an error comes with flush
	return accountWriter{
		write: func(row projections.AccountRow) error {
			var account map[string]jsontext.Value
			var identities []map[string]jsontext.Value
			err := json.Unmarshal(row.JSON, &account)
			if err == nil {
				err = json.Unmarshal(account["identities"], &identities)
			}
			if err != nil {
				return fmt.Errorf("account %s: %T", row.Sub, err) // it may quote what it stumbled over
			}
			record = append(record[:0], row.Sub)
			for _, name := range csvIdentity {
				var v jsontext.Value
				if len(identities) > 0 {
					v = identities[0][name]
				}
				record = append(record, csvCell(v))
			}
			for _, name := range csvAccount {
				record = append(record, csvCell(account[name]))
			}
			return out.Write(record)
		},
		flush: func() error {
			out.Flush()
			return errors.Join(failed, out.Error())
		},
	}
}

func csvCell(v jsontext.Value) string {
	if v.Kind() != '"' {
		return string(v)
	}
	text, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return string(v)
	}
	return string(text)
}
