package httpapi

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"accountledger/domain"
)

// What an attacker tries and other tests do not: missing, wrong, expired and
// revoked keys are TestAccess and TestAPIKeyRules, which also try a key with
// every scope but one on every operation; tokens are TestTokenAttacks;
// addresses are TestForwardedFor; bodies are TestBodies and TestNumbers.

// raw sends bytes as they are, which no client library would, and reads one
// answer.
func (l *ledger) raw(t *testing.T, request string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(l.url, "http://"))
	check(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, request)
	check(t, err)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	check(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	check(t, err)
	return res, string(body)
}

func (l *ledger) head(method, target string) string {
	return method + " " + target + " HTTP/1.1\r\nHost: ledger\r\nConnection: close\r\nAuthorization: Bearer " + l.admin + "\r\n"
}

// TestOthersObjects asks one account for what belongs to another.
func TestOthersObjects(t *testing.T) {
	t.Parallel()
	l := start(t)
	mine, yours := "/v1/accounts/"+l.create(t, "ada@example.com"), "/v1/accounts/"+l.create(t, "bob@example.com")
	identity := l.want(t, 200, "GET", yours, "").text(t, "identities.0.identityId")
	schedule := l.want(t, 201, "POST", yours+"/schedules", `{"kind":"deletion","dueTime":"2100-01-01T00:00:00Z"}`).text(t, "scheduleId")
	for _, try := range []struct {
		code               domain.Code
		method, path, body string
	}{
		{domain.CodeIdentityNotFound, "PATCH", mine + "/identities/" + identity, `{"family_name":"Byron"}`},
		{domain.CodeIdentityNotFound, "DELETE", mine + "/identities/" + identity, ""},
		{domain.CodeIdentityNotFound, "PATCH", mine, `{"identity":{"identityId":"` + identity + `","family_name":"Byron"}}`},
		{domain.CodeScheduleNotFound, "GET", mine + "/schedules/" + schedule, ""},
		{domain.CodeScheduleNotFound, "DELETE", mine + "/schedules/" + schedule, ""},
		{domain.CodeScheduleNotFound, "PATCH", mine + "/schedules/" + schedule, `{"dueTime":"2101-01-01T00:00:00Z"}`},
		{domain.CodeAccountNotFound, "GET", mine[:len(mine)-1] + "0000", ""},
		{domain.CodeAccountNotFound, "GET", "/v1/accounts/" + strings.Repeat("f", 36), ""},
		{domain.CodeWebhookNotFound, "GET", "/v1/webhooks/" + strings.TrimPrefix(yours, "/v1/accounts/"), ""},
	} {
		l.refused(t, try.code, try.method, try.path, try.body)
	}
	if r := l.want(t, 200, "GET", yours, ""); r.header.Get("ETag") != `"1"` || strings.Contains(string(r.body), "Byron") {
		t.Errorf("the other account was changed: %s", r.body)
	}
}

// TestIdempotencyKeyIsTheCallers: who guesses another's key learns nothing of
// what was asked with it.
func TestIdempotencyKeyIsTheCallers(t *testing.T) {
	t.Parallel()
	l := start(t)
	first := l.want(t, 201, "POST", "/v1/accounts", account("ada@example.com"), "Idempotency-Key: k").text(t, "sub")
	other := bearer(l.key(t, "other", scopeAccountsWrite))
	if second := l.want(t, 201, "POST", "/v1/accounts", account("bob@example.com"), "Idempotency-Key: k", other).text(t, "sub"); second == first {
		t.Error("another caller's key led to the account")
	}
}

