package remote

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/httpapi"
)

func keysCommand() *cobra.Command {
	return serverCommand("keys", "List, create, change and revoke API keys",
		`List, create, change and revoke the API keys of a running server. The first key,
the admin key, is not among them: 'accountledger admin-key' replaces it in the
data directory.`,
		keysListCommand(), keysCreateCommand(), keysUpdateCommand(), keysRevokeCommand())
}

func (c printer) keys(list ...httpapi.APIKey) {
	var rows [][]any
	for _, k := range list {
		rows = append(rows, []any{k.KeyID, k.Name, strings.Join(k.Scopes, " "), k.CreatedTime, k.ExpiresTime, k.LastUsedTime})
	}
	c.Table([]any{"key", "name", "scopes", "created", "expires", "last used"}, rows)
}

func keysListCommand() *cobra.Command {
	return onServer(&cobra.Command{
		Use:   "list",
		Short: "List the API keys",
		Long: `List the API keys that were not revoked, oldest first. The time of the last use
is updated at most once an hour.`,
		Args: cobra.NoArgs,
	}, func(ctx context.Context, s *session, _ []string) error {
		return ask(ctx, s, get("/v1/api-keys"), func(list struct {
			APIKeys []httpapi.APIKey `json:"apiKeys"`
		}) {
			s.out.keys(list.APIKeys...)
		})
	})
}

// keyFlags are the properties of an API key.
type keyFlags struct {
	name    string
	scopes  []string
	expires timeValue
}

func (f *keyFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.name, "name", "", "name of the key; the log keeps it forever, so no personal data")
	cmd.Flags().StringSliceVar(&f.scopes, "scope", nil, "scopes of the key: "+strings.Join(httpapi.Scopes(), ", "))
	cmd.RegisterFlagCompletionFunc("scope", complete(httpapi.Scopes()...))
	timeFlag(cmd.Flags(), &f.expires, "expires", 1, "when the key expires; default never")
}

// body returns a request with the properties that are set.
func (f *keyFlags) body() ([]byte, error) {
	return json.Marshal(struct {
		Name    string    `json:"name,omitzero"`
		Scopes  []string  `json:"scopes,omitempty"`
		Expires time.Time `json:"expiresTime,omitzero"`
	}{f.name, f.scopes, f.expires.Time})
}

func keysCreateCommand() *cobra.Command {
	var w writeFlags
	var f keyFlags
	var kept secretFile
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create an API key",
		Long: `Create an API key and print it. The server stores only a hash of the key, so
this is the only time it is shown. You can grant only scopes that your own key
has.`,
		Args: cobra.NoArgs,
	}
	w.add(cmd.Flags())
	f.add(cmd)
	kept.add(cmd.Flags(), "key")
	cmd.MarkFlagRequired("name")
	cmd.MarkFlagRequired("scope")
	return onServer(cmd, func(ctx context.Context, s *session, _ []string) error {
		if err := kept.check(s); err != nil {
			return err
		}
		body, err := f.body()
		if err != nil {
			return err
		}
		var failed error
		err = write(ctx, s, &w, w.request("POST", "/v1/api-keys", body), func(made struct {
			httpapi.APIKey
			Key string `json:"key"`
		}) {
			s.out.keys(made.APIKey)
			if made.Key == "" {
				failed = fmt.Errorf("an earlier request with this idempotency key created the key %s, and only its answer contained the key itself; if that is lost, revoke the key and create another", cli.Printable(made.KeyID))
				return
			}
			var shown string
			shown, failed = kept.keep(made.Key)
			s.out.Printf("\n")
			s.out.Properties("key", shown)
		})
		return errors.Join(err, failed)
	})
}

// keyPath returns the path of an API key.
func keyPath(id string) string { return "/v1/api-keys/" + url.PathEscape(id) }

func keysUpdateCommand() *cobra.Command {
	var w writeFlags
	var f keyFlags
	var forever bool
	cmd := &cobra.Command{
		Use:   "update KEY",
		Short: "Change the name, scopes or expiry of an API key",
		Long: `Change the name, the scopes or the expiry of the API key with the id KEY. Scopes
replace all scopes the key has.`,
		Args: cobra.ExactArgs(1),
	}
	w.add(cmd.Flags())
	f.add(cmd)
	cmd.Flags().BoolVar(&forever, "no-expiry", false, "let the key never expire")
	cmd.MarkFlagsMutuallyExclusive("expires", "no-expiry")
	cmd.MarkFlagsOneRequired("name", "scope", "expires", "no-expiry")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		body, err := f.body()
		if forever {
			body, err = json.Marshal(struct {
				Name    string     `json:"name,omitzero"`
				Scopes  []string   `json:"scopes,omitempty"`
				Expires *time.Time `json:"expiresTime"`
			}{f.name, f.scopes, nil})
		}
		if err != nil {
			return err
		}
		return write(ctx, s, &w, w.request("PATCH", keyPath(args[0]), body), func(k httpapi.APIKey) { s.out.keys(k) })
	})
}

func keysRevokeCommand() *cobra.Command {
	var w writeFlags
	var sure bool
	cmd := &cobra.Command{
		Use:   "revoke KEY",
		Short: "Revoke an API key",
		Long: `Revoke the API key with the id KEY, immediately and permanently. The command
asks for confirmation, unless --yes is set.`,
		Args: cobra.ExactArgs(1),
	}
	w.add(cmd.Flags())
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask for confirmation")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := s.confirm(sure || w.dryRun, "Revoke the key %s?", cli.Printable(args[0])); err != nil {
			return err
		}
		return write(ctx, s, &w, w.request("DELETE", keyPath(args[0]), nil), func(struct{}) {
			s.out.Printf("revoked %s\n", cli.Printable(args[0]))
		})
	})
}
