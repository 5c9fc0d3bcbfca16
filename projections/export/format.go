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

// writer writes accounts in one format.
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
			buffer.Write(row.JSON) // bufio keeps an error and returns it from later calls
			return buffer.WriteByte('\n')
		},
		flush: buffer.Flush,
	}
}

// flatAccounts writes one JSON object per line with the columns of an account.
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

// The columns: the account's sub, the members of its first identity, which is the
// primary one, then the account's other members. A test compares them with the
// domain's types.
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

	// Columns lists the names of all columns in the order of CSV.
	Columns = slices.Concat([]string{"sub"}, ofIdentity, ofAccount)
)

// flat returns an account's values for columns; a missing value is empty.
func flat(row projections.AccountRow, columns []string) ([]jsontext.Value, error) {
	var account map[string]jsontext.Value
	var identities []map[string]jsontext.Value
	err := json.Unmarshal(row.JSON, &account)
	if err == nil && len(account["identities"]) > 0 {
		err = json.Unmarshal(account["identities"], &identities)
	}
	if err != nil {
		return nil, fmt.Errorf("export: account %s: %T", row.Sub, err) // only the type: a JSON error may quote personal data
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

// csvAccounts writes RFC 4180: strings as they are, other values as JSON, and
// missing values as empty fields.
func csvAccounts(w io.Writer, columns []string) writer {
	out := csv.NewWriter(w)
	record := make([]string, len(columns))
	headerErr := out.Write(columns) // flush returns it
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
			return errors.Join(headerErr, out.Error())
		},
	}
}

// text returns the text of a JSON string, and the JSON of any other value.
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