// TestHeaderInjection sends line breaks and worse in headers and addresses,
// and looks for them in the headers of the answer.
func TestHeaderInjection(t *testing.T) {
	t.Parallel()
	l := start(t)
	for _, header := range []string{
		"X-Request-Id: a\r\n X-Evil: 1\r\n",
		"X-Request-Id: a\x00b\r\n",
		"X-Request-Id: %0d%0aX-Evil: 1\r\n",
		"Idempotency-Key: k\rX-Evil: 1\r\n",
		"If-Match: \"0\"%0d%0aX-Evil: 1\r\n",
		"Origin: https://x\x0bX-Evil: 1\r\n",
		"X-Forwarded-For: 1.2.3.4%0d%0aX-Evil: 1\r\n",
		"Host: evil\r\n",
		"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
		"Transfer-Encoding: chunked, identity\r\n",
	} {
		res, body := l.raw(t, l.head("GET", "/v1/projections?after=%0d%0aX-Evil:%201")+header+"\r\n")
		if res.Header.Get("X-Evil") != "" || strings.Contains(body, "X-Evil") || res.StatusCode < 400 || res.StatusCode == 500 {
			t.Errorf("%q: %s %v %s", header, res.Status, res.Header, body)
		}
	}
	// What goes into Location and Link is made by the ledger, or is quoted.
	res, body := l.raw(t, l.head("GET", "/v1/events?limit=1&types=USER_*%0d%0aX-Evil:%201")+"\r\n")
	if res.Header.Get("X-Evil") != "" || strings.Contains(fmt.Sprint(res.Header), "\n") {
		t.Errorf("%v %s", res.Header, body)
	}
}

// TestPathTraversal looks for files and for ways around the routes.
func TestPathTraversal(t *testing.T) {
	t.Parallel()
	l := start(t)
	sub := l.create(t, "ada@example.com")
	for _, target := range []string{
		"/docs/../openapi.go", "/docs/..%2f..%2fetc%2fpasswd", "/docs/%2e%2e/%2e%2e/etc/passwd", "/docs//etc/passwd", "/docs/docs.js/../../admin.key",
		"/problems/../docs/docs.js", "/problems/..%2f..%2fadmin.key", "/problems/..", "/problems/%2e%2e%2fadmin.key", "/..//admin.key", "/%00", "//admin.key",
		"/v1/accounts/" + sub + "/../" + sub, "/v1/accounts/..%2fwebhooks", "/v1/accounts/%2e%2e/webhooks", "/v1//accounts", "/v1/accounts/" + sub + "%00",
		"/v1/accounts/" + sub + "/", "/V1/accounts/" + sub, "/v1/accounts;x/" + sub, "/v1/roles/..%2f..%2fadmin.key", "/v1/api-keys/..%2fadmin",
	} {
		res, body := l.raw(t, l.head("GET", target)+"\r\n")
		if res.StatusCode != http.StatusNotFound && res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s %s", target, res.Status, body)
		}
		if strings.Contains(body, "root:") || strings.Contains(body, "alk_") || strings.Contains(body, "ada@example.com") {
			t.Errorf("%s shows %s", target, body)
		}
	}
	// Without a key neither way leads in.
	res, body := l.raw(t, "GET /docs/../v1/projections HTTP/1.1\r\nHost: ledger\r\nConnection: close\r\n\r\n")
	if res.StatusCode == 200 {
		t.Errorf("around the routes: %s", body)
	}
}

// TestOversizedHeaders holds that a head is bounded.
func TestOversizedHeaders(t *testing.T) {
	t.Parallel()
	l := start(t)
	res, _ := l.raw(t, l.head("GET", "/v1/projections")+"X-Long: "+strings.Repeat("x", 2<<20)+"\r\n\r\n")
	if res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a head of 2 MiB: %s", res.Status)
	}
}

// connections is how many TestCrowd opens: ACCOUNTLEDGER_TEST_CONNECTIONS, by
// default few enough for any machine.
func connections(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("ACCOUNTLEDGER_TEST_CONNECTIONS"))
	if err != nil {
		return 200
	}
	return n
}

// TestCrowd has many connections open at once, most of which never say what
// they want: each that does is answered.
func TestCrowd(t *testing.T) {
	t.Parallel()
	l := start(t)
	address := strings.TrimPrefix(l.url, "http://")
	n := connections(t)
	var wg sync.WaitGroup
	conns := make([]net.Conn, n)
	for i := range conns {
		conn, err := net.Dial("tcp", address)
		check(t, err)
		defer conn.Close()
		conns[i] = conn
		_, err = io.WriteString(conn, l.head("GET", "/v1/projections")) // and no end
		check(t, err)
	}
	l.want(t, 201, "POST", "/v1/accounts", ada) // beside them all
	for _, conn := range conns {
		wg.Go(func() {
			io.WriteString(conn, "\r\n")
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Error(err)
				return
			}
			res.Body.Close()
			if res.StatusCode != 200 {
				t.Errorf("one of %d: %s", n, res.Status)
			}
		})
	}
	wg.Wait()
}
