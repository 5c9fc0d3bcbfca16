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

// healthTimeout is how long a server may take to say how it is.
const healthTimeout = 5 * time.Second

func healthCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask the server on this machine whether it is ready",
		Long: `Ask the server whether it answers and its views have caught up, as GET /readyz
says: exit code 0 if so, else 1. It is asked at the address of --listen, on this
machine, or at --server. It is for a container's health check, and needs no key.`,
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
			// It asks itself and tells nothing: whose name the certificate has
			// does not matter, and 127.0.0.1 it is not.
			trust := &tls.Config{InsecureSkipVerify: c.Server == ""}
			if c.Server != "" && c.CAFile != "" {
				if trust, err = trusting(c.CAFile); err != nil {
					return err
				}
			}
			asks := &http.Client{Timeout: healthTimeout, Transport: &http.Transport{TLSClientConfig: trust, DisableKeepAlives: true}}
			response, err := asks.Do(request)
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

// healthURL is where the server says how it is: one that listens on all
// addresses is asked at that of this machine.
func healthURL(c cli.Config) (string, error) {
	if c.Server != "" {
		return strings.TrimRight(c.Server, "/") + "/readyz", nil
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return "", cli.Usagef("listen is %q; write host:port", c.Listen)
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
