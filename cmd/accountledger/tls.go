package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// checkInterval is the minimum time between two checks of the certificate's files.
// A handshake triggers the check.
const checkInterval = time.Second

// certificate is a TLS certificate in two files. When they change, new
// connections use the new certificate, and open connections continue.
type certificate struct {
	certFile, keyFile string
	now               func() time.Time
	logger            *slog.Logger

	mu      sync.Mutex
	checked time.Time
	stamp   [2]fileStamp // of the files of current
	current *tls.Certificate
}

// fileStamp changes when a file is replaced.
type fileStamp struct {
	modified time.Time
	size     int64
}

// loadCertificate reads the certificate and its key, in PEM.
func loadCertificate(certFile, keyFile string, now func() time.Time, logger *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, now: now, logger: logger}
	if err := c.load(); err != nil {
		return nil, err
	}
	return c, nil
}

// load reads the files if they changed.
func (c *certificate) load() error {
	c.checked = c.now()
	var stamp [2]fileStamp
	for i, path := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("tls: %w", err)
		}
		stamp[i] = fileStamp{info.ModTime(), info.Size()}
	}
	if c.current != nil && stamp == c.stamp {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("tls: %s and %s: %w", c.certFile, c.keyFile, err)
	}
	if c.current != nil {
		c.logger.Info("reloaded the certificate", "notAfter", pair.Leaf.NotAfter)
	}
	c.current, c.stamp = &pair, stamp
	return nil
}

// get implements tls.Config.GetCertificate. If it cannot read the files, for
// example while only one of them is replaced, it returns the previous certificate
// and tries again later.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now().Sub(c.checked) >= checkInterval {
		if err := c.load(); err != nil {
			c.logger.Warn("cannot reload the certificate; the previous one stays in use", "err", err)
		}
	}
	return c.current, nil
}

// reload checks the files now.
func (c *certificate) reload() {
	c.mu.Lock()
	c.checked = time.Time{}
	c.mu.Unlock()
	c.get(nil)
}

// tlsConfig returns the server's TLS configuration. Ciphers are Go's defaults,
// which Go updates as recommendations change.
func (c *certificate) tlsConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
}
