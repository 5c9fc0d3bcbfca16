package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"

	"accountledger/cmd/accountledger/cli"
)

// serveDebug serves metrics, profiles and the state of the process to this
// machine, without a key. It serves until stop is called, so that an operator can
// also observe the shutdown.
func serveDebug(ctx context.Context, address string, m *metrics, logger *slog.Logger) (stop func(), err error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve: debug-listen: %w", err)
	}
	// No write timeout, because the client sets the duration of a profile.
	server := &http.Server{Handler: debugHandler(m, logger), ReadHeaderTimeout: readHeaderTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug)}
	logger.Info("debug server listening", "address", "http://"+listener.Addr().String())
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(listener) })
	return func() { server.Close(); serving.Wait() }, nil
}

func debugHandler(m *metrics, logger *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.handler(logger))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"status":"ok"}`) })
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A web page in a browser on this machine may use a host name that
		// resolves to this address (DNS rebinding).
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if !cli.Loopback(host) {
			http.Error(w, "host not allowed", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// checkDebugListen refuses an address that other machines can reach, because the
// debug server needs no key.
func checkDebugListen(c cli.Config) error {
	if c.DebugListen == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(c.DebugListen)
	if err != nil || !cli.Loopback(host) {
		return cli.Usagef("debug-listen is %q; it must be a loopback address, like 127.0.0.1:9090", c.DebugListen)
	}
	return nil
}
