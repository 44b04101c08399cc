package hosts_test

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
	"chancery/internal/run/consumer"
)

const (
	ownAnchors   = "/usr/local/share/ca-certificates"
	systemBundle = "/etc/ssl/certs/ca-certificates.crt"
)

// debian is a host with Debian's trust store below its root, with the machine's public CAs and one that its operator added.
func (w *world) debian(t *testing.T, pool *client.Pool) (h *host, own *root.Root) {
	t.Helper()
	h = w.newHost(t, "debian", machine{pool: pool.Name, directory: true})
	for _, dir := range []string{"/etc/ssl", "/usr/share", ownAnchors} {
		must(t, os.MkdirAll(h.path(dir), 0o755))
	}
	output(t, h.command("cp", "-a", "/usr/share/ca-certificates", h.path("/usr/share/ca-certificates")))
	must(t, os.MkdirAll(h.path("/etc/ssl/certs"), 0o755))
	must(t, os.MkdirAll(h.path("/hooks"), 0o755))
	listed := output(t, h.command("sh", "-c", `cd "$1" && find . -name '*.crt' | sed 's/^..//'`, "sh", h.path("/usr/share/ca-certificates")))
	if n := strings.Count(listed, "\n"); n < 100 {
		t.Fatalf("the machine has %d public CAs, and this test is about a hundred and more", n)
	}
	h.write("/etc/ca-certificates.conf", listed)
	own, err := root.New(root.Options{Subject: cert.CommonName("operator's own")}, ecKey(t), time.Now())
	must(t, err)
	h.write(ownAnchors+"/operators-own.crt", string(keyfile.EncodeCertificates(own.Certificate)))
	output(t, h.command(h.updates()...))
	return h, own
}

// updates is update-ca-certificates for the host's own directories.
func (h *host) updates() []string {
	return []string{"/usr/sbin/update-ca-certificates", "--certsdir", h.path("/usr/share/ca-certificates"), "--localcertsdir", h.path(ownAnchors),
		"--etccertsdir", h.path("/etc/ssl/certs"), "--certsconf", h.path("/etc/ca-certificates.conf"), "--hooksdir", h.path("/hooks")}
}

// letIn accepts what is placed in a directory of the system's, and what stands in for its own command.
func (h *host) letIn(path, recipe, step string, vector []string) {
	h.t.Helper()
	h.write("/etc/chancery/agent.yaml", fmt.Sprintf("paths: [/etc/ssl, %s]\nsteps:\n  %s:\n    %s: [%s]\n", path, recipe, step, strings.Join(vector, ", ")))
}

// opensslServer is a TLS server with a peer's certificate.
func (h *host) opensslServer(p *peer) (address string) {
	h.t.Helper()
	address, err := consumer.FreeAddress()
	must(h.t, err)
	h.start(consumer.Program{Path: "openssl", Args: []string{"s_server", "-accept", address, "-www", "-quiet", "-key", filepath.Join(p.dir, "clientkey.pem"),
		"-cert", filepath.Join(p.dir, "clientcert.pem"), "-cert_chain", filepath.Join(p.dir, "clientcert.pem")}, Ready: consumer.Listening(address)})
	return address
}

// curlBelieves reports whether curl believes a server by a bundle (--cacert) or a directory of hash links (--capath) of the host's.
func (h *host) curlBelieves(address, flag, path string) bool {
	_, port, _ := strings.Cut(address, ":")
	cmd := h.command("curl", "-sS", "--fail", "-o", "/dev/null", flag, h.path(path), "https://localhost:"+port+"/")
	if flag == "--capath" {
		cmd.Env = append(cmd.Env, "SSL_CERT_FILE=/dev/null") // the directory alone
	}
	return cmd.Run() == nil
}

// anchorsIn are the names of our files in a directory of the host's.
func (h *host) anchorsIn(dir string) (names []string) {
	h.t.Helper()
	entries, err := os.ReadDir(h.path(dir))
	must(h.t, err)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "chancery-") {
			names = append(names, e.Name())
		}
	}
	return names
}

