package main

import (
	"log/slog"
	"net"
	"os"
)

// notify sends the state of the service, READY=1 or STOPPING=1, to systemd; see
// sd_notify(3). It does nothing if systemd did not request notifications.
func notify(state string, logger *slog.Logger) {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return
	}
	// A name that begins with @ is an abstract socket, in net as in systemd.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(state))
		conn.Close()
	}
	if err != nil {
		logger.Warn("cannot notify the service manager", "state", state, "err", err)
	}
}
