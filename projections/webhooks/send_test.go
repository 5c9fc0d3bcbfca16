package webhooks

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"accountledger/projections/webhooks/wire"
)

// Row 33: if the connection drops after the request, the attempt has failed, and
// the retry is another attempt.
func TestConnectionDropsAfterRequest(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var requests atomic.Int64
	go func() {
		for conn, err := listener.Accept(); err == nil; conn, err = listener.Accept() {
			request, err := http.ReadRequest(bufio.NewReader(conn))
			if err != nil {
				return
			}
			io.Copy(io.Discard, request.Body)
			if requests.Add(1) > 1 {
				fmt.Fprint(conn, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
			}
			conn.Close()
		}
	}()
	w := newWorld(t, Config{Schedule: []time.Duration{50 * time.Millisecond}})
	w.run()
	w.hook("crm", "http://"+listener.Addr().String())
	w.account("ada")
	w.settled("crm")
	all := w.deliveries("crm")
	if len(all) != 1 || len(all[0].Attempts) != 2 || all[0].Attempts[0].Error != "connection_reset" || all[0].Attempts[1].Status != 204 {
		t.Errorf("deliveries %+v, want one with a reset and a 204", all)
	}
	if n := requests.Load(); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}

// Row 12: the timestamp is the time of the request.
func TestTimestampIsNow(t *testing.T) {
	t.Parallel()
	var r receiver
	server := httptest.NewServer(&r)
	defer server.Close()
	w := newWorld(t, Config{})
	w.run()
	_, secret := w.hook("crm", server.URL)
	w.account("ada")
	w.settled("crm")
	g := r.got()[0]
	if err := verify(secret, g.header, g.body, g.time); err != nil {
		t.Error(err)
	}
	var seconds int64
	if _, err := fmt.Sscan(g.header.Get(wire.HeaderTimestamp), &seconds); err != nil || g.time.Sub(time.Unix(seconds, 0)).Abs() > 2*time.Second {
		t.Errorf("webhook-timestamp %q, want about %d", g.header.Get(wire.HeaderTimestamp), g.time.Unix())
	}
}
