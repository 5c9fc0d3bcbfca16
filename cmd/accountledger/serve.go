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

// memoryLimit is what Go's collector keeps the heap under as long as it can,
// unless GOMEMLIMIT says another. SQLite's page caches come on top.
const memoryLimit = 120 << 20

// Limits of the server, against clients that are slow or many. A handler that
// answers for longer than writeTimeout, a stream, moves its own deadline.
const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 60 * time.Second
	writeTimeout      = 120 * time.Second
	idleTimeout       = 120 * time.Second
	maxHeaderBytes    = 64 << 10
)

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the ledger: HTTP API, views and webhooks",
		Long: `Run the ledger on a data directory, which is made if it is not there.

When it is ready it prints one line on standard output,

  accountledger listening on http://127.0.0.1:8080

and logs on standard error. At SIGINT or SIGTERM it stops taking requests,
finishes those it has and the deliveries under way, signs the log's last state
and ends with exit code 0. A second signal cuts the waiting short.

With --tls-cert and --tls-key it speaks TLS, also to other machines, and goes
over to a new certificate when the files change. Without them it listens on this
machine only, unless --insecure-listen says that a proxy before it has TLS.
SIGHUP reads the settings again: the certificate and the log level take effect,
of others that changed the log says that they need a restart. The collector
keeps Go's memory under 120 MiB where it can; GOMEMLIMIT sets another limit.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cli.Load(cmd)
			if err != nil {
				return err
			}
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
	cli.AddSettings(cmd.Flags(), "data", "master-key-file", "listen", "insecure-listen", "debug-listen", "tls-cert", "tls-key",
		"oidc-issuer", "oidc-audience", "oidc-scope-claim", "oidc-algorithms", "oidc-clock-skew", "rate-limit", "address-rate-limit", "trusted-proxies", "cors-origins",
		"webhook-allow", "public-url", "deletion-grace",
		"import-mappings", "export-dir", "export-every", "export-format", "export-keep", "shutdown-grace", "log-format", "log-level")
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

// serve runs the ledger until ctx is done or a signal asks it to end. At SIGHUP
// reload, if there is one, reads the settings again and applies what it can.
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
	// The signals are ours from here on: a start is finished or undone.
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
	err = serveLedger(ctx, c, l, logger, stdout, signals, tlsCertificate)
	if closeErr := l.close(); closeErr != nil {
		err = errors.Join(err, closeErr)
	}
	if err := traces.close(); err != nil {
		logger.Warn("spans are lost", "err", err)
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

	// The loops outlive the requests, which wait for them.
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
	case <-loopsCtx.Done(): // one of them has failed; its error comes with the others
	}
	notify("STOPPING=1", logger)
	// The grace is one for all that follows; a second signal ends it.
	grace, hurry := context.WithTimeout(context.WithoutCancel(ctx), c.ShutdownGrace)
	defer hurry()
	go func() {
		select {
		case <-signals:
			logger.Warn("stopping at once")
			hurry()
		case <-grace.Done():
		}
	}()
	if err := server.Shutdown(grace); err != nil {
		logger.Warn("requests were cut off", "err", err)
		server.Close()
	}
	stopLoops()
	return errors.Join(failed, waitFor(grace, loops, logger))
}

// onHangup has f called at each SIGHUP until stop.
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

// reread reads the settings and the certificate again, and says what of it
// takes effect. before is what the server was started with.
func reread(before cli.Config, c *certificate, logger *slog.Logger, reload func() (cli.Config, error)) {
	if c != nil {
		c.again()
	}
	now, err := reload()
	if err != nil {
		logger.Error("settings could not be read again", "err", err)
		return
	}
	restart := slices.DeleteFunc(before.Differing(now), func(name string) bool { return name == "log-level" })
	logger.Info("settings were read again", "logLevel", now.LogLevel, "restart", strings.Join(restart, ","))
}

// moment is what the loops get to end in, however great the hurry: they stop at
// once when they are told, unless a delivery is under way.
const moment = 2 * time.Second

// waitFor waits for the loops, which were told to end, or says that they were
// left behind. What they follow is then closed under them.
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
	case <-time.After(moment):
		logger.Warn("deliveries were cut off; they will be made again")
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
		// What clients do wrong on the wire is not worth a warning each.
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	server.RegisterOnShutdown(begin)
	return server
}

// checkServe refuses settings that cannot be served with, or should not be.
func checkServe(c cli.Config) error {
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return cli.Usagef("tls-cert and tls-key go together")
	}
	if c.OIDCIssuer != "" {
		u, err := url.Parse(c.OIDCIssuer)
		if err != nil || u.Host == "" || u.Scheme != "https" && !(u.Scheme == "http" && cli.Loopback(u.Hostname())) {
			return cli.Usagef("oidc-issuer is %q; it can be an https URL", c.OIDCIssuer)
		}
		if c.OIDCAudience == "" {
			return cli.Usagef("oidc-issuer needs oidc-audience: tokens for others are not for us")
		}
		for _, algorithm := range c.OIDCAlgorithms {
			if err := cli.OneOf("oidc-algorithms", algorithm, httpapi.TokenAlgorithms...); err != nil {
				return err
			}
		}
	}
	return cmp.Or(checkDebugListen(c), checkListen(c))
}

// checkListen refuses to serve other machines in clear.
func checkListen(c cli.Config) error {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return cli.Usagef("listen is %q; write host:port", c.Listen)
	}
	if cli.Loopback(host) || c.InsecureListen || c.TLSCert != "" {
		return nil
	}
	return cli.Usagef("listen is %q, which other machines can reach, and there is no TLS: "+
		"give --tls-cert and --tls-key, listen on 127.0.0.1, or give --insecure-listen behind a proxy that has TLS", c.Listen)
}
