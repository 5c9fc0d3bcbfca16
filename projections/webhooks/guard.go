package webhooks

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
var errBlocked = errors.New("webhooks: this address may not be connected to")

// Addresses that stay closed whatever is allowed: they hand out credentials
// of the machine, and no receiver of webhooks lives there.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"),     // link-local: AWS, Azure, GCP, ECS and most others
	netip.MustParsePrefix("fe80::/10"),          // the same over IPv6
	netip.MustParsePrefix("fd00:ec2::/32"),      // AWS over IPv6
	netip.MustParsePrefix("fd20:ce::254/128"),   // GCP over IPv6
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure's wire server, a public address by its look
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle Cloud
}

// Ports from 1024 on of services that understand a request that was meant for
// somebody else: databases, caches, container engines, remote desktops.
var servicePorts = []uint16{
	1433, 1521, 2049, 2375, 2376, 2379, 2380, 3306, 3389, 5432, 5900, 6000, 6379, 9042, 9092, 9200, 11211, 27017,
}

var public = ssrf.New(ssrf.WithAnyPort())

// guard decides which addresses an endpoint is connected to. It is asked when
// the address is known and about to be dialled, so that a name that changes
// its mind between check and use gains nothing.
type guard struct {
	allow []netip.Prefix // opened by the operator, on any port and without TLS
	plain bool           // the endpoint's scheme is http, which is for allowed addresses only

	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	dialer net.Dialer
	roots  *x509.CertPool   // of authorities; nil: the machine's
	client *tls.Certificate // shown where it is asked for; nil: none

	// private is set once a connection went to an address that only the
	// operator's word opened: what it answers is not shown.
	private atomic.Bool
}

func newGuard(allow []netip.Prefix, plain bool) *guard {
	g := &guard{allow: allow, plain: plain, lookup: net.DefaultResolver.LookupNetIP}
	g.dialer = net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second, Control: g.control}
	return g
}

// allowed reports whether the operator opened a.
func (g *guard) allowed(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	in := func(p netip.Prefix) bool { return p.Contains(a) }
	return !slices.ContainsFunc(metadata, in) && slices.ContainsFunc(g.allow, in)
}

// check refuses what must not be connected to.
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

// control is net.Dialer's: the last word, on the address of the socket.
func (g *guard) control(network, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp4" && network != "tcp6" {
		return fmt.Errorf("%w: %s", errBlocked, network)
	}
	return g.check(a)
}

// dial connects to a host. All its addresses must be fit to connect to: a
// name with a public and a private one is an attack or a mistake. Only where
// some are allowed by the operator the others are left aside.
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

// errTLS is in the chain of an error of a handshake that fails for another
// reason than its certificate or time.
var errTLS = errors.New("webhooks: TLS handshake")

// dialTLS connects to a host and makes sure it is the host. There is no way
// around that: whoever wants a private authority gives it to the machine.
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

// resolve returns the addresses of host:port, all of them checked.
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
		return nil, fmt.Errorf("%w: an address in disguise", errBlocked)
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

// numeric reports whether the C library might take host for an IPv4 address:
// 2130706433, 0x7f000001, 127.1, 0177.0.0.1 are all 127.0.0.1 to it. As the
// URL standard has it, a host whose last label is a number is an address.
func numeric(host string) bool {
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	last := strings.ToLower(labels[len(labels)-1])
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

// fault says what is wrong with an endpoint's URL that can be told without
// asking the network, or "". The URL is an absolute one already.
func (g *guard) fault(u *url.URL) string {
	host := u.Hostname()
	addr, err := netip.ParseAddr(host)
	literal := err == nil
	// Where a name leads is known at connection time only; the operator may
	// have allowed it.
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
