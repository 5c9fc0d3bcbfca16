package export

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"accountledger/eventstore"
	"accountledger/projections"
)

// writer writes accounts in a format.
type writer struct {
	write func(projections.AccountRow) error
	flush func() error
}

func (o Options) writer(w io.Writer, at eventstore.Position) writer {
	columns := Columns
	if len(o.Fields) > 0 {
		columns = []string{"sub"}
		for _, name := range o.Fields {
			if !slices.Contains(columns, name) {
				columns = append(columns, name)
			}
		}
	}
	switch {
	case o.Format == CSV:
		return csvAccounts(w, columns)
	case o.Format == Parquet:
		return parquetAccounts(w, columns, at, o.Since)
	case len(o.Fields) > 0:
		return flatAccounts(w, columns)
	}
	return ndjsonAccounts(w)
}

func ndjsonAccounts(w io.Writer) writer {
	buffer := bufio.NewWriterSize(w, 64<<10)
	return writer{
		write: func(row projections.AccountRow) error {
			buffer.Write(row.JSON) // an error stays until Flush
			return buffer.WriteByte('\n')
		},
		flush: buffer.Flush,
	}
}

// flatAccounts writes the columns of each account as an object a line.
func flatAccounts(w io.Writer, columns []string) writer {
	out := jsontext.NewEncoder(w)
	object := make(map[string]jsontext.Value, len(columns))
	return writer{
		write: func(row projections.AccountRow) error {
			values, err := flat(row, columns)
			if err != nil {
				return err
			}
			clear(object)
			for i, v := range values {
				if len(v) > 0 {
					object[columns[i]] = v
				}
			}
			return json.MarshalEncode(out, object, json.Deterministic(true))
		},
		flush: func() error { return nil },
	}
}

// The columns of an account: its sub, the members of its primary identity,
// which is the first, and then its own. A test holds them to the domain's types.
var (
	ofIdentity = []string{
		"provider", "given_name", "family_name", "middle_name", "nickname", "email", "email_verified", "mobile_number", "mobile_number_verified",
		"username", "locale", "zoneinfo", "birthdate", "gender", "picture", "website", "address",
	}
	ofAccount = []string{
		"userStatus", "user_status_reason", "createdTime", "updatedTime", "lastLoggedInTime", "lastUsedIdentity", "erasedTime",
		"identities", "userIds", "customFields", "fieldClaims", "groups", "consents", "schedules", "deletion", "combinedInto", "combinedFrom",
		"revision", "position",
	}

	// Columns are the names of all columns, in the order of CSV.
	Columns = slices.Concat([]string{"sub"}, ofIdentity, ofAccount)
)

// flat is an account's values of columns; what it does not have is empty.
func flat(row projections.AccountRow, columns []string) ([]jsontext.Value, error) {
	var account map[string]jsontext.Value
	var identities []map[string]jsontext.Value
	err := json.Unmarshal(row.JSON, &account)
	if err == nil && len(account["identities"]) > 0 {
		err = json.Unmarshal(account["identities"], &identities)
	}
	if err != nil {
		return nil, fmt.Errorf("export: account %s: %T", row.Sub, err) // it may quote what it stumbled over
	}
	values := make([]jsontext.Value, len(columns))
	for i, name := range columns {
		switch {
		case !slices.Contains(ofIdentity, name):
			values[i] = account[name]
		case len(identities) > 0:
			values[i] = identities[0][name]
		}
	}
	return values, nil
}

// csvAccounts writes RFC 4180: a string is itself, anything else is JSON, and
// what an account does not have is empty.
func csvAccounts(w io.Writer, columns []string) writer {
	out := csv.NewWriter(w)
	record := make([]string, len(columns))
	failed := out.Write(columns) // into a buffer: an error comes with flush
	return writer{
		write: func(row projections.AccountRow) error {
			values, err := flat(row, columns)
			if err != nil {
				return err
			}
			for i, v := range values {
				record[i] = text(v)
			}
			return out.Write(record)
		},
		flush: func() error {
			out.Flush()
			return errors.Join(failed, out.Error())
		},
	}
}

// text is a string's text, and of anything else its JSON.
func text(v jsontext.Value) string {
	if v.Kind() != '"' {
		return string(v)
	}
	text, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return string(v)
	}
	return string(text)
}
