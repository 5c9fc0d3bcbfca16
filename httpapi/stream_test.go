package httpapi

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"accountledger/domain"
)

// frame is a server-sent event as a client parses it.
type frame struct{ id, event, data string }

// stream is a connection to the feed.
type stream struct {
	t      *testing.T
	lines  *bufio.Scanner
	close  context.CancelFunc
	retry  string
	beats  int    // number of comments
	lastID string // of any frame
}

func (l *ledger) stream(t *testing.T, path string, headers ...string) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, "GET", l.url+path, nil)
	check(t, err)
	r.Header.Set("Authorization", "Bearer "+l.admin)
	r.Header.Set("Accept", "text/event-stream")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(r)
	check(t, err)
	t.Cleanup(func() { response.Body.Close() })
	if response.StatusCode != 200 || response.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("stream: %s, %s", response.Status, response.Header.Get("Content-Type"))
	}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	return &stream{t: t, lines: lines, close: cancel}
}

// next returns the next frame, and false at the end of the stream.
func (s *stream) next() (f frame, ok bool) {
	s.t.Helper()
	for s.lines.Scan() {
		name, value, _ := strings.Cut(s.lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "id":
			f.id, s.lastID = value, value
		case "event":
			f.event = value
		case "data":
			if f.data != "" {
				s.t.Fatalf("a second line of data: %s", value)
			}
			f.data = value
		case "retry":
			s.retry = value
		case "":
			if s.lines.Text() != "" {
				s.beats++
			} else if f != (frame{}) {
				return f, true
			}
		default:
			s.t.Fatalf("line %q", s.lines.Text())
		}
	}
	return f, false
}

// events reads n events, skipping checkpoint frames, and returns them as "type
// sequence".
func (s *stream) events(n int) (all []string) {
	s.t.Helper()
	for len(all) < n {
		f, ok := s.next()
		if !ok {
			s.t.Fatalf("the stream ended after %q", all)
		}
		if f.event == "checkpoint" {
			continue
		}
		var e struct {
			Type     string `json:"type"`
			Sequence int64  `json:"sequence"`
		}
		check(s.t, json.Unmarshal([]byte(f.data), &e))
		if e.Type != f.event || f.id == "" {
			s.t.Errorf("frame %+v", f)
		}
		all = append(all, fmt.Sprintf("%s %d", e.Type, e.Sequence))
	}
	return all
}

// Row 108 of DELIVERY.md, section 5.2: a client that reconnects with the id of
// any frame gets all later events, each once.
func TestStreamResumes(t *testing.T) {
	t.Parallel()
	l := start(t)
	path := l.want(t, 201, "POST", "/v1/accounts", ada).header.Get("Location")
	l.want(t, 200, "PATCH", path, `{"identity":{"family_name":"King"}}`)
	l.want(t, 200, "PUT", path+"/status", `{"userStatus":"VERIFIED"}`)
	want := []string{"USER_CREATED 0", "USER_REGISTERED 0", "GROUP_MEMBER_ADDED 0", "USER_UPDATED 1", "USER_STATUS_CHANGED 2", "IDENTITY_LINKED 3"}

	all := l.stream(t, "/v1/events")
	if f, _ := all.next(); f.event != "checkpoint" || all.retry != "1000" {
		t.Errorf("the first frame is %+v, retry %q", f, all.retry)
	}
	got := all.events(len(want) - 1)
	l.want(t, 201, "POST", path+"/identities", `{"provider":"google","providerUserId":"1"}`) // while the stream is open
	if got = append(got, all.events(1)...); !cmp.Equal(got, want) {
		t.Errorf("(-want +got):\n%s", cmp.Diff(want, got))
	}
	for n := range want {
		first := l.stream(t, "/v1/events?after=0")
		first.events(n)
		if n == 0 {
			first.next() // a checkpoint frame also has an id
		}
		first.close()
		rest := l.stream(t, "/v1/events?after=999", "Last-Event-ID: "+first.lastID)
		if got := rest.events(len(want) - n); !cmp.Equal(got, want[n:]) {
			t.Errorf("after %d events (-want +got):\n%s", n, cmp.Diff(want[n:], got))
		}
	}
	// Pages and streams use the same cursors.
	if r := l.want(t, 200, "GET", "/v1/events?after="+all.lastID, ""); len(r.member(t, "events").([]any)) != 0 {
		t.Errorf("after the stream's last frame a page has %s", r.body)
	}
}

