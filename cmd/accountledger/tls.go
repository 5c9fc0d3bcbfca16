package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// lookEvery is how often at most the files of the certificate are looked at:
// before a handshake, for nobody else needs them.
const lookEvery = time.Second

// certificate serves the certificate that is in two files. When they change,
// new connections get the new one; those there are go on.
type certificate struct {
	certFile, keyFile string
	now               func() time.Time
	logger            *slog.Logger

	mu      sync.Mutex
	looked  time.Time
	stamp   [2]fileStamp // of the files as they were read
	current *tls.Certificate
}

// fileStamp tells a file that was replaced from the one before.
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

// load reads the files if they are others than before.
func (c *certificate) load() error {
	c.looked = c.now()
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
		c.logger.Info("the certificate was reloaded", "notAfter", pair.Leaf.NotAfter)
	}
	c.current, c.stamp = &pair, stamp
	return nil
}

// get is tls.Config's GetCertificate. A certificate that cannot be read, as
// while one of its files is replaced and the other not yet, is looked at again
// later; until then the one before is served.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now().Sub(c.looked) >= lookEvery {
		if err := c.load(); err != nil {
			c.logger.Warn("the certificate cannot be reloaded; the one before is served on", "err", err)
		}
	}
	return c.current, nil
}

// again looks at the files now.
func (c *certificate) again() {
	c.mu.Lock()
	c.looked = time.Time{}
	c.mu.Unlock()
	c.get(nil)
}

// tlsConfig is how the server speaks TLS with the certificate: versions and
// ciphers are Go's choice, which changes with what is safe.
func (c *certificate) tlsConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
}
