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

// The feed as a stream of server-sent events (WHATWG HTML, section 9.2), for
// who asks GET /v1/events for text/event-stream. Each frame has a cursor as its
// id: a client that comes back with the last one as Last-Event-ID goes on
// right after it.
const (
	eventStream = "text/event-stream"

	// defaultHeartbeat is how often a stream shows that it lives, with a
	// checkpoint frame where the place has moved and no event told of it.
	defaultHeartbeat = 15 * time.Second
	// slowReader is how long a client may take for what was written, before it
	// is let go: nothing waits in memory for it, and it resumes where it was.
	slowReader = 10 * time.Second
	// comeBack is after how many milliseconds a client should, when a stream ends.
	comeBack = 1000
)

// wantsStream reports whether a request asks for a stream. Who accepts anything
// gets a page.
func wantsStream(accept string) bool {
	for part := range strings.SplitSeq(accept, ",") {
		if t, _, err := mime.ParseMediaType(part); err == nil && t == eventStream {
			return true
		}
	}
	return false
}

// streamEvents answers with events as they happen, until the client goes, or
// the server does. An error is returned only before anything was answered.
func (s *server) streamEvents(ctx context.Context, c *call) error {
	query := c.r.URL.Query()
	for _, name := range []string{"limit", "wait", "min_position"} {
		if query.Has(name) {
			p := newProblem(codeInvalidParameter, "A parameter has no meaning in a stream.")
			p.Errors = []fault{{Parameter: name, Detail: "is of pages, not of streams"}}
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
	header.Set("X-Accel-Buffering", "no") // said to proxies that would collect before they pass on
	c.w.WriteHeader(http.StatusOK)
	f.out = bufio.NewWriterSize(deadlined{f.control, c.w}, 16<<10)
	// First a frame without an event: the client knows that it is connected,
	// when to come back, and where it is.
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
	place   place // what is told up to
	told    place // of the last frame with an id
	out     *bufio.Writer
	control *http.ResponseController
}

// deadlined lets each write to a client take slowReader and no longer.
type deadlined struct {
	control *http.ResponseController
	w       http.ResponseWriter
}

func (d deadlined) Write(p []byte) (int, error) {
	// A writer that knows no deadlines, as tests have, needs none.
	if err := d.control.SetWriteDeadline(time.Now().Add(slowReader)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return d.w.Write(p)
}

// follow writes what happens until ctx ends, the client no longer reads, or
// may no longer.
func (f *frames) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	pages, ended := make(chan []eventstore.Recorded), make(chan error, 1)
	done := make(chan struct{}) // a page is ours until then
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
	defer func() { // the log's pages end with us
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
		for f.place.position < rec.Position { // one by one: a client may go away between two that are one event of the log
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
	data, err := json.Marshal(e, json.Deterministic(true)) // has no line breaks
	if err != nil {
		return err
	}
	return f.frame(ctx, at, e.Type, data)
}

// beat shows that the stream lives, if its client still may read it: a key that
// was revoked ends its streams, too.
func (f *frames) beat(ctx context.Context) error {
	if err := f.s.recognize(ctx, f.c, scopeEventsRead, f.c.r.Header.Get("Authorization")); err != nil {
		return err
	}
	if f.place != f.told {
		return f.checkpoint(ctx)
	}
	_, err := f.out.WriteString(": \n\n")
	return err
}

// checkpoint tells the place where no event does.
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
	f.told = at
	_, err = fmt.Fprintf(f.out, "id: %s\nevent: %s\ndata: %s\n\n", id, event, data)
	return err
}

func (f *frames) flush() error {
	if err := f.out.Flush(); err != nil {
		return err
	}
	return f.control.Flush()
}
