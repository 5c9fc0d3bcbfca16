package remote

import (
	"context"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/projections"
)

// searchFlags are the conditions of a search.
type searchFlags struct {
	texts      map[string]*string    // by member of the request
	times      map[string]*timeValue // by member of the request
	identifier [3]string             // the identifier, its type and its provider
	fields     []string              // key=value
	file       string
}

func (f *searchFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	f.texts, f.times = map[string]*string{}, map[string]*timeValue{}
	text := func(member, usage string, values ...string) {
		f.texts[member] = flags.String(member, "", usage)
		if values != nil {
			cmd.RegisterFlagCompletionFunc(member, complete(values...))
		}
	}
	const personal = " (personal data)"
	text("status", "accounts with this status", names(domain.Statuses)...)
	text("group", "members of this group or of a group below it")
	text("role", "accounts with this role, in the group or in any group")
	text("provider", "accounts with an identity of this provider")
	for _, of := range []struct{ member, name, what string }{
		{"created", "created", "created"}, {"updated", "updated", "changed last"}, {"lastLogin", "last-login", "that logged in last"},
	} {
		for _, end := range []struct{ member, name, what string }{{"From", "-from", "at this time or later"}, {"To", "-to", "before this time"}} {
			t := new(timeValue)
			f.times[of.member+end.member] = t
			timeFlag(flags, t, of.name+end.name, -1, "accounts "+of.what+" "+end.what)
		}
	}
	text("q", "prefixes of words in a name or an e-mail address; all must match"+personal)
	text("name", "prefixes of words in a name; all must match"+personal)
	text("email", "prefix of an e-mail address"+personal)
	flags.StringVar(&f.identifier[0], "identifier", "", "complete identifier: e-mail address, mobile number or username"+personal)
	flags.StringVar(&f.identifier[1], "identifier-type", "", "type of the identifier: email, mobile_number, username, providerUserId or sub")
	flags.StringVar(&f.identifier[2], "identifier-provider", "", "provider, if the identifier is a providerUserId")
	cmd.RegisterFlagCompletionFunc("identifier-type", complete("email", "mobile_number", "username", "providerUserId", "sub"))
	flags.StringArrayVar(&f.fields, "field", nil, `custom field as key=value; value is JSON, like {"from":10}, or plain text`+personal)
	text("sort", "createdTime, updatedTime, lastLoggedInTime or name", names(projections.Sorts)...)
	text("order", "asc or desc; default latest first, and names from A to Z", "asc", "desc")
	flags.StringVar(&f.file, "query-file", "", "file with the body of POST /v1/accounts/search, - for standard input; flags add to it")
}

// names converts values to strings.
func names[S ~string](values []S) []string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = string(v)
	}
	return all
}

// query returns the members of the request, without those of the page.
func (f *searchFlags) query(s *session) (map[string]any, error) {
	q := map[string]any{}
	if f.file != "" {
		text, err := s.read(f.file)
		if err != nil {
			return nil, err
		}
		var members map[string]jsontext.Value
		if err := json.Unmarshal(text, &members); err != nil {
			return nil, cli.Usagef("query-file: %s is not a JSON object", f.file) // err might quote personal data
		}
		for name, value := range members {
			q[name] = value
		}
	}
	for member, value := range f.texts {
		if *value != "" {
			q[member] = *value
		}
	}
	for member, value := range f.times {
		if !value.IsZero() {
			q[member] = value.Time
		}
	}
	if f.identifier != [3]string{} {
		identifier := map[string]string{"identifier": f.identifier[0]}
		for i, member := range []string{"type", "provider"} {
			if value := f.identifier[1+i]; value != "" {
				identifier[member] = value
			}
		}
		q["identifier"] = identifier
	}
	if len(f.fields) > 0 {
		fields := map[string]any{}
		for _, field := range f.fields {
			key, value, ok := strings.Cut(field, "=")
			if !ok {
				return nil, cli.Usagef("field must be key=value")
			}
			if fields[key] = value; jsontext.Value(value).IsValid() {
				fields[key] = jsontext.Value(value)
			}
		}
		q["customFields"] = fields
	}
	return q, nil
}

// foundPage is a page of accounts.
type foundPage struct {
	Accounts []domain.Account `json:"accounts"`
	Count    struct {
		Value int64 `json:"value"`
		Exact bool  `json:"exact"`
	} `json:"count"`
	Next *string `json:"next"`
}

func accountsSearchCommand() *cobra.Command {
	var f searchFlags
	var p pageFlags
	cmd := &cobra.Command{
		Use:   "search",
		Short: "List and search accounts",
		Long: `List or search accounts. An account must match all conditions. Without
conditions, the command lists all accounts except those merged into others.

The shell's history keeps the values of flags marked as personal data, and other
processes can read them while the command runs. To avoid that, pass the search
on standard input with --query-file -:

  accountledger accounts search --query-file - <<< '{"q":"lovelace ada@ex"}'`,
		Args: cobra.NoArgs,
	}
	f.add(cmd)
	p.add(cmd.Flags(), "accounts")
	return onServer(cmd, func(ctx context.Context, s *session, _ []string) error {
		query, err := f.query(s)
		if err != nil {
			return err
		}
		if _, err := json.Marshal(query); err != nil {
			return cli.Usagef("the search is not valid UTF-8")
		}
		found := func(after string, limit int) request {
			if after != "" {
				query["after"] = after
			}
			if limit != 0 {
				query["limit"] = limit
			}
			body, err := json.Marshal(query)
			if err != nil {
				panic("accounts search: " + err.Error()) // query was marshalled before
			}
			return request{method: "POST", path: "/v1/accounts/search", body: body, revision: -1, repeatable: true}
		}
		first := true
		return pages(ctx, s, p, found, func(page foundPage) *string {
			var rows [][]any
			for _, a := range page.Accounts {
				rows = append(rows, []any{a.Sub, a.Status, firstName(a), firstEmail(a), a.CreatedTime, a.LastLoggedInTime})
			}
			if len(rows) > 0 {
				s.out.Table([]any{"sub", "status", "name", "e-mail", "created", "last login"}, rows)
			}
			if first {
				first = false
				most := ""
				if !page.Count.Exact {
					most = "at most "
				}
				s.out.Note("accounts: %s%d", most, page.Count.Value)
			}
			return page.Next
		})
	})
}

// firstName returns the name under which an account is listed.
func firstName(a domain.Account) string {
	for _, i := range a.Identities {
		if name := personName(i.Profile); name != "" {
			return name
		}
	}
	return ""
}

func firstEmail(a domain.Account) string {
	for _, u := range a.UserIDs {
		if u.Type == domain.KindEmail {
			return u.Value
		}
	}
	return ""
}
