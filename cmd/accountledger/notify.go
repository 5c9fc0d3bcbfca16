package main

import (
	"log/slog"
	"net"
	"os"
)

// notify tells systemd what state the service is in, see sd_notify(3): "READY=1"
// or "STOPPING=1". Where nobody has started the program who wants to know it
// does nothing.
func notify(state string, logger *slog.Logger) {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return
	}
	// A name that begins with @ is abstract, for package net as for systemd.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(state))
		conn.Close()
	}
	if err != nil {
		logger.Warn("the service manager was not told", "state", state, "err", err)
	}
}
