package remote

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
	"accountledger/domain"
	"accountledger/projections/webhooks"
)

func webhooksCommand() *cobra.Command {
	return serverCommand("webhooks", "Manage webhooks and their deliveries",
		`Register, change, pause and delete the webhooks of a running server, show their
deliveries, and send events again.`,
		webhooksListCommand(), webhooksGetCommand(), webhooksCreateCommand(), webhooksUpdateCommand(),
		webhooksStateCommand("pause", domain.WebhookPaused, "Pause a webhook", `Pause a webhook. Its events wait until it is resumed.`),
		webhooksStateCommand("resume", domain.WebhookEnabled, "Resume a webhook", `Resume a paused or disabled webhook. Delivery continues where it stopped.`),
		webhooksStateCommand("disable", domain.WebhookDisabled, "Disable a webhook", `Disable a webhook. Its events wait, as those of a paused webhook do.`),
		webhooksDeleteCommand(), webhooksRotateCommand(), webhooksTestCommand(), webhooksVerifyCommand(),
		webhooksDeliveriesCommand(), webhooksLanesCommand(), webhooksResendCommand(),
		webhooksRecoverCommand(), webhooksReplayCommand(), webhooksReplaysCommand(), webhooksCancelReplayCommand())
}

// webhookPath returns the path of the webhook id, followed by more.
func webhookPath(id, more string) string { return "/v1/webhooks/" + url.PathEscape(id) + more }

type webhookList struct {
	Webhooks []webhooks.Endpoint `json:"webhooks"`
}

// completionTimeout is how long a shell completion waits for the server.
const completionTimeout = 2 * time.Second

