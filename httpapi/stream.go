package httpapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"accountledger/domain"
	"accountledger/eventstore"
)

// GET /v1/events streams the feed as server-sent events (WHATWG HTML, section
// 9.2) to clients that accept text/event-stream. Each frame's id is a cursor: a
// client that reconnects with the last one as Last-Event-ID resumes after it.
const (
	eventStream = "text/event-stream"

	// defaultHeartbeat is the interval of heartbeats. A heartbeat is a
	// checkpoint frame if the place has moved since the last frame.
	defaultHeartbeat = 15 * time.Second
	// slowReader is how long a write to a client may take before the server
	// disconnects it. Nothing is buffered for it; it resumes where it was.
	slowReader = 10 * time.Second
	// comeBack is the reconnection time for clients, in milliseconds.
	comeBack = 1000
)

// wantsStream reports whether a request accepts text/event-stream explicitly;
// */* gets a page.
func wantsStream(accept string) bool {
	for part := range strings.SplitSeq(accept, ",") {
		if t, _, err := mime.ParseMediaType(part); err == nil && t == eventStream {
			return true
		}
	}
	return false
}

// streamEvents streams events until the client disconnects or the server shuts
// down. It returns an error only before the response has begun.
func (s *server) streamEvents(ctx context.Context, c *call) error {
	query := c.r.URL.Query()
	for _, name := range []string{"limit", "wait", "min_position"} {
		if query.Has(name) {
			p := newProblem(codeInvalidParameter, "A parameter is not allowed in a stream.")
			p.Errors = []fault{{Parameter: name, Detail: "is allowed for pages only"}}
			return p
		}
	}
	which, err := selects(query.Get("types"), query.Get("sub"), query.Get("group"))
	if err != nil {
		return err
	}
	last := query.Get("after")
	if id := c.r.Header.Get("Last-Event-ID"); id != "" {
		last = id
	}
	if last == "" {
		last = "0"
	}
	after, err := s.parseCursor(ctx, last)
	if err != nil {
		return err
	}
	if _, err := s.logEpoch(ctx); err != nil {
		return err
	}
	which.limit = 1
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.Closing, cancel)()
	f := &frames{s: s, c: c, which: which, place: after, control: http.NewResponseController(c.w)}
	header := c.w.Header()
	header.Set("Content-Type", eventStream)
	header.Set("X-Accel-Buffering", "no") // tells proxies not to buffer
	c.w.WriteHeader(http.StatusOK)
	f.out = bufio.NewWriterSize(deadlined{f.control, c.w}, 16<<10)
	// The first frame has no event: it tells the client that it is connected,
	// its reconnection time and its cursor.
	fmt.Fprintf(f.out, "retry: %d\n", comeBack)
	if err = f.checkpoint(ctx); err == nil {
		err = f.follow(ctx)
	}
	if ctx.Err() == nil {
		s.Logger.WarnContext(ctx, "stream ended", "err", err, "request", c.id)
	}
	return nil
}

// frames writes the frames of one stream.
type frames struct {
	s       *server
	c       *call
	which   selection
	place   place // everything up to here has been sent
	sent    place // of the last frame with an id
	out     *bufio.Writer
	control *http.ResponseController
}

// deadlined limits each write to a client to slowReader.
type deadlined struct {
	control *http.ResponseController
	w       http.ResponseWriter
}

func (d deadlined) Write(p []byte) (int, error) {
	// Writers without deadlines, such as those of tests, do not need them.
	if err := d.control.SetWriteDeadline(time.Now().Add(slowReader)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return d.w.Write(p)
}

// follow writes events until ctx ends, or the client no longer reads or is no
// longer authorized.
func (f *frames) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	pages, ended := make(chan []eventstore.Recorded), make(chan error, 1)
	done := make(chan struct{}) // a page may be used until done receives
	go func() {
		for page, err := range f.s.Log.Subscribe(ctx, f.place.position) {
			if err != nil {
				ended <- err
				return
			}
			select {
			case pages <- page:
				<-done
			case <-ctx.Done():
			}
		}
	}()
	alive := time.NewTicker(f.s.Heartbeat)
	defer func() { // waits for the goroutine to end
		alive.Stop()
		cancel()
		<-ended
	}()
	for {
		var err error
		select {
		case page := <-pages:
			err = f.page(ctx, page)
			done <- struct{}{}
		case <-alive.C:
			err = f.beat(ctx)
		case err = <-ended:
			ended <- err
		}
		if err == nil {
			err = f.flush()
		}
		if err != nil {
			return err
		}
	}
}

// page writes the events of a page of the log.
func (f *frames) page(ctx context.Context, page []eventstore.Recorded) (err error) {
	if f.which.hidden, err = f.s.hidden(ctx, f.c); err != nil {
		return err
	}
	for _, rec := range page {
		for f.place.position < rec.Position { // one by one: a client may disconnect between two public events of one event
			events, next, _, err := f.s.public(ctx, nil, f.place, rec, f.which)
			if err != nil {
				return err
			}
			for _, e := range events {
				if err := f.event(ctx, next, e); err != nil {
					return err
				}
			}
			f.place = next
		}
	}
	return nil
}

func (f *frames) event(ctx context.Context, at place, e domain.PublicEvent) error {
	data, err := json.Marshal(e, json.Deterministic(true)) // without line breaks
	if err != nil {
		return err
	}
	return f.frame(ctx, at, e.Type, data)
}

// beat sends a heartbeat if the caller is still authorized: revoking a key also
// ends its streams.
func (f *frames) beat(ctx context.Context) error {
	if err := f.s.recognize(ctx, f.c, scopeEventsRead, f.c.r.Header.Get("Authorization")); err != nil {
		return err
	}
	if f.place != f.sent {
		return f.checkpoint(ctx)
	}
	_, err := f.out.WriteString(": \n\n")
	return err
}

// checkpoint sends the current place without an event.
func (f *frames) checkpoint(ctx context.Context) error {
	if err := f.frame(ctx, f.place, "checkpoint", fmt.Appendf(nil, `{"position":%d}`, f.place.position)); err != nil {
		return err
	}
	return f.flush()
}

func (f *frames) frame(ctx context.Context, at place, event string, data []byte) error {
	id, err := f.s.cursor(ctx, at)
	if err != nil {
		return err
	}
	f.sent = at
	_, err = fmt.Fprintf(f.out, "id: %s\nevent: %s\ndata: %s\n\n", id, event, data)
	return err
}

func (f *frames) flush() error {
	if err := f.out.Flush(); err != nil {
		return err
	}
	return f.control.Flush()
}