// TestOSTrust: curl and openssl believe servers of the pool by the system's store once the pool's root is there, and those of
// nobody else; public CAs and the operator's own stay; a root that comes is added and one that goes is taken out.
func TestOSTrust(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool, other := w.pool(t), w.pool(t)
	h, own := w.debian(t, pool)
	h.join(order("os-trust"))
	h.refuses("write into /etc/chancery/agent.yaml: paths: [")
	h.letIn(ownAnchors, "os-trust", "update-ca-certificates", h.updates())
	public := strings.Count(string(h.read(systemBundle)), "BEGIN CERTIFICATE")
	good, rogue := h.opensslServer(w.peerOf(t, pool, "server", "localhost")), h.opensslServer(w.peerOf(t, other, "server", "localhost"))
	believes := h.curlBelieves
	if believes(good, "--cacert", systemBundle) {
		t.Error("the pool is trusted before it was placed")
	}
	h.converge()
	seen := h.observed("os-trust")
	if seen.State != client.PlacementServed {
		t.Errorf("reported is %+v", seen)
	}
	for _, c := range []struct{ flag, path string }{{"--cacert", systemBundle}, {"--capath", "/etc/ssl/certs"}} {
		if !believes(good, c.flag, c.path) {
			t.Errorf("curl %s does not believe a server of the pool", c.flag)
		}
		if believes(rogue, c.flag, c.path) {
			t.Errorf("curl %s believes a server of another pool", c.flag)
		}
	}
	if n := strings.Count(string(h.read(systemBundle)), "BEGIN CERTIFICATE"); n != public+1 {
		t.Errorf("the bundle has %d certificates, and had %d", n, public)
	}
	placed := func() []string { return h.anchorsIn(ownAnchors) }
	first := placed()
	if len(first) != 1 {
		t.Fatalf("placed are %v", first)
	}
	before := h.inode(filepath.Join(ownAnchors, first[0]))
	bundle := h.inode(systemBundle)
	h.converge()
	if h.inode(filepath.Join(ownAnchors, first[0])) != before || h.inode(systemBundle) != bundle {
		t.Error("a second look changed the store")
	}

	// A rotation: another root comes beside the first, and goes again.
	late := h.opensslServer(forge(t, own, nil, forgery{name: "localhost", usage: x509.ExtKeyUsageServerAuth}))
	next, err := root.New(root.Options{Subject: cert.CommonName("next root, (two)")}, ecKey(t), time.Now())
	must(t, err)
	added, err := w.admin.AddTrust(t.Context(), pool.Name, client.AddTrustRequest{PEM: string(keyfile.EncodeCertificates(next.Certificate))})
	must(t, err)
	coming := h.opensslServer(forge(t, next, nil, forgery{name: "localhost", usage: x509.ExtKeyUsageServerAuth}))
	h.converge()
	if !believes(good, "--cacert", systemBundle) || !believes(coming, "--cacert", systemBundle) || len(placed()) != 2 {
		t.Errorf("with two roots: %v", placed())
	}
	must(t, w.admin.DropTrust(t.Context(), pool.Name, added[0].ID, client.DropTrustRequest{Because: "it was tried out"}))
	h.converge()
	if names := placed(); len(names) != 1 || names[0] != first[0] {
		t.Errorf("left are %v, and first were %v", names, first)
	}
	if believes(coming, "--cacert", systemBundle) || believes(coming, "--capath", "/etc/ssl/certs") || !believes(good, "--cacert", systemBundle) {
		t.Error("the root that went is still believed, or the other is not")
	}
	if !believes(late, "--cacert", systemBundle) || !believes(late, "--capath", "/etc/ssl/certs") {
		t.Error("the operator's own CA is not believed any more")
	}

	// Somebody takes ours out: it comes back, and is in the bundle.
	must(t, os.Remove(h.path(filepath.Join(ownAnchors, first[0]))))
	output(t, h.command(h.updates()...))
	h.converge()
	if !believes(good, "--cacert", systemBundle) {
		t.Error("the root that somebody removed did not come back")
	}
}

// TestOSTrustThatFails: where the system's command fails, or does nothing, the placement says so.
func TestOSTrustThatFails(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	h, _ := w.debian(t, pool)
	h.join(order("os-trust"))
	h.letIn(ownAnchors, "os-trust", "update-ca-certificates", []string{"/bin/false"})
	h.refuses("update-ca-certificates")
	h.letIn(ownAnchors, "os-trust", "update-ca-certificates", []string{"/bin/true"})
	h.refuses("so it is not trusted yet")
	h.letIn(ownAnchors, "os-trust", "update-ca-certificates", h.updates())
	h.converge()
}
