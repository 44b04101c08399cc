package hosts_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/run/consumer"
)

// registry starts a registry of images whose certificate and clients are a pool's.
func (w *world) registry(t *testing.T, pool *client.Pool) (r *consumer.Registry, host, port string) {
	t.Helper()
	p := w.peerOf(t, pool, "server", "localhost")
	r, err := consumer.StartRegistry(context.WithoutCancel(t.Context()), t.TempDir(), filepath.Join(p.dir, "clientcert.pem"), filepath.Join(p.dir, "clientkey.pem"),
		filepath.Join(p.dir, "cacert.pem"))
	must(t, err)
	t.Cleanup(func() { must(t, r.Stop()) })
	host, port, _ = strings.Cut(r.Address, ":")
	return r, host, port
}

// logsIn has skopeo, which reads certs.d as Podman and Docker do, log in to a registry. Where the host is a directory it is told
// where to look.
func (h *host) logsIn(r *consumer.Registry, dir string) (string, bool) {
	h.t.Helper()
	args := []string{"skopeo", "login", "--username", "x", "--password-stdin", "--authfile", filepath.Join(h.home, "auth.json")}
	if h.root != "" {
		args = append(args, "--cert-dir", h.path(dir))
	}
	cmd := h.command(append(args, r.Address)...)
	cmd.Stdin = strings.NewReader("x\n")
	out, err := cmd.CombinedOutput()
	return string(out), err == nil
}

// TestCertsD: a client of images gets into the registry of its pool with what certs.d holds for it, and into no other; without a
// certificate of its own it is not let in.
func TestCertsD(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool, other := w.pool(t), w.pool(t)
	r, name, port := w.registry(t, pool)
	strange, strangeName, strangePort := w.registry(t, other)
	h := w.newHost(t, "docker", machine{pool: pool.Name})
	orders := []client.PlacementOrder{order("certs.d", "registry="+name, "port="+port), order("certs.d", "registry="+strangeName, "port="+strangePort)}
	orders[0].Name, orders[1].Name = "registry", "strange"
	h.join(orders...)
	h.refuses("this host accepts files under")
	h.write("/etc/chancery/agent.yaml", "paths: [/etc/docker/certs.d]\n")
	dir, strangeDir := "/etc/docker/certs.d/"+r.Address, "/etc/docker/certs.d/"+strange.Address
	if said, ok := h.logsIn(r, dir); ok {
		t.Fatalf("it is let in without anything: %s", said)
	}
	h.converge()
	if seen := h.observed("registry"); seen.State != client.PlacementPlaced || seen.Serial == "" {
		t.Errorf("reported is %+v", seen)
	}
	said, ok := h.logsIn(r, dir)
	if !ok {
		t.Errorf("it is not let in: %s", said)
	}
	if said, ok := h.logsIn(strange, strangeDir); ok || !strings.Contains(said, "unknown authority") {
		t.Errorf("it believes the registry of another pool: %s", said)
	}
	// Whoever is believed and not known.
	guest := w.newHost(t, "guest", machine{pool: pool.Name})
	guest.join(order("certs.d", "registry="+name, "port="+port, "client=false"))
	guest.write("/etc/chancery/agent.yaml", "paths: [/etc/docker/certs.d]\n")
	guest.converge()
	if seen := guest.observed("certs.d"); seen.State != client.PlacementPlaced || seen.Serial != "" {
		t.Errorf("a host without a certificate: %+v", seen)
	}
	if said, ok := guest.logsIn(r, dir); ok || !strings.Contains(said, "remote error: tls: ") {
		t.Errorf("a client without a certificate: %s", said)
	}
	guest.absent(dir+"/client.key", dir+"/client.cert")

	before := parsed(t, h.read(dir+"/client.cert"))
	_, err := w.admin.Revoke(t.Context(), "", h.observed("registry").Serial, client.RevokeRequest{Reason: "superseded"})
	must(t, err)
	h.converge()
	if parsed(t, h.read(dir+"/client.cert")).Equal(before) {
		t.Error("it was not renewed")
	}
	if said, ok := h.logsIn(r, dir); !ok {
		t.Errorf("after the renewal: %s", said)
	}
}