// Row 109: an invalid id is refused before the stream begins.
func TestStreamRefuses(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.create(t, "ada@example.com")
	for _, id := range []string{"x", "v1.00000000.1", "99", "-1"} {
		l.refused(t, domain.CodeInvalidCursor, "GET", "/v1/events", "", "Accept: text/event-stream", "Last-Event-ID: "+id)
	}
	for _, query := range []string{"limit=1", "wait=1", "min_position=1", "shoes=1"} {
		l.refused(t, codeInvalidParameter, "GET", "/v1/events?"+query, "", "Accept: text/event-stream")
	}
	for _, query := range []string{"types=SHOE_*", "sub=ada"} {
		l.refused(t, "invalid-request", "GET", "/v1/events?"+query, "", "Accept: text/event-stream")
		l.refused(t, "invalid-request", "GET", "/v1/events?"+query, "")
	}
	l.refused(t, codeUnauthorized, "GET", "/v1/events", "", "Accept: text/event-stream", "Authorization: Bearer alk_x_y")
	// A client that accepts anything gets a page.
	l.want(t, 200, "GET", "/v1/events", "", "Accept: */*")
}

// Row 110: if a filter skips all events, the id advances nevertheless, and an
// idle stream sends heartbeats.
func TestStreamCheckpoints(t *testing.T) {
	t.Parallel()
	l := start(t, func(c *Config) { c.Heartbeat = 20 * time.Millisecond })
	s := l.stream(t, "/v1/events?types=USER_DELETED")
	start, _ := s.next()
	l.create(t, "ada@example.com")
	moved, _ := s.next()
	if moved.event != "checkpoint" || moved.id == start.id || moved.data != `{"position":1}` && moved.data != `{"position":2}` {
		t.Errorf("frames %+v, then %+v", start, moved)
	}
	for beats := s.beats; s.beats < beats+3; {
		if !s.lines.Scan() {
			t.Fatal("the stream ended")
		}
		if strings.HasPrefix(s.lines.Text(), ":") {
			s.beats++
		}
	}
}

// Row 111: line breaks in personal data do not break a frame.
func TestStreamLines(t *testing.T) {
	t.Parallel()
	l := start(t)
	text := "one\r\ntwo\n\ndata: three\u2028\x00"
	body, err := json.Marshal(map[string]any{"origin": "created", "identities": []any{map[string]any{"provider": "self", "email": "ada@example.com"}}, "customFields": map[string]any{"note": text}})
	check(t, err)
	l.want(t, 201, "POST", "/v1/accounts", string(body))
	s := l.stream(t, "/v1/events?types=USER_CREATED")
	for {
		f, ok := s.next()
		if !ok {
			t.Fatal("the stream ended")
		}
		if f.event == "checkpoint" {
			continue
		}
		var e struct {
			Data struct {
				CustomFields struct {
					Note string `json:"note"`
				} `json:"customFields"`
			} `json:"data"`
		}
		check(t, json.Unmarshal([]byte(f.data), &e))
		if e.Data.CustomFields.Note != text {
			t.Errorf("note = %q", e.Data.CustomFields.Note)
		}
		return
	}
}

// Row 112: streams and long polls end when the server shuts down; a client
// resumes at the next server.
func TestStreamShutdown(t *testing.T) {
	t.Parallel()
	closing, begin := context.WithCancel(t.Context())
	l := start(t, func(c *Config) { c.Closing = closing })
	l.create(t, "ada@example.com")
	s := l.stream(t, "/v1/events?types=USER_CREATED")
	s.events(1)
	begin()
	if f, ok := s.next(); ok {
		t.Errorf("after the shutdown began: %+v", f)
	}
	if r := l.want(t, 200, "GET", "/v1/events?after=1&wait=30", ""); len(r.member(t, "events").([]any)) != 0 {
		t.Errorf("the long poll got %s", r.body)
	}
	if s.retry != "1000" {
		t.Errorf("retry %q", s.retry)
	}
}

