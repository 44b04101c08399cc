package hosts_test

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
)

// TestDaemonRefuses: whoever should not get in does not, the daemon says why, and others get in as before.
func TestDaemonRefuses(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).refuses) {
		return
	}
	w := theWorld(t)
	pool, owner := w.ownedPool(t)
	h := w.newHost(t, "host", machine{pool: pool.Name})
	port := h.configure(`tls_allowed_dn_list = [ "CN=good*", "O=forged,CN=*" ]`)
	h.join(order("libvirt-server"))
	h.converge()
	d, trust := h.libvirtd(port), trustOf(pool)
	good := w.peer(t, pool, "good1")
	d.lets(h.name, good)
	other, err := root.New(root.Options{Subject: cert.CommonName("rogue"), PathLen: 1}, ecKey(t), time.Now())
	must(t, err)
	both := append([]byte{}, trust...)
	both = append(both, keyfile.EncodeCertificates(other.Certificate)...)
	now := time.Now()
	const untrusted = "Certificate failed validation: The certificate is not trusted" // what it says of times, too; "fine" below is the proof
	for name, c := range map[string]struct {
		p    *peer
		says string
	}{
		"of another CA":                {forge(t, other, both, forgery{name: "rogue"}), "The certificate hasn't got a known issuer"},
		"without a certificate":        {newPeer(t, trust, nil, nil), "No certificate was found"},
		"expired":                      {forge(t, owner, trust, forgery{name: "late", notBefore: now.Add(-48 * time.Hour), after: now.Add(-time.Hour)}), untrusted},
		"of the future":                {forge(t, owner, trust, forgery{name: "early", notBefore: now.Add(time.Hour)}), untrusted},
		"not on the list":              {w.peer(t, pool, "stranger"), "Client's Distinguished Name is not on the list"},
		"a server's":                   {forge(t, owner, trust, forgery{name: "server", usage: x509.ExtKeyUsageServerAuth}), "purpose"},
		"of the authority, a server's": {w.peerOf(t, pool, "libvirt-server", "good-server"), "purpose"},
	} {
		before := len(d.log())
		if _, err := d.shake(c.p); !errors.Is(err, errRefused) {
			t.Errorf("a client %s: %v", name, err)
		}
		until(t, fmt.Sprintf("the daemon's log says of a client %s: %s; it says:\n%s", name, c.says, d.log()[before:]), func() bool { return strings.Contains(d.log()[before:], c.says) })
		if out, err := d.virsh(h.name, c.p, "list").CombinedOutput(); err == nil {
			t.Errorf("virsh with a certificate %s gets in:\n%s", name, out)
		}
		d.lets(h.name, good)
	}
	// The test's own means: it can sign what is accepted.
	d.lets(h.name, forge(t, owner, trust, forgery{name: "fine"}))
}

func ecKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	must(t, err)
	return key
}

// TestClients places clients' files: for a user, whom libvirt's own tools find there, and for the system, to which another
// user falls back. The daemon lets in whose line is on its list.
func TestClients(t *testing.T) {
	t.Parallel()
	if elseInDirectory(t, (*scene).isAccepted) {
		return
	}
	w := theWorld(t)
	pool := w.pool(t)
	h := w.newHost(t, "client", machine{pool: pool.Name, users: []string{"alice", "bob"}})
	h.join(order("libvirt-client", "user=alice"))
	h.refuses("this host accepts files under") // until its own operator lets the agent into homes
	h.absent("/home/alice/.pki")
	h.write("/etc/chancery/agent.yaml", "paths: [/etc/pki, /home]\n")
	h.converge()
	seen := h.observed("libvirt-client")
	const home = "/home/alice/.pki/libvirt/"
	if line := strings.TrimSpace(h.run("virt-pki-query-dn", home+"clientcert.pem")); seen.AllowList == "" || !strings.HasSuffix(line, seen.AllowList) {
		t.Errorf("the line for the list is %q, and virt-pki-query-dn prints %q", seen.AllowList, line)
	}
	stat := h.run("stat", "-c", "%U:%G %a %n", "/home/alice/.pki", home, home+"cacert.pem", home+"cacrl.pem", home+"clientcert.pem", home+"clientkey.pem")
	for line := range strings.Lines(stat) {
		want := "alice:alice 600 "
		if !strings.HasSuffix(strings.TrimSpace(line), ".pem") {
			want = "alice:alice 700 "
		}
		if !strings.HasPrefix(line, want) {
			t.Errorf("placed is %s", line)
		}
	}
	s := w.newHost(t, "server", machine{pool: pool.Name})
	port := s.configure(fmt.Sprintf("tls_allowed_dn_list = [ %q ]", seen.AllowList))
	s.join(order("libvirt-server"))
	s.converge()
	d := s.libvirtd(port)
	must(t, lists(h, "alice", d.uri(s.at, nil)))
	must(t, lists(h, "alice", d.uri(s.at, nil)+"?pkipath="+strings.TrimSuffix(home, "/")))
	if out, err := h.as("bob", "virsh", "-q", "-c", d.uri(s.at, nil), "list").CombinedOutput(); err == nil {
		t.Errorf("a user without files gets in:\n%s", out)
	}
	orders := []client.PlacementOrder{order("libvirt-client", "user=alice"), order("libvirt-client", "group=bob")}
	orders[1].Name = "system"
	_, err := w.admin.ChangeHost(t.Context(), h.name, client.ChangeHostRequest{Placements: &orders})
	must(t, err)
	h.converge()
	must(t, lists(h, "bob", d.uri(s.at, nil)))
	if err := lists(h, "alice", d.uri(s.at, nil)); err != nil {
		t.Errorf("alice, who has files of her own: %v", err)
	}
	st, err := os.Stat(h.path("/etc/pki/libvirt/private/clientkey.pem"))
	must(t, err)
	if st.Mode() != 0o640 {
		t.Errorf("the key of the system has mode %v", st.Mode())
	}
}

// lists has a user list the domains of a daemon.
func lists(h *host, user, uri string) error {
	out, err := h.as(user, "virsh", "-q", "-c", uri, "list", "--name").CombinedOutput()
	if err != nil {
		return fmt.Errorf("virsh of %s: %w: %s", user, err, out)
	}
	if strings.TrimSpace(string(out)) != "test" {
		return fmt.Errorf("virsh of %s lists %q", user, out)
	}
	return nil
}