// webhookIDs completes the first argument with the ids of the server's webhooks,
// or with nothing if the server cannot be reached.
func webhookIDs(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	c, err := cli.Load(cmd)
	if len(args) > 0 || err != nil || c.Server == "" {
		return nil, none
	}
	server, err := NewClient(c)
	if err != nil {
		return nil, none
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	var list webhookList
	if err := server.Call(ctx, "GET", "/v1/webhooks", nil, &list); err != nil {
		return nil, none
	}
	var ids []string
	for _, w := range list.Webhooks {
		ids = append(ids, cobra.CompletionWithDesc(w.WebhookID, host(w.URL)))
	}
	return ids, none
}

// host returns the host of a webhook's URL. The rest of the URL may be secret.
func host(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return cli.Printable(u.Host)
}

// onWebhook returns a command whose first argument is the id of a webhook.
func onWebhook(use, short, long string) *cobra.Command {
	use += " "
	name, arguments, _ := strings.Cut(use, " ")
	arguments = strings.TrimSpace("ID " + arguments)
	return &cobra.Command{Use: name + " " + arguments, Short: short, Long: long,
		Args: cobra.ExactArgs(len(strings.Fields(arguments))), ValidArgsFunction: webhookIDs}
}

func webhooksListCommand() *cobra.Command {
	return onServer(&cobra.Command{
		Use:   "list",
		Short: "List the webhooks and the state of their deliveries",
		Long: `List the webhooks, oldest first, and the state of their deliveries: the number
of events in the log that are not settled (backlog), of accounts that wait
because the receiver refused their next event (waiting), and of events given up
(dead).`,
		Args: cobra.NoArgs,
	}, func(ctx context.Context, s *session, _ []string) error {
		return ask(ctx, s, get("/v1/webhooks"), func(list webhookList) {
			var rows [][]any
			for _, w := range list.Webhooks {
				rows = append(rows, []any{w.WebhookID, w.State, w.URL, strings.Join(w.Events, ", "), w.Backlog, w.Lanes, w.DeadLetters, w.LastSuccessTime})
			}
			s.out.Table([]any{"webhook", "state", "url", "events", "backlog", "waiting", "dead", "last success"}, rows)
		})
	})
}

// webhook prints the settings of a webhook.
func (c printer) webhook(w webhooks.Endpoint) {
	c.Properties("webhook", w.WebhookID, "url", w.URL, "description", w.Description, "state", w.State, "reason", w.StateReason,
		"events", strings.Join(w.Events, ", "), "format", w.Format, "payload", w.Payload, "preset", w.Preset, "order", w.Order, "dead letters", w.DeadLetter,
		"authenticates", w.Auth.Type, "created", w.CreatedTime, "revision", int64(w.Revision))
	var keys [][]any
	for _, k := range w.Keys {
		keys = append(keys, []any{k.KeyID, k.Type, k.Fingerprint, k.NotAfter})
	}
	c.Section([]any{"key", "type", "fingerprint", "signs until"}, keys)
}

func webhooksGetCommand() *cobra.Command {
	return onServer(onWebhook("get", "Show a webhook", `Show the settings of a webhook and the state of its deliveries.`), func(ctx context.Context, s *session, args []string) error {
		return ask(ctx, s, get(webhookPath(args[0], "")), func(w webhooks.Endpoint) {
			s.out.webhook(w)
			breaker := w.Breaker.State
			if w.Breaker.Reason != "" {
				breaker += ", " + w.Breaker.Reason
			}
			s.out.Printf("\n")
			s.out.Properties("position", int64(w.Position), "backlog", w.Backlog, "waiting", w.Lanes, "blocked", w.Blocked, "given up", w.DeadLetters,
				"breaker", breaker, "until", w.Breaker.Until, "failing since", w.FailingSince, "last success", w.LastSuccessTime)
		})
	})
}

// secretWebhook is a webhook with a new secret, which is shown only once.
type secretWebhook struct {
	webhooks.Endpoint
	Secret string `json:"secret"`
}

// writeSecret sends r, whose answer has a secret, and gives the secret to f.
func writeSecret(ctx context.Context, s *session, w *writeFlags, f secretFile, r request) error {
	if err := f.check(s); err != nil {
		return err
	}
	var failed error
	err := write(ctx, s, w, r, func(made secretWebhook) {
		s.out.webhook(made.Endpoint)
		var shown string
		shown, failed = f.keep(made.Secret)
		s.out.Printf("\n")
		s.out.Properties("secret", shown)
	})
	if err == nil {
		err = failed
	}
	return err
}

func webhooksCreateCommand() *cobra.Command {
	var w writeFlags
	var f secretFile
	cmd := &cobra.Command{
		Use:   "create FILE",
		Short: "Register a webhook",
		Long: `Register a webhook with the JSON in FILE, or on standard input if FILE is -. It
has the form of the body of POST /v1/webhooks:

  {"url":"https://crm.example/hook","events":["USER_*"]}

The command prints the secret that signs the deliveries. This is the only time
it is shown.`,
		Args: cobra.ExactArgs(1),
	}
	w.add(cmd.Flags())
	f.add(cmd.Flags(), "secret")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		body, err := s.read(args[0])
		if err != nil {
			return err
		}
		return writeSecret(ctx, s, &w, f, w.request("POST", "/v1/webhooks", body))
	})
}

func webhooksUpdateCommand() *cobra.Command {
	var w writeFlags
	cmd := onWebhook("update FILE", "Change the settings of a webhook", `Change the settings of a webhook with the JSON merge patch (RFC 7396) in FILE,
or on standard input if FILE is -. null resets a setting to its default:

  {"events":["USER_CREATED"],"description":null}`)
	w.add(cmd.Flags())
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		body, err := s.read(args[1])
		if err != nil {
			return err
		}
		return write(ctx, s, &w, w.request("PATCH", webhookPath(args[0], ""), body), s.out.webhook)
	})
}

func webhooksStateCommand(name string, state domain.WebhookState, short, long string) *cobra.Command {
	var w writeFlags
	var reason string
	cmd := onWebhook(name, short, long)
	w.add(cmd.Flags())
	cmd.Flags().StringVar(&reason, "reason", "", "short reason; the log keeps it forever, so no personal data")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		body, err := json.Marshal(struct {
			State  domain.WebhookState `json:"state"`
			Reason string              `json:"reason,omitzero"`
		}{state, reason})
		if err != nil {
			return err
		}
		return write(ctx, s, &w, w.request("PUT", webhookPath(args[0], "/state"), body), func(e webhooks.Endpoint) {
			s.out.Properties("webhook", e.WebhookID, "state", e.State, "reason", e.StateReason)
		})
	})
}

