package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"accountledger/cmd/accountledger/cli"
)

// writeCertificate writes a self-signed certificate for 127.0.0.1.
func writeCertificate(t *testing.T, certFile, keyFile, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCertificateChanges tests that new connections get a replaced certificate,
// and the previous one while the new files are invalid.
func TestCertificateChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	writeCertificate(t, certFile, keyFile, "first")
	now := time.Now()
	c, err := loadCertificate(certFile, keyFile, func() time.Time { return now }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	served := func() string {
		t.Helper()
		pair, err := c.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.Subject.CommonName
	}
	change := func(write func()) {
		write()
		now = now.Add(checkInterval)
		// Two writes in one tick of the file system's clock have the same time.
		if err := os.Chtimes(certFile, now, now); err != nil {
			t.Fatal(err)
		}
	}
	if got := served(); got != "first" {
		t.Errorf("serves %s", got)
	}
	writeCertificate(t, certFile, keyFile, "second")
	if got := served(); got != "first" {
		t.Errorf("checks the files at every handshake: serves %s", got)
	}
	change(func() {})
	if got := served(); got != "second" {
		t.Errorf("serves %s after a change", got)
	}
	change(func() { os.WriteFile(certFile, []byte("half a certifi"), 0o600) })
	if got := served(); got != "second" {
		t.Errorf("serves %s after an invalid change", got)
	}
	change(func() { writeCertificate(t, certFile, keyFile, "third") })
	if got := served(); got != "third" {
		t.Errorf("serves %s after a valid change", got)
	}
	if _, err := loadCertificate(certFile, filepath.Join(dir, "none"), time.Now, slog.Default()); err == nil {
		t.Error("loadCertificate accepts a certificate without a key")
	}
}

// TestServeTLS uses a server over TLS, replaces its certificate, and makes it read
// its settings again.
func TestServeTLS(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	dir := t.TempDir()
	certFile, keyFile, settings := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "settings.yaml")
	writeCertificate(t, certFile, keyFile, "first")
	set := func(text string) {
		t.Helper()
		if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set("log-level: info\n")
	p := startServer(t, filepath.Join(dir, "data"), "--tls-cert", certFile, "--tls-key", keyFile, "--config", settings)
	if !strings.HasPrefix(p.url, "https://") {
		t.Fatalf("listens on %s", p.url)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	get := func() *http.Response {
		t.Helper()
		response, err := (&http.Client{Transport: transport}).Get(p.url + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, response.Body) // so that the connection can be reused
		response.Body.Close()
		return response
	}
	r := get()
	if r.Header.Get("Strict-Transport-Security") == "" || r.TLS.PeerCertificates[0].Subject.CommonName != "first" {
		t.Errorf("over TLS: %v", r.Header)
	}
	writeCertificate(t, certFile, keyFile, "second")
	set("log-level: debug\nrate-limit: 5\n")
	if err := p.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for _, message := range []string{`msg="reloaded the certificate"`, `msg="read the settings again"`, "restart=rate-limit"} {
		if err := p.log.await(ctx, message); err != nil {
			t.Fatalf("%v\n%s", err, p.log)
		}
	}
	if r := get(); r.TLS.PeerCertificates[0].Subject.CommonName != "first" {
		t.Error("a connection was closed when the certificate changed")
	}
	if err := p.log.await(ctx, "level=DEBUG"); err != nil {
		t.Errorf("the log level did not change: %v", err)
	}
	transport.CloseIdleConnections()
	if r := get(); r.TLS.PeerCertificates[0].Subject.CommonName != "second" {
		t.Error("a new connection has the old certificate")
	}
	if code, out, errs := accountledger(t, "health", "--server", p.url, "--ca-file", certFile); code != cli.ExitOK {
		t.Errorf("health with --ca-file: %d, %s%s", code, out, errs)
	}
	if code, _, _ := accountledger(t, "health", "--server", p.url); code == cli.ExitOK {
		t.Error("health trusts an unknown certificate")
	}
}

func TestCheckListen(t *testing.T) {
	for _, tt := range []struct {
		cli.Config
		ok bool
	}{
		{cli.Config{Listen: "127.0.0.1:0"}, true},
		{cli.Config{Listen: "[::1]:0"}, true},
		{cli.Config{Listen: "localhost:0"}, true},
		{cli.Config{Listen: "0.0.0.0:0"}, false},
		{cli.Config{Listen: ":0"}, false},
		{cli.Config{Listen: "ledger.example:443"}, false},
		{cli.Config{Listen: "0.0.0.0:0", InsecureListen: true}, true},
		{cli.Config{Listen: "0.0.0.0:0", TLSCert: "c", TLSKey: "k"}, true},
		{cli.Config{Listen: "127.0.0.1:0", TLSCert: "c"}, false},
		{cli.Config{Listen: "127.0.0.1:0", TLSKey: "k"}, false},
		{cli.Config{Listen: "127.0.0.1:0", OIDCIssuer: "https://id.example"}, false},
		{cli.Config{Listen: "127.0.0.1:0", OIDCIssuer: "https://id.example", OIDCAudience: "ledger"}, true},
		{cli.Config{Listen: "127.0.0.1:0", OIDCIssuer: "http://id.example", OIDCAudience: "ledger"}, false},
		{cli.Config{Listen: "127.0.0.1:0", OIDCIssuer: "http://127.0.0.1:9", OIDCAudience: "ledger"}, true},
		{cli.Config{Listen: "127.0.0.1:0", OIDCIssuer: "https://id.example", OIDCAudience: "ledger", OIDCAlgorithms: []string{"HS256"}}, false},
		{cli.Config{Listen: "127.0.0.1:0", OIDCIssuer: "https://id.example", OIDCAudience: "ledger", OIDCAlgorithms: []string{"none"}}, false},
	} {
		if err := checkServe(tt.Config); (err == nil) != tt.ok {
			t.Errorf("checkServe(%+v) = %v", tt.Config, err)
		}
	}
}
