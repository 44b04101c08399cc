package hosts_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/run/consumer"
)

// tunnel is a host whose stunnel takes a tunnel of one peer, and begins one to it. Each end knows the other's certificate and
// takes no other.
type tunnel struct {
	*host
	in, out string // where it listens: for the peer, and for who sends through the tunnel
	process *consumer.Process
	agent   *consumer.Process
}

// hello greets whoever connects, and hangs up.
func hello(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(conn, "hello from behind %s\n", name)
			conn.Close()
		}
	}()
	return l.Addr().String()
}

// tunnels are the hosts of one pool that tunnel to each other, joined, with their agents and stunnels running.
func tunnels(t *testing.T, w *world) (both [2]*tunnel, pool *client.Pool) {
	t.Helper()
	pool = w.pool(t)
	for i := range both {
		h := w.newHost(t, "tunnel", machine{pool: pool.Name})
		both[i] = &tunnel{host: h}
		for _, at := range []*string{&both[i].in, &both[i].out} {
			free, err := consumer.FreeAddress()
			must(t, err)
			_, port, _ := strings.Cut(free, ":")
			*at = h.at + ":" + port
		}
	}
	for i, h := range both {
		h.equip(t, both[1-i])
	}
	for _, h := range both {
		h.agent = h.start(consumer.Program{Path: program(t), Args: []string{"agent", "run", "--state", h.state}})
	}
	for _, h := range both {
		until(t, "files are placed at "+h.name, func() bool { _, err := os.Stat(h.path(h.cert())); return err == nil })
	}
	return both, pool
}

func (h *tunnel) cert() string { return "/etc/stunnel/tls/server.pem" }

// equip writes the configuration and joins.
func (h *tunnel) equip(t *testing.T, peer *tunnel) {
	t.Helper()
	in, tls := h.inside, "/etc/stunnel/tls/"
	own := fmt.Sprintf("cert = %s\nkey = %s\nverifyPeer = yes\nCAfile = %s\n", in(h.cert()), in(tls+"server.key"), in(tls+"peers.pem"))
	config := fmt.Sprintf("foreground = yes\npid = %s\noutput = %s\ndebug = 5\n[in]\naccept = %s\nconnect = %s\n%s[out]\nclient = yes\naccept = %s\nconnect = %s\n%s",
		in("/run/tunnel/stunnel.pid"), in(stunnelLog), h.in, hello(t, h.name), own, h.out, peer.in, own)
	must(t, os.MkdirAll(h.path("/run/tunnel"), 0o755))
	parameters := []string{"pinned=true", "purpose=tunnel", "address=" + h.in, "pid_file=" + in("/run/tunnel/stunnel.pid"), "process=stunnel4"}
	if os.Geteuid() == 0 {
		config = "setuid = stunnel4\nsetgid = stunnel4\n" + config
		parameters = append(parameters, "user=stunnel4")
		h.run("chown", "stunnel4:", "/run/tunnel")
	}
	h.write(stunnelConf, config)
	h.join(order("stunnel", parameters...))
}

// begin starts stunnel on ports that are held open for it, as a socket unit of systemd does: at a SIGHUP stunnel closes ports of
// its own and opens them again, and who comes in between is refused.
func (h *tunnel) begin() {
	h.t.Helper()
	h.process = h.start(consumer.Program{
		Path: "/usr/bin/systemd-socket-activate", Args: []string{"--listen=" + h.in, "--listen=" + h.out, "/usr/bin/stunnel4", h.inside(stunnelConf)},
		Ready: consumer.Listening(h.in),
	})
}

func (h *tunnel) leaf() *x509.Certificate { return parsed(h.t, h.read(h.cert())) }

// asks goes through the tunnel that begins at h, and wants to be greeted behind the other end.
func (h *tunnel) asks(ctx context.Context, other *tunnel) error {
	conn, err := (&net.Dialer{Timeout: time.Minute}).DialContext(ctx, "tcp", h.out)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	text, err := io.ReadAll(conn)
	if err == nil && !strings.Contains(string(text), other.name) {
		err = fmt.Errorf("nobody behind the tunnel from %s answered: %q", h.name, text)
	}
	return err
}

// count is what a prober saw.
type count struct {
	mu     sync.Mutex // guards what follows
	made   int
	failed []error
}

func (c *count) add(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made++
	if err != nil {
		c.failed = append(c.failed, err)
	}
}

func (c *count) said() (int, []error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.made, c.failed
}

