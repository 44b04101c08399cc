package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/net/netutil"
)

// The limits of every listener. A slow client is cut off while it sends its header or its body, and a connection that says
// nothing is closed. Handlers that stream set a deadline for each write themselves.
const (
	headerTimeout  = 10 * time.Second
	readTimeout    = 30 * time.Second
	writeTimeout   = 2 * time.Minute
	idleTimeout    = 2 * time.Minute
	maxHeader      = 16 << 10
	maxConnections = 20_000 // a node holds 10,000 idle agents, and operators must still get in
	maxStreams     = 100    // of one HTTP/2 connection
)

// listener is one listening socket with its http.Server.
type listener struct {
	name   string
	socket net.Listener
	server *http.Server
	tls    bool
}

// listen opens the socket, so that a busy port is an error before anything else has begun.
func listen(name, address string, config *tls.Config, handler http.Handler, proxies []netip.Prefix, logger *slog.Logger) (*listener,
	error) {
	socket, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w", name, err)
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(config != nil)
	return &listener{
		name: name, tls: config != nil,
		socket: newPeers(netutil.LimitListener(socket, maxConnections), maxFromOne, proxies),
		server: &http.Server{
			Handler: handler, TLSConfig: config, Protocols: protocols,
			ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
			MaxHeaderBytes: maxHeader,
			HTTP2: &http.HTTP2Config{
				MaxConcurrentStreams: maxStreams, SendPingTimeout: idleTimeout / 4, PingTimeout: headerTimeout,
				WriteByteTimeout: writeTimeout,
			},
			// What a stranger's handshake comes to is no business of the log above debug.
			ErrorLog: slog.NewLogLogger(logger.With("listener", name).Handler(), slog.LevelDebug),
		},
	}, nil
}

// address is where it listens, with the port that the system chose.
func (l *listener) address() string { return l.socket.Addr().String() }

// Run serves until shutdown.
func (l *listener) Run() error {
	serve := l.server.Serve
	if l.tls {
		serve = func(s net.Listener) error { return l.server.ServeTLS(s, "", "") }
	}
	if err := serve(l.socket); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.name, err)
	}
	return nil
}

// shutdown lets calls in progress end, and cuts off what has not by ctx's end.
func (l *listener) shutdown(ctx context.Context) error {
	if err := l.server.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("shut down %s: %w", l.name, err), l.server.Close())
	}
	return nil
}
