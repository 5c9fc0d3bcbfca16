package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"accountledger/cmd/accountledger/cli"
	"accountledger/httpapi"
)

// memoryLimit is the soft limit of Go's memory, unless GOMEMLIMIT sets another.
// SQLite's page caches are not included.
const memoryLimit = 120 << 20

// Limits that protect the server from slow clients and large headers. A handler
// that needs more than writeTimeout, like a stream, extends its own deadline.
const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 60 * time.Second
	writeTimeout      = 120 * time.Second
	idleTimeout       = 120 * time.Second
	maxHeaderBytes    = 64 << 10
)

func serveCommand() *cobra.Command {
	var accept cli.Accept
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server: HTTP API, views and webhooks",
		Long: `Run the server on a data directory, which it creates if there is none.

When the server is ready, it prints one line on standard output:

  accountledger listening on http://127.0.0.1:8080

It logs on standard error. On SIGINT or SIGTERM the server stops accepting
requests, finishes running requests and deliveries, signs the last state of the
log, and ends with exit code 0. A second signal ends the wait for them.

With --tls-cert and --tls-key the server uses TLS, and can listen for other
machines. It loads a new certificate when the files change. Without them it
listens only on this machine, unless --insecure-listen is set because a proxy
terminates TLS. On SIGHUP the server reads the settings again and applies the
certificate and the log level; it logs which other changes need a restart. Go's
memory has a soft limit of 120 MiB; GOMEMLIMIT sets another one.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
			c.Accept = accept
			level := new(slog.LevelVar)
			logger, err := newLogger(cmd, c, level)
			if err != nil {
				return err
			}
			reload := func() (cli.Config, error) {
				c, err := cli.Load(cmd)
				if err == nil {
					level.Set(c.LogLevel)
				}
				return c, err
			}
			return serve(cmd.Context(), c, logger, cmd.OutOrStdout(), reload)
		},
	}
	cli.AddSettings(cmd.Flags(), "data", "master-key-file", "last-signed", "listen", "insecure-listen", "debug-listen", "tls-cert", "tls-key",
		"oidc-issuer", "oidc-audience", "oidc-scope-claim", "oidc-algorithms", "oidc-clock-skew", "rate-limit", "address-rate-limit", "trusted-proxies", "cors-origins",
		"webhook-allow", "public-url", "deletion-grace",
		"import-mappings", "export-dir", "export-every", "export-format", "export-keep", "shutdown-grace", "log-format", "log-level")
	accept.AddFlags(cmd.Flags())
	return cmd
}

// newLogger returns the server's logger, whose level may change while it runs.
func newLogger(cmd *cobra.Command, c cli.Config, level *slog.LevelVar) (*slog.Logger, error) {
	if err := cli.OneOf("log-format", c.LogFormat, "text", "json"); err != nil {
		return nil, err
	}
	level.Set(c.LogLevel)
	options := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), options)), nil
	}
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), options)), nil
}

// serve runs the ledger until ctx is done or a signal arrives. On SIGHUP it calls
// reload, unless that is nil, which reads the settings again and applies them.
func serve(ctx context.Context, c cli.Config, logger *slog.Logger, stdout io.Writer, reload func() (cli.Config, error)) error {
	if err := checkServe(c); err != nil {
		return err
	}
	var tlsCertificate *certificate
	if c.TLSCert != "" {
		var err error
		if tlsCertificate, err = loadCertificate(c.TLSCert, c.TLSKey, time.Now, logger); err != nil {
			return err
		}
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	// From here on, signals do not end the process, so a start is completed or
	// undone.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)

	traces, err := newTracing(ctx, logger)
	if err != nil {
		return err
	}
	l, err := openTraced(ctx, c, logger, traces)
	if err != nil {
		return errors.Join(err, traces.close())
	}
	if reload != nil {
		defer onHangup(func() { reread(c, tlsCertificate, logger, reload) })()
	}
	err = explain(c, serveLedger(ctx, c, l, logger, stdout, signals, tlsCertificate))
	if closeErr := l.close(); closeErr != nil {
		err = errors.Join(err, closeErr)
	}
	if err := traces.close(); err != nil {
		logger.Warn("spans were lost", "err", err)
	}
	if err == nil {
		logger.Info("stopped")
	}
	return err
}

func serveLedger(ctx context.Context, c cli.Config, l *ledger, logger *slog.Logger, stdout io.Writer, signals <-chan os.Signal, tlsCertificate *certificate) error {
	if err := httpapi.Bootstrap(ctx, l.keys, l.dir.path(adminKeyFile)); err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	address := "http://" + listener.Addr().String()
	if tlsCertificate != nil {
		address = "https://" + listener.Addr().String()
		listener = tls.NewListener(listener, tlsCertificate.tlsConfig())
	}
	server := newServer(c, l, logger)
	if c.DebugListen != "" {
		stop, err := serveDebug(ctx, c.DebugListen, l.metrics, logger)
		if err != nil {
			return errors.Join(err, listener.Close())
		}
		defer stop()
	}

	// The loops run longer than the requests, which wait for them.
	loopsCtx, stopLoops := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLoops()
	loops, loopsCtx := errgroup.WithContext(loopsCtx)
	loops.Go(func() error { return l.run(loopsCtx) })
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	logger.Info("listening", "address", address, "data", c.Data, "version", version())
	fmt.Fprintf(stdout, "accountledger listening on %s\n", address)
	notify("READY=1", logger)

	var failed error
	select {
	case s := <-signals:
		logger.Info("stopping", "signal", s.String())
	case <-ctx.Done():
		logger.Info("stopping")
	case err := <-served:
		failed = fmt.Errorf("serve: %w", err)
	case <-loopsCtx.Done(): // a loop has failed; waitFor returns its error
	}
	notify("STOPPING=1", logger)
	// The whole shutdown shares one grace period; a second signal ends it.
	grace, hurry := context.WithTimeout(context.WithoutCancel(ctx), c.ShutdownGrace)
	defer hurry()
	go func() {
		select {
		case <-signals:
			logger.Warn("stopping immediately")
			hurry()
		case <-grace.Done():
		}
	}()
	if err := server.Shutdown(grace); err != nil {
		logger.Warn("aborted requests", "err", err)
		server.Close()
	}
	stopLoops()
	return errors.Join(failed, waitFor(grace, loops, logger))
}

// onHangup calls f on each SIGHUP until stop is called.
func onHangup(f func()) (stop func()) {
	hangups, done, ended := make(chan os.Signal, 1), make(chan struct{}), make(chan struct{})
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		defer close(ended)
		for {
			select {
			case <-hangups:
				f()
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(hangups)
		close(done)
		<-ended
	}
}

// reread reads the settings and the certificate again, and logs which changes
// need a restart. before are the settings the server was started with.
func reread(before cli.Config, c *certificate, logger *slog.Logger, reload func() (cli.Config, error)) {
	if c != nil {
		c.reload()
	}
	now, err := reload()
	if err != nil {
		logger.Error("cannot read the settings again", "err", err)
		return
	}
	restart := slices.DeleteFunc(before.Differing(now), func(name string) bool { return name == "log-level" })
	logger.Info("read the settings again", "logLevel", now.LogLevel, "restart", strings.Join(restart, ","))
}

// minGrace is the time the loops always have to end. Unless a delivery is in
// flight they end immediately.
const minGrace = 2 * time.Second

// waitFor waits until the loops end, whose context is done. If the grace period
// ends first, it logs that it aborts deliveries, and the caller closes the log
// although the loops still use it.
func waitFor(grace context.Context, loops *errgroup.Group, logger *slog.Logger) error {
	ended := make(chan error, 1)
	go func() { ended <- loops.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-grace.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(minGrace):
		logger.Warn("aborted deliveries; they will be repeated")
		return nil
	}
}

func newServer(c cli.Config, l *ledger, logger *slog.Logger) *http.Server {
	closing, begin := context.WithCancel(context.Background())
	server := &http.Server{
		Handler: l.metrics.counted(httpapi.New(httpapi.Config{
			Ledger: l.ledger, Views: l.views, Webhooks: l.hooks, Log: l.log, Codec: l.codec, Keys: l.keys,
			Erasure: l.erasures, Logger: logger, Version: version(), Background: l.background, DeletionGrace: c.DeletionGrace,
			Closing: closing, ImportDir: l.dir.path(importsDir), MappingDir: c.ImportMappings,
			Issuer: httpapi.Issuer{URL: c.OIDCIssuer, Audience: c.OIDCAudience, ScopeClaim: c.OIDCScopeClaim,
				Algorithms: c.OIDCAlgorithms, ClockSkew: c.OIDCClockSkew},
			RateLimit: c.RateLimit, AddressRateLimit: c.AddressLimit, TrustedProxies: c.TrustedProxies, CORSOrigins: c.CORSOrigins,
			Metrics: l.metrics.handler(logger), Observe: l.metrics.answered, Refused: l.metrics.refused,
			Trace: hook(l.tracing, l.tracing.admitted),
		})),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		// Protocol errors of clients do not deserve a warning.
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	server.RegisterOnShutdown(begin)
	return server
}

// checkServe refuses settings that are invalid or unsafe.
func checkServe(c cli.Config) error {
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return cli.Usagef("tls-cert and tls-key must be set together")
	}
	if c.OIDCIssuer != "" {
		u, err := url.Parse(c.OIDCIssuer)
		if err != nil || u.Host == "" || u.Scheme != "https" && !(u.Scheme == "http" && cli.Loopback(u.Hostname())) {
			return cli.Usagef("oidc-issuer is %q; it must be an https URL", c.OIDCIssuer)
		}
		if c.OIDCAudience == "" {
			return cli.Usagef("oidc-issuer needs oidc-audience, so that tokens for other services are refused")
		}
		for _, algorithm := range c.OIDCAlgorithms {
			if err := cli.OneOf("oidc-algorithms", algorithm, httpapi.TokenAlgorithms...); err != nil {
				return err
			}
		}
	}
	return cmp.Or(checkDebugListen(c), checkListen(c))
}

// checkListen refuses to serve other machines without TLS.
func checkListen(c cli.Config) error {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return cli.Usagef("listen is %q; it must be host:port", c.Listen)
	}
	if cli.Loopback(host) || c.InsecureListen || c.TLSCert != "" {
		return nil
	}
	return cli.Usagef("listen is %q, which other machines can reach without TLS: "+
		"set --tls-cert and --tls-key, listen on 127.0.0.1, or set --insecure-listen behind a proxy that terminates TLS", c.Listen)
}
