package demo

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"chancery/internal/run/consumer"
)

// The kinds of consumers, by the protocol they speak.
const (
	kindLibvirtd   = "libvirtd"
	kindNginx      = "nginx"
	kindPostgreSQL = "postgresql"
)

// daemon is the consumer of a host: the real one, or a stand-in.
type daemon struct {
	kind, version string
	why           error // why a stand-in serves; nil where the real one does
	address, home string
	log           string // path of its log, where it has one
	restarts      bool   // it is started again when it ends
	start         func(context.Context) (*consumer.Process, error)

	mu      sync.Mutex // guards what follows
	process *consumer.Process
	ending  bool
}

// missing notes which consumer it is, and reports whether a stand-in is needed.
func (s *story) missing(ctx context.Context, d *daemon, program, kind string) bool {
	d.kind = kind
	d.version, d.why = s.Installed(ctx, program)
	return d.why != nil
}

// standIn has our own server started in the place of the real one.
func (d *daemon) standIn(program []string, of files, pidFile string) {
	args := append(slices.Clone(program[1:]), "serve", d.kind, d.address, pidFile, of.key, of.certificate, of.trust, of.crl)
	d.restarts, d.log = false, ""
	d.start = func(ctx context.Context) (*consumer.Process, error) {
		return consumer.Start(ctx, consumer.Program{Path: program[0], Args: args, Ready: consumer.Listening(d.address)})
	}
}

// product is the name of the consumer, or of the one that a stand-in stands for.
func (d *daemon) product() string {
	if d.kind == kindPostgreSQL {
		return "PostgreSQL"
	}
	return d.kind
}

// title says what serves.
func (d *daemon) title() string {
	if d.why != nil {
		return "a stand-in for " + d.product()
	}
	return d.product() + " " + d.version
}

// run starts the consumer, and starts it again whenever it ends, where an init system would.
func (d *daemon) run(ctx context.Context) error {
	p, err := d.begin(ctx)
	if err != nil || !d.restarts {
		return err
	}
	go func() {
		for {
			select {
			case <-p.Done():
			case <-ctx.Done():
				return
			}
			next, err := d.begin(ctx)
			if err != nil || next == nil {
				return // whoever asks for it next sees that it is down
			}
			p = next
		}
	}()
	return nil
}

// begin starts the consumer once; not any more when it is to end.
func (d *daemon) begin(ctx context.Context) (*consumer.Process, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ending || ctx.Err() != nil {
		return nil, nil
	}
	p, err := d.start(ctx)
	if p != nil {
		d.process = p
	}
	return p, err
}

func (d *daemon) stop() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ending = true
	if d.process == nil {
		return nil
	}
	return d.process.Stop()
}

// dial connects, up to where TLS begins.
func (d *daemon) dial(ctx context.Context) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", d.address)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if d.kind != kindPostgreSQL {
		return conn, nil
	}
	var answer [1]byte
	_, err = conn.Write(sslRequest)
	if err == nil {
		_, err = io.ReadFull(conn, answer[:])
	}
	if err == nil && answer[0] != 'S' {
		err = errors.New("the server does not want TLS")
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// sslRequest is the message by which a PostgreSQL client asks for TLS.
var sslRequest = []byte{0, 0, 0, 8, 4, 210, 22, 47}

// errRefused says that a consumer did not let somebody in.
var errRefused = errors.New("refused")

// enter connects to the consumer with a certificate, and is let in or gets errRefused with the reason.
func (h *host) enter(ctx context.Context, own *tls.Certificate) error {
	if h.daemon.kind == kindPostgreSQL && h.daemon.why == nil {
		return h.logIn(ctx, own)
	}
	return h.knock(ctx, own)
}

// knock connects and waits for the octet by which libvirtd confirms a client; the stand-ins have the same.
func (h *host) knock(ctx context.Context, own *tls.Certificate) error {
	conn, err := h.daemon.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	t := tls.Client(conn, h.peer(own))
	before := size(h.daemon.log)
	err = t.HandshakeContext(ctx)
	if err == nil {
		var one [1]byte
		_, err = io.ReadFull(t, one[:])
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %s", errRefused, h.daemon.reason(err, before))
}

// logIn logs in to PostgreSQL as app.
func (h *host) logIn(ctx context.Context, own *tls.Certificate) error {
	host, port := hostPort(h.daemon.address)
	config, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%s user=app dbname=postgres sslmode=require", host, port))
	if err != nil {
		return err
	}
	config.TLSConfig, config.Fallbacks = h.peer(own), nil
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		// A client that speaks first can miss why it is refused.
		return h.knock(ctx, own)
	}
	defer conn.Close(ctx)
	var who string
	if err := conn.QueryRow(ctx, "select current_user").Scan(&who); err != nil || who != "app" {
		return fmt.Errorf("logged in as %q: %w", who, err)
	}
	return nil
}

// createRole makes the role that the story's application logs in as.
func createRole(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "create role app login")
	return err
}

// reason is why the other side refused: its alert, or what it wrote to its log after a place in it.
func (d *daemon) reason(err error, from int64) string {
	var remote *net.OpError
	if errors.As(err, &remote) && remote.Op == "remote error" {
		return remote.Err.Error()
	}
	if said := d.logged(from); said != "" {
		return said
	}
	return "it hangs up"
}

// logged is the last error that a log has after a place in it; it may come a moment after the connection ended.
func (d *daemon) logged(from int64) string {
	for try := 0; d.log != "" && try < 50; try++ {
		text, err := os.ReadFile(d.log)
		if err == nil && int64(len(text)) > from {
			said := ""
			for lines := bufio.NewScanner(bytes.NewReader(text[from:])); lines.Scan(); {
				if _, message, ok := strings.Cut(lines.Text(), "Certificate failed validation: "); ok {
					said = message
				}
			}
			if said != "" {
				return said
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return ""
}

func size(file string) int64 {
	st, err := os.Stat(file)
	if err != nil {
		return 0
	}
	return st.Size()
}