func webhooksDeleteCommand() *cobra.Command {
	var w writeFlags
	var sure bool
	cmd := onWebhook("delete", "Delete a webhook", `Delete a webhook. The server destroys its secrets and sends none of the events
that wait. The command asks for confirmation, unless --yes is set.`)
	w.add(cmd.Flags())
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask for confirmation")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		if err := s.confirm(sure || w.dryRun, "Delete the webhook %s?", cli.Printable(args[0])); err != nil {
			return err
		}
		return write(ctx, s, &w, w.request("DELETE", webhookPath(args[0], ""), nil), func(struct{}) {
			s.out.Printf("deleted %s\n", cli.Printable(args[0]))
		})
	})
}

func webhooksRotateCommand() *cobra.Command {
	var w writeFlags
	var f secretFile
	var kind, given string
	var overlap time.Duration
	var all bool
	cmd := onWebhook("rotate-secret", "Replace the signing key of a webhook", `Create a new signing key and print its secret. This is the only time it is
shown. The previous key of the same type also signs for a while, so that the
receiver can switch.`)
	w.add(cmd.Flags())
	f.add(cmd.Flags(), "secret")
	cmd.Flags().StringVar(&kind, "type", "", "type of the key: v1 (HMAC-SHA256) or v1a (Ed25519); default v1")
	cmd.RegisterFlagCompletionFunc("type", complete(string(domain.KeyHMAC), string(domain.KeyEd25519)))
	cmd.Flags().DurationVar(&overlap, "overlap", 24*time.Hour, "how long the previous key also signs, up to 720h")
	cmd.Flags().BoolVar(&all, "all", false, "replace the keys of all types")
	cmd.Flags().StringVar(&given, "secret-file", "", "file with a secret to use instead of a new one")
	return onServer(cmd, func(ctx context.Context, s *session, args []string) error {
		secret := ""
		if given != "" {
			text, err := s.read(given)
			if err != nil {
				return err
			}
			secret = strings.TrimSpace(string(text))
		}
		body, err := json.Marshal(struct {
			Type    string `json:"type,omitzero"`
			Overlap int64  `json:"overlap"`
			Secret  string `json:"secret,omitzero"`
			All     bool   `json:"all,omitzero"`
		}{kind, int64(overlap.Seconds()), secret, all})
		if err != nil {
			return err
		}
		return writeSecret(ctx, s, &w, f, w.request("POST", webhookPath(args[0], "/rotate-secret"), body))
	})
}

// probe prints a receiver's response to a test or a verification.
func (c printer) probe(p webhooks.Probe) {
	c.Properties("accepted", yes(p.OK), "status", p.Status, "error", p.Error, "took", fmt.Sprintf("%.0f ms", p.DurationMs), "response", p.Response)
}

func webhooksTestCommand() *cobra.Command {
	return onServer(onWebhook("test", "Send a test event to a webhook", `Send a WEBHOOK_TEST event to a webhook, in the format of its deliveries and
signed like them, and show the receiver's response.`), func(ctx context.Context, s *session, args []string) error {
		return ask(ctx, s, post(webhookPath(args[0], "/test")), s.out.probe)
	})
}

func webhooksVerifyCommand() *cobra.Command {
	return onServer(onWebhook("verify", "Ask a receiver whether it accepts deliveries", `Ask a webhook's receiver whether it accepts deliveries, with the handshake of
the CloudEvents webhook specification, and show its response.`), func(ctx context.Context, s *session, args []string) error {
		return ask(ctx, s, post(webhookPath(args[0], "/verify")), func(v struct {
			Answer  webhooks.Probe    `json:"answer"`
			Webhook webhooks.Endpoint `json:"webhook"`
		}) {
			s.out.probe(v.Answer)
			s.out.Properties("state", v.Webhook.State)
		})
	})
}

// post returns a POST request that the client sends only once, because the
// server repeats its effect each time.
func post(path string) request { return request{method: "POST", path: path, revision: -1} }
