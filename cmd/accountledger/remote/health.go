package remote

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accountledger/cmd/accountledger/cli"
)

// healthTimeout is how long the command waits for the server's answer.
const healthTimeout = 5 * time.Second

func healthCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Check whether the server on this machine is ready",
		Long: `Check with GET /readyz whether the server answers and its views are up to date.
The exit code is 0 if so, and 1 otherwise. The command uses the address in
--listen on this machine, or --server. It needs no key, and is meant for the
health check of a container.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			url, err := healthURL(c)
			if err != nil {
				return err
			}
			request, err := http.NewRequestWithContext(cmd.Context(), "GET", url, nil)
			if err != nil {
				return cli.Usagef("health: %w", err)
			}
			// On this machine the certificate is not verified: the request has no
			// secret, and the certificate's name is not that of this address.
			trust := &tls.Config{InsecureSkipVerify: c.Server == ""}
			if c.Server != "" && c.CAFile != "" {
				if trust, err = trusting(c.CAFile); err != nil {
					return err
				}
			}
			client := &http.Client{Timeout: healthTimeout, Transport: &http.Transport{TLSClientConfig: trust, DisableKeepAlives: true}}
			response, err := client.Do(request)
			if err != nil {
				return fmt.Errorf("health: %w", err)
			}
			defer response.Body.Close()
			text, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
			if response.StatusCode != http.StatusOK {
				return fmt.Errorf("health: %s: %s", response.Status, strings.TrimSpace(string(text)))
			}
			cli.NewConsole(cmd, c).Printf("%s\n", strings.TrimSpace(string(text)))
			return nil
		},
	}
	cli.AddSettings(cmd.Flags(), "listen", "tls-cert", "server", "ca-file")
	return cmd
}

// healthURL returns the URL of the server's readiness. If the server listens on
// all addresses, it is that of localhost.
func healthURL(c cli.Config) (string, error) {
	if c.Server != "" {
		return strings.TrimRight(c.Server, "/") + "/readyz", nil
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return "", cli.Usagef("listen is %q; it must be host:port", c.Listen)
	}
	if ip := net.ParseIP(cmp.Or(host, "0.0.0.0")); ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	scheme := "http"
	if c.TLSCert != "" {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(host, port) + "/readyz", nil
}
