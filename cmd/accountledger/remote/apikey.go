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
	return serverCommand("keys", "List, make, change and revoke API keys",
		`List, make, change and revoke API keys of a running server. The key that was there
from the start is replaced by 'accountledger admin-key', on the data directory.`,
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
		Long: `List the API keys, oldest first, without those that were revoked. The last use is
up to an hour late.`,
		Args: cobra.NoArgs,
	}, func(ctx context.Context, s *session, _ []string) error {
		return ask(ctx, s, get("/v1/api-keys"), func(list struct {
			APIKeys []httpapi.APIKey `json:"apiKeys"`
		}) {
			s.out.keys(list.APIKeys...)
		})
	})
}

// keyFlags are what an API key can be set to.
type keyFlags struct {
	name    string
	scopes  []string
	expires timeValue
}

func (f *keyFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.name, "name", "", "what it is for; it stays in the log, so nobody's name")
	cmd.Flags().StringSliceVar(&f.scopes, "scope", nil, "what it may do: "+strings.Join(httpapi.Scopes(), ", "))
	cmd.RegisterFlagCompletionFunc("scope", complete(httpapi.Scopes()...))
	timeFlag(cmd.Flags(), &f.expires, "expires", 1, "until when it is valid; by default for good")
}

// body is what is given of them.
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
		Short: "Make an API key",
		Long: `Make an API key, which is shown this once: the server keeps a hash of it. Nobody
can grant a scope that they do not have.`,
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
				failed = fmt.Errorf("the key %s was made by the request this one repeats, and shown then, or lost: revoke it and make another", cli.Printable(made.KeyID))
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

// keyPath is where the API key of this id is.
func keyPath(id string) string { return "/v1/api-keys/" + url.PathEscape(id) }

func keysUpdateCommand() *cobra.Command {
	var w writeFlags
	var f keyFlags
	var forever bool
	cmd := &cobra.Command{
		Use:   "update KEY",
		Short: "Change the name, scopes or end of an API key",
		Long: `Change what is given of an API key; scopes take the place of those it has. KEY is
its id.`,
		Args: cobra.ExactArgs(1),
	}
	w.add(cmd.Flags())
	f.add(cmd)
	cmd.Flags().BoolVar(&forever, "no-expiry", false, "let it be valid for good")
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
		Long: `Revoke an API key, at once and for good. KEY is its id. It is asked for, unless
--yes is given.`,
		Args: cobra.ExactArgs(1),
	}
	w.add(cmd.Flags())
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := s.confirm(sure || w.dryRun, "Revoke the key %s?", cli.Printable(args[0])); err != nil {
			return err
		}
		return write(ctx, s, &w, w.request("DELETE", keyPath(args[0]), nil), func(struct{}) {
			s.out.Printf("revoked %s\n", cli.Printable(args[0]))
		})
	})
}
