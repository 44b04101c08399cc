package hosts_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/pki/keyfile"
)

// placedPair is what an agent placed on a host, in the hands of an intruder: path and key, as a client shows them.
func (h *host) placedPair(trust []byte, certificate, key string) *peer {
	h.t.Helper()
	private, err := keyfile.ParsePrivateKey(h.read(key), nil)
	must(h.t, err)
	return newPeer(h.t, trust, h.read(certificate), private)
}

// webHolder is a host that holds a web server's certificate, with a key that any libvirt takes.
func (w *world) webHolder(t *testing.T, pool string) *host {
	t.Helper()
	h := w.newHost(t, "web", machine{pool: pool, directory: true})
	h.join(order("nginx", "algorithm=rsa-3072", "probe=false", "pid_file=/run/none.pid", "conf="+h.path(nginxConf)))
	h.write("/etc/chancery/agent.yaml", "steps:\n  nginx:\n    check: [/bin/true]\n    reload: [/bin/true]\n")
	h.converge()
	return h
}

// TestWebServerIsNoClient: the certificate of a web server opens neither libvirtd nor PostgreSQL: not one of another pool,
// whose root they do not have, and not one of the same pool, which is for servers only and says so critically. The
// negotiation is the consumers' own; the certificates are those that agents placed.
func TestWebServerIsNoClient(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool, other := w.pool(t), w.pool(t)
	same, stranger := w.webHolder(t, pool.Name), w.webHolder(t, other.Name)
	trust := append(trustOf(pool), trustOf(other)...) // of the intruder, who believes everybody

	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		// Whoever could show the certificate would be let in by its common name.
		d := w.runningDatabase(t, machine{pool: pool.Name}, same.name, stranger.name, "app")
		root := []byte(pool.Root.PEM)
		d.refused(root, same.placedPair(trust, nginxCert, nginxKey), same.name, "unsupported certificate")
		d.refused(root, stranger.placedPair(trust, nginxCert, nginxKey), stranger.name, "unknown ca")
		d.refused(root, d.h.placedPair(trust, pgCert, pgKey), "app", "unsupported certificate") // its own server's
		d.lets(root, w.clientOf(t, pool, same.name), same.name)                                 // the name is right: it is the purpose that is not
	})
	t.Run("nginx", func(t *testing.T) {
		t.Parallel()
		s := w.runningWeb(t, machine{pool: pool.Name})
		root := []byte(pool.Root.PEM)
		s.refuses(root, same.placedPair(trust, nginxCert, nginxKey), "unsuitable certificate purpose")
		s.refuses(root, stranger.placedPair(trust, nginxCert, nginxKey), "client SSL certificate verify error")
		s.lets(root, w.clientOf(t, pool, same.name))
	})
	t.Run("libvirtd", func(t *testing.T) {
		t.Parallel()
		scene := newScene(t)
		same := w.webHolder(t, scene.pool.Name)
		trust, d, h := append(trustOf(scene.pool), trustOf(other)...), scene.d, scene.h
		for _, one := range []struct {
			of   *host
			says string
		}{{same, "purpose"}, {stranger, "The certificate hasn't got a known issuer"}} {
			intruder, before := one.of.placedPair(trust, nginxCert, nginxKey), len(d.log())
			if _, err := d.shake(intruder); !errors.Is(err, errRefused) {
				t.Errorf("%s: %v", one.says, err)
			}
			until(t, "the daemon says "+one.says, func() bool { return strings.Contains(d.log()[before:], one.says) })
			if out, err := d.virsh(h.at, intruder, "list").CombinedOutput(); err == nil {
				t.Errorf("virsh gets in (%s):\n%s", one.says, out)
			}
		}
		d.lets(h.at, w.peer(t, scene.pool, same.name)) // the same name as a client
	})
}

// TestClientIsNoWebServer: what clients hold does not stand for a server, though the name is right and the pool the same:
// OpenSSL, GnuTLS, libpq's and Go's clients refuse it, and take the server's own.
func TestClientIsNoWebServer(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	h := w.newHost(t, "both", machine{pool: pool.Name, directory: true})
	h.join(order("libvirt-client", "label="), order("plain", "key=/etc/ssl/web.key", "cert=/etc/ssl/web.pem"))
	h.converge()
	roots := filepath.Join(t.TempDir(), "root.pem")
	must(t, os.WriteFile(roots, []byte(pool.Root.PEM), 0o644))
	for _, c := range []struct {
		pair tls.Certificate
		fit  bool
	}{
		{h.placedPair(trustOf(pool), "/etc/pki/libvirt/clientcert.pem", "/etc/pki/libvirt/private/clientkey.pem").pair, false},
		{w.peerOf(t, pool, "client", h.name).pair, false},
		{h.placedPair(trustOf(pool), "/etc/ssl/web.pem", "/etc/ssl/web.key").pair, true},
	} {
		address := serveTLS(t, c.pair)
		host, port, _ := strings.Cut(address, ":")
		for name, cmd := range map[string]*exec.Cmd{
			"openssl": exec.Command("openssl", "s_client", "-connect", address, "-servername", h.name, "-verify_hostname", h.name, "-verify_return_error", "-CAfile", roots),
			"GnuTLS":  exec.Command("gnutls-cli", "--x509cafile="+roots, "--verify-hostname="+h.name, "--sni-hostname="+h.name, "--port="+port, host),
		} {
			out, err := cmd.CombinedOutput()
			if fit := err == nil; fit != c.fit {
				t.Errorf("%s of %s: %v\n%s", name, c.pair.Leaf.Subject, err, out)
			}
			if !c.fit && !strings.Contains(string(out), "purpose") {
				t.Errorf("%s refuses %s for another reason:\n%s", name, c.pair.Leaf.Subject, out)
			}
		}
		conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: poolOf(t, pool), ServerName: h.name})
		var unfit x509.CertificateInvalidError
		if c.fit && err != nil || !c.fit && (!errors.As(err, &unfit) || unfit.Reason != x509.IncompatibleUsage) {
			t.Errorf("Go's client of %s: %v", c.pair.Leaf.Subject, err)
		}
		if err == nil {
			conn.Close()
		}
	}
}

func poolOf(t *testing.T, p *client.Pool) *x509.CertPool {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(p.Root.PEM)) {
		t.Fatal("a pool without a root")
	}
	return roots
}

// serveTLS is a server that ends each connection in an orderly way once it is made.
func serveTLS(t *testing.T, pair tls.Certificate) (address string) {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				fmt.Fprintln(conn, "hello")
				conn.Close()
			}()
		}
	}()
	return listener.Addr().String()
}
