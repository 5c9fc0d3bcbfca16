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

// serveDebug serves, without a key and to this machine only, what whoever
// operates the ledger needs: metrics, profiles, and whether the process
// answers. It goes on until stop, so that an end can be watched, too.
func serveDebug(ctx context.Context, address string, m *metrics, logger *slog.Logger) (stop func(), err error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve: debug-listen: %w", err)
	}
	// No write timeout: a profile takes as long as it is asked to.
	server := &http.Server{Handler: debugHandler(m, logger), ReadHeaderTimeout: readHeaderTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug)}
	logger.Info("listening privately", "address", "http://"+listener.Addr().String())
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
		// A page in a browser of this machine can have its own name lead here.
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if !cli.Loopback(host) {
			http.Error(w, "not for this host", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// checkDebugListen refuses an address that other machines can reach: there is
// no key to what is there.
func checkDebugListen(c cli.Config) error {
	if c.DebugListen == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(c.DebugListen)
	if err != nil || !cli.Loopback(host) {
		return cli.Usagef("debug-listen is %q; it can be an address of this machine only, like 127.0.0.1:9090", c.DebugListen)
	}
	return nil
}
