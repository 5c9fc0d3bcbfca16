package transport

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// Headers of abuse protection in the CloudEvents webhook specification (HTTP 1.1
// Web Hooks for Event Delivery, section 4, https://github.com/cloudevents/spec).
const (
	HeaderRequestOrigin = "Webhook-Request-Origin"
	headerRequestRate   = "Webhook-Request-Rate"
	headerAllowedOrigin = "Webhook-Allowed-Origin"
	headerAllowedRate   = "Webhook-Allowed-Rate"
)

// Ask asks the endpoint for permission to deliver, as the CloudEvents webhook
// specification describes. origin names the sender; perSecond is its highest
// rate of requests, 0 if that is unknown. If the endpoint permits deliveries,
// the outcome is Delivered, and rate is how many requests a minute it allows, 0
// for any number.
func (c *Client) Ask(origin string, perSecond float64) (o Outcome, rate int) {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodOptions, c.url.String(), nil)
	if err != nil {
		return Outcome{Scope: Unavailable, Code: codeConnection}, 0
	}
	r.Header.Set("User-Agent", c.userAgent)
	r.Header.Set(HeaderRequestOrigin, origin)
	if perSecond > 0 {
		r.Header.Set(headerRequestRate, strconv.Itoa(max(1, int(perSecond*60))))
	}
	if err := c.auth.add(ctx, r); err != nil {
		return Outcome{Scope: Unavailable, Code: errorCode(err)}, 0
	}
	response, err := c.transport.RoundTrip(r)
	if err != nil {
		return Outcome{Scope: Unavailable, Code: errorCode(err)}, 0
	}
	defer response.Body.Close()
	io.CopyN(io.Discard, response.Body, drainResponse)
	allowed := strings.TrimSpace(response.Header.Get(headerAllowedOrigin))
	if response.StatusCode > 299 || allowed != "*" && !strings.EqualFold(allowed, origin) {
		return Outcome{Scope: Refused, Status: response.StatusCode, Code: codeNotAllowed}, 0
	}
	rate, err = strconv.Atoi(strings.TrimSpace(response.Header.Get(headerAllowedRate)))
	if err != nil || rate < 0 {
		rate = 0 // the header is missing, or *
	}
	return Outcome{Scope: Delivered, Status: response.StatusCode}, rate
}