// probing asks through both tunnels, some dozens of times a second, until the function that it returns is called. Without a pause it would
// take from all other tests what there is of processors.
func probing(t *testing.T, both [2]*tunnel) (*count, func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	c := &count{}
	var all sync.WaitGroup
	for i, h := range both {
		all.Go(func() {
			for ctx.Err() == nil {
				if err := h.asks(ctx, both[1-i]); ctx.Err() == nil {
					c.add(err)
				}
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	end := sync.OnceFunc(func() { cancel(); all.Wait() })
	t.Cleanup(end)
	return c, end
}

// TestStunnelsThatPinEachOther: each new certificate is with the peer before it is shown, so no connection is refused at any
// moment of a renewal, of one end, of the other, and of both at once.
func TestStunnelsThatPinEachOther(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	both, pool := tunnels(t, w)
	for i, h := range both {
		until(t, "each holds the other's certificate", func() bool { return h.pins(both[1-i].leaf(), h.leaf()) })
	}
	for _, h := range both {
		h.begin()
	}
	for i, h := range both {
		until(t, "a tunnel leads to the other", func() bool { return h.asks(t.Context(), both[1-i]) == nil })
	}
	own, err := tls.LoadX509KeyPair(both[1].path(both[1].cert()), both[1].path("/etc/stunnel/tls/server.key"))
	must(t, err)
	if err := both[0].takes(own); err != nil {
		t.Errorf("the peer's certificate is refused: %v", err)
	}
	stranger := w.clientOf(t, pool, "stranger")
	if err := both[0].takes(stranger.pair); err == nil {
		t.Error("a certificate of the same pool, which nobody pins, is let in")
	}

	seen, end := probing(t, both)
	renew := func(which ...*tunnel) {
		t.Helper()
		before := map[*tunnel]*x509.Certificate{}
		for _, h := range which {
			before[h] = h.leaf()
			w.chancery(t, "host", "set", h.name, "--dns", fmt.Sprintf("name%d-%s", time.Now().UnixNano(), h.name))
		}
		for _, h := range which {
			until(t, h.name+" serves a new certificate", func() bool {
				served := onTheWire(t, h.host, h.in)
				return served != cert.FormatSerial(before[h].SerialNumber) && served == cert.FormatSerial(h.leaf().SerialNumber)
			})
			until(t, "the authority knows", func() bool {
				o := h.observed("stunnel")
				return o.Serial == cert.FormatSerial(h.leaf().SerialNumber) && len(o.Announced) == 0
			})
		}
	}
	renew(both[0])
	renew(both[1])
	renew(both[0], both[1])
	for i, h := range both {
		until(t, "what was there before is not pinned any more", func() bool { return len(h.pinned()) == 2 && h.pins(h.leaf(), both[1-i].leaf()) })
	}
	end()
	made, failed := seen.said()
	t.Logf("%d connections through the tunnels during four renewals, %d refused", made, len(failed))
	if made < 20 || len(failed) > 0 {
		t.Errorf("%d connections, of which failed %v", made, failed[:min(len(failed), 5)])
		for _, h := range both {
			t.Logf("%s holds %d pinned, and its stunnel says\n%s", h.name, len(h.pinned()), interesting(h.read(stunnelLog)))
			t.Logf("its agent says\n%s", h.agent.Output())
		}
	}
}

// interesting is what stunnel says of reloads, and of the first connections between two of them that failed.
func interesting(log []byte) string {
	var all []string
	failed := 0
	for line := range strings.Lines(string(log)) {
		switch {
		case strings.Contains(line, "eload") || strings.Contains(line, "SIGHUP") || strings.Contains(line, "onfiguration"):
			failed = 0
		case strings.Contains(line, "LOG3") || strings.Contains(line, "LOG4"):
			if failed++; failed > 3 {
				continue
			}
		default:
			continue
		}
		all = append(all, line)
	}
	return strings.Join(all, "")
}

// pinned are the certificates that are pinned on a host.
func (h *tunnel) pinned() []*x509.Certificate {
	h.t.Helper()
	all, err := keyfile.ParseCertificates(h.read("/etc/stunnel/tls/peers.pem"))
	must(h.t, err)
	return all
}

// pins reports whether a host pins certificates.
func (h *tunnel) pins(those ...*x509.Certificate) bool {
	for _, c := range those {
		if !slices.ContainsFunc(h.pinned(), c.Equal) {
			return false
		}
	}
	return true
}

// takes shows the host's end a certificate, and wants to be greeted.
func (h *tunnel) takes(shown tls.Certificate) error {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Minute}, "tcp", h.in, &tls.Config{
		InsecureSkipVerify: true, // whom it takes is asked, and not who it is
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &shown, nil // whatever names of CAs it sends: they are those of the peers, who are none
		},
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	text, err := io.ReadAll(conn)
	if err == nil && !strings.HasPrefix(string(text), "hello") {
		err = fmt.Errorf("it said %q", text)
	}
	return err
}