// Row 113: a client that does not read is disconnected, and resumes without loss.
func TestStreamSlowReader(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.create(t, "ada@example.com")
	// Writes of this server time out immediately, and its client never reads.
	here, there := net.Pipe()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { New(l.Config).ServeHTTP(impatient{w}, r) })}
	listener := &pipe{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
	listener.conns <- there
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Fprintf(here, "GET /v1/events HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer %s\r\nAccept: text/event-stream\r\n\r\n", l.admin)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil { // returns when the handler has
		t.Errorf("Shutdown = %v: the stream hangs on its client", err)
	}
	<-served
}

// impatient makes every write time out immediately.
type impatient struct{ http.ResponseWriter }

func (w impatient) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w impatient) SetWriteDeadline(time.Time) error {
	return http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now())
}

// pipe is a listener that accepts the connections it is given.
type pipe struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipe) Close() error   { close(p.closed); return nil }
func (p *pipe) Addr() net.Addr { return &net.TCPAddr{} }

// A stream ends when its key is revoked.
func TestStreamRevoked(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	l := start(t, func(c *Config) {
		c.Heartbeat = 10 * time.Millisecond
		// Nothing is cached between two checks.
		c.Now = func() time.Time { return time.Now().Add(time.Duration(asked.Add(1)) * credentialTTL) }
	})
	s := l.stream(t, "/v1/events")
	s.next()
	check(t, l.Keys.DeleteSecret(t.Context(), credentialName(adminKeyID)))
	if f, ok := s.next(); ok {
		t.Errorf("after the key was revoked: %+v", f)
	}
}

// TestFeedOf reads the events of one account and of one group.
func TestFeedOf(t *testing.T) {
	t.Parallel()
	l := start(t)
	l.want(t, 200, "PUT", "/v1/group-types/CLUB", `{"roleMode":"any_roles"}`)
	l.want(t, 200, "PUT", "/v1/groups/CHESS", `{"groupName":"Chess","groupType":"CLUB"}`)
	a, b := l.create(t, "a@example.com"), l.create(t, "b@example.com")
	l.want(t, 200, "PUT", "/v1/accounts/"+a+"/groups/CHESS", `{"roles":[]}`)
	l.want(t, 200, "PUT", "/v1/accounts/"+b+"/groups/CHESS", `{"roles":[]}`)
	l.want(t, 200, "DELETE", "/v1/accounts/"+b+"/groups/CHESS", "")
	types := func(query string) (all []string) {
		for _, e := range l.want(t, 200, "GET", "/v1/events?"+query, "").member(t, "events").([]any) {
			all = append(all, e.(map[string]any)["type"].(string))
		}
		return all
	}
	for query, want := range map[string][]string{
		"sub=" + a: {"USER_CREATED", "GROUP_MEMBER_ADDED", "GROUP_MEMBER_ADDED"},
		// b is no longer a member: only its events about the group remain.
		"group=CHESS":                    {"GROUP_CREATED", "USER_CREATED", "GROUP_MEMBER_ADDED", "GROUP_MEMBER_ADDED", "GROUP_MEMBER_ADDED", "GROUP_MEMBER_REMOVED"},
		"group=CHESS&sub=" + b:           {"GROUP_MEMBER_ADDED", "GROUP_MEMBER_REMOVED"},
		"group=NONE":                     nil,
		"group=CHESS&types=USER_*":       {"USER_CREATED"},
		"sub=" + strings.ToUpper(a[:36]): {"USER_CREATED", "GROUP_MEMBER_ADDED", "GROUP_MEMBER_ADDED"},
	} {
		if got := types(query); !cmp.Equal(got, want) {
			t.Errorf("%s (-want +got):\n%s", query, cmp.Diff(want, got))
		}
	}
	// After a merge, the merged account's sub selects the surviving account's events.
	l.want(t, 200, "POST", "/v1/accounts/"+a+"/merge", fmt.Sprintf(`{"from":%q}`, b))
	l.want(t, 200, "PATCH", "/v1/accounts/"+a+"/custom-fields", `{"tier":"gold"}`)
	got := types("types=USER_UPDATED,USER_COMBINED&sub=" + b)
	if !cmp.Equal(got, []string{"USER_COMBINED", "USER_UPDATED"}) && !cmp.Equal(got, []string{"USER_UPDATED"}) {
		t.Errorf("events of the merged account: %v", got)
	}
}
