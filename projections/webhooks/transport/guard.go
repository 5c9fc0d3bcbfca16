package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"code.dny.dev/ssrf"
)

// errBlocked is in the chain of every refusal to connect.
var errBlocked = errors.New("transport: connections to this address are blocked")

// metadata are the addresses that stay blocked whatever the operator allows:
// cloud providers issue the machine's credentials there, and no receiver of
// webhooks uses them.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"),     // link-local: AWS, Azure, GCP, ECS and most others
	netip.MustParsePrefix("fe80::/10"),          // the same over IPv6
	netip.MustParsePrefix("fd00:ec2::/32"),      // AWS over IPv6
	netip.MustParsePrefix("fd20:ce::254/128"),   // GCP over IPv6
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure's wire server; the address looks public
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle Cloud
}

// servicePorts are ports from 1024 on whose services might act on a request
// that was not meant for them: databases, caches, container engines, remote
// desktops.
var servicePorts = []uint16{
	1433, 1521, 2049, 2375, 2376, 2379, 2380, 3306, 3389, 5432, 5900, 6000, 6379, 9042, 9092, 9200, 11211, 27017,
}

var public = ssrf.New(ssrf.WithAnyPort())

// guard decides which addresses a client may connect to. It checks the address
// that is about to be dialled, so a name that resolves differently between
// check and use (DNS rebinding) gains nothing.
type guard struct {
	allow []netip.Prefix // allowed by the operator, on any port and without TLS
	plain bool           // the scheme is http, which requires an allowed address

	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	dialer net.Dialer
	roots  *x509.CertPool   // of certificate authorities; nil: the system's
	client *tls.Certificate // presented if the server requests one; nil: none

	// private is set once a connection went to an address that only Allow
	// permits: its responses are not shown.
	private atomic.Bool
}

func newGuard(allow []netip.Prefix, plain bool) *guard {
	g := &guard{allow: allow, plain: plain, lookup: net.DefaultResolver.LookupNetIP}
	g.dialer = net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second, Control: g.control}
	return g
}

// allowed reports whether the operator allowed a.
func (g *guard) allowed(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	in := func(p netip.Prefix) bool { return p.Contains(a) }
	return !slices.ContainsFunc(metadata, in) && slices.ContainsFunc(g.allow, in)
}

// check returns errBlocked for an address that must not be connected to.
func (g *guard) check(a netip.AddrPort) error {
	addr := a.Addr().Unmap().WithZone("")
	switch {
	case g.allowed(addr):
		return nil
	case slices.ContainsFunc(metadata, func(p netip.Prefix) bool { return p.Contains(addr) }):
		return fmt.Errorf("%w: link-local or metadata", errBlocked)
	case public.SafeAddr(addr) != nil:
		return fmt.Errorf("%w: not public", errBlocked)
	case g.plain:
		return fmt.Errorf("%w: http is for allowed addresses only", errBlocked)
	case !usualPort(a.Port()):
		return fmt.Errorf("%w: port %d", errBlocked, a.Port())
	}
	return nil
}

func usualPort(port uint16) bool {
	return port == 80 || port == 443 || port >= 1024 && !slices.Contains(servicePorts, port)
}

// control is net.Dialer's Control: the final check, of the socket's address.
func (g *guard) control(network, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp4" && network != "tcp6" {
		return fmt.Errorf("%w: %s", errBlocked, network)
	}
	return g.check(a)
}

// dial connects to a host. Every address of the host must pass check: a name
// with a public and a private address is an attack or a mistake. If the operator
// allowed some of the addresses, dial ignores the others.
func (g *guard) dial(ctx context.Context, _, address string) (net.Conn, error) {
	addrs, err := g.resolve(ctx, address)
	if err != nil {
		return nil, err
	}
	var failed error
	for _, a := range addrs {
		conn, err := g.dialer.DialContext(ctx, "tcp", a.String())
		if err == nil {
			if g.allowed(a.Addr()) {
				g.private.Store(true)
			}
			return conn, nil
		}
		failed = err
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// errTLS is in the chain of every error of a TLS handshake.
var errTLS = errors.New("transport: TLS handshake")

// dialTLS connects to a host and verifies its certificate. Verification cannot
// be turned off; an operator with a private authority adds it to the system's.
func (g *guard) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := g.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	config := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, RootCAs: g.roots}
	if g.client != nil {
		config.Certificates = []tls.Certificate{*g.client}
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: %w", errTLS, err)
	}
	return secure, nil
}

// resolve returns the addresses of host:port, after checking all of them.
func (g *guard) resolve(ctx context.Context, address string) ([]netip.AddrPort, error) {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%w: port", errBlocked)
	}
	var found []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		found = []netip.Addr{a}
	} else if numeric(host) {
		return nil, fmt.Errorf("%w: the host is an obfuscated address", errBlocked)
	} else if found, err = g.lookup(ctx, "ip", host); err != nil {
		return nil, err
	}
	var addrs, allowed []netip.AddrPort
	var refused error
	for _, a := range found {
		ap := netip.AddrPortFrom(a.Unmap(), uint16(port))
		if g.allowed(a) {
			allowed = append(allowed, ap)
		}
		if err := g.check(ap); err != nil {
			refused = err
		}
		addrs = append(addrs, ap)
	}
	switch {
	case len(allowed) > 0:
		return allowed, nil
	case refused != nil:
		return nil, refused
	case len(addrs) == 0:
		return nil, &net.DNSError{Err: "no addresses", Name: host, IsNotFound: true}
	}
	return addrs, nil
}

// numeric reports whether the C library might read host as an IPv4 address: it
// reads 2130706433, 0x7f000001, 127.1 and 0177.0.0.1 as 127.0.0.1. Per the URL
// standard, a host whose last label is a number is an address.
func numeric(host string) bool {
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	last := strings.ToLower(labels[len(labels)-1])
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

// URLFault returns what is wrong with an endpoint's URL, or "", without using
// the network; u is absolute. allow is as in Config.
func URLFault(u *url.URL, allow []netip.Prefix) string {
	g := guard{allow: allow}
	host := u.Hostname()
	addr, err := netip.ParseAddr(host)
	literal := err == nil
	// What a name resolves to is known only at connection time; the operator may
	// have allowed that address.
	open := literal && g.allowed(addr) || !literal && len(g.allow) > 0
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	switch {
	case !literal && numeric(host):
		return "the host must be a name or an address in its usual form"
	case u.Port() != "" && (err != nil || port == 0):
		return "the port must be a number from 1 to 65535"
	case u.Port() != "" && !usualPort(uint16(port)) && !open:
		return "this port is not delivered to"
	case u.Scheme == "http" && !open:
		return "the scheme must be https; http is for addresses the operator has allowed"
	}
	return ""
}
