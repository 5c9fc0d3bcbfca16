package httpapi

import (
	"fmt"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/maypok86/otter/v2"
	"golang.org/x/time/rate"
)

// limitWindow is the window of the limits in seconds. A caller may use the
// whole window's quota at once.
const limitWindow = 10

// limiter limits the request rate of each caller or address.
type limiter struct {
	policy  string // its name, in the headers
	quota   int    // requests in limitWindow
	now     func() time.Time
	buckets *otter.Cache[string, *rate.Limiter]
}

// newLimiter allows perSecond requests per second on average; 0: unlimited.
func newLimiter(policy string, perSecond int, now func() time.Time) *limiter {
	if perSecond <= 0 {
		return nil
	}
	return &limiter{policy: policy, quota: perSecond * limitWindow, now: now, buckets: otter.Must(&otter.Options[string, *rate.Limiter]{
		MaximumSize: 100_000, // bounds the memory during a flood of addresses
		// A bucket that is unused for that long is full, like a new one.
		ExpiryCalculator: otter.ExpiryAccessing[string, *rate.Limiter](2 * limitWindow * time.Second),
	})}
}

// take counts a request of who and sets the rate limit headers of
// draft-ietf-httpapi-ratelimit-headers-10. It returns a problem if the limit is
// exceeded.
func (l *limiter) take(header http.Header, who string) error {
	if l == nil {
		return nil
	}
	perSecond := float64(l.quota) / limitWindow
	bucket, ok := l.buckets.GetIfPresent(who)
	if !ok {
		bucket, _ = l.buckets.SetIfAbsent(who, rate.NewLimiter(rate.Limit(perSecond), l.quota))
	}
	now := l.now()
	allowed := bucket.AllowN(now, 1)
	left := max(0, bucket.TokensAt(now))
	header.Set("RateLimit-Policy", fmt.Sprintf(`"%s";q=%d;w=%d`, l.policy, l.quota, limitWindow))
	header.Set("RateLimit", fmt.Sprintf(`"%s";r=%d;t=%d`, l.policy, int(left), int(math.Ceil((float64(l.quota)-left)/perSecond))))
	if allowed {
		return nil
	}
	wait := int(math.Ceil((1 - left) / perSecond))
	return newProblem(codeTooManyRequests, "The limit is %d requests in %d seconds; retry after Retry-After seconds.", l.quota, limitWindow).with("Retry-After", strconv.Itoa(max(1, wait)))
}

// clientAddress returns a function that finds a request's client address. It
// uses X-Forwarded-For only if the request comes from one of proxies.
func clientAddress(proxies []netip.Prefix) func(*http.Request) string {
	extract := echo.ExtractIPDirect()
	if len(proxies) > 0 {
		options := []echo.TrustOption{echo.TrustLoopback(false), echo.TrustLinkLocal(false), echo.TrustPrivateNet(false)}
		for _, p := range proxies {
			options = append(options, echo.TrustIPRange(&net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}))
		}
		extract = echo.ExtractIPFromXFFHeader(options...)
	}
	return func(r *http.Request) string {
		address, err := netip.ParseAddr(extract(r))
		if err != nil {
			return ""
		}
		if address = address.Unmap(); address.Is6() {
			// Providers assign at least a /64 to each customer.
			prefix, err := address.WithZone("").Prefix(64)
			if err != nil {
				return ""
			}
			return prefix.String()
		}
		return address.String()
	}
}
