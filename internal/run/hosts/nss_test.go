package hosts_test

import (
	"crypto/x509"
	"os/exec"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
)

const (
	nssDir = "/etc/chancery/placed/nssdb"
	nssPin = "/etc/chancery/placed/nss-pin"
)

// nssHost is a host with an NSS database that the recipe keeps.
func (w *world) nssHost(t *testing.T, name, pool string, parameters ...string) *host {
	t.Helper()
	h := w.newHost(t, name, machine{pool: pool, directory: true})
	h.join(order("nss", append([]string{"password_file=" + nssPin}, parameters...)...))
	return h
}

// certutil runs certutil upon the host's database.
func (h *host) certutil(words ...string) string {
	h.t.Helper()
	return h.run(append([]string{"certutil", "-d", "sql:" + h.path(nssDir), "-f", h.path(nssPin)}, words...)...)
}

// nssTalk has NSS's test server, with one database, and NSS's test client, with another, shake hands. Selfserv listens at every
// address of the machine, so both run in a network of their own in which there is loopback alone. The client's input does not end
// before the server's answer: at the end of its input tstclnt turns in a circle until it is killed.
const nssTalk = `ip link set lo up
selfserv -e Server-Cert -d "sql:$1" -f "$2" -p 4433 -rr -V tls1.2: >/dev/null 2>&1 &
server=$!
n=0
until tstclnt -q -h "$5" -p 4433 -D -t 1 >/dev/null 2>&1 || [ $n -ge 300 ]; do n=$((n+1)); sleep 0.1; done
mkfifo "$6/in"
exec 3<>"$6/in"
printf 'GET /stop HTTP/1.0\r\n\r\n' >&3
timeout 60 tstclnt -h "$5" -p 4433 -d "sql:$3" -n Server-Cert -W "$4" -C -V tls1.2: <&3 >"$6/out" 2>&1 &
client=$!
until grep -q '^EOF' "$6/out" || ! kill -0 $client 2>/dev/null; do sleep 0.05; done
kill $client 2>/dev/null
wait $client
cat "$6/out"
kill $server 2>/dev/null # a page of this name ends it, where it was asked for
wait $server`

// asksNSS has a client of h's database ask a server of s's.
func (h *host) asksNSS(s *host) (said string, ok bool) {
	h.t.Helper()
	out, _ := exec.Command("unshare", "-rn", "sh", "-c", nssTalk, "sh", s.path(nssDir), s.path(nssPin), h.path(nssDir), h.path(nssPin), s.at, h.t.TempDir()).CombinedOutput()
	return string(out), strings.Contains(string(out), "HTTP/1.0 200 OK")
}

// TestNSS, scenario S17: an NSS server and an NSS client that have their databases from the recipe believe each other and
// nobody else; a renewal replaces the key and leaves what others have in the database, and so does a rotation of the trust.
func TestNSS(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool, other := w.pool(t), w.pool(t)
	s, c, rogue := w.nssHost(t, "server", pool.Name), w.nssHost(t, "client", pool.Name, "profile=client"), w.nssHost(t, "rogue", other.Name, "profile=client")
	for _, h := range []*host{s, c, rogue} {
		h.converge()
		if seen := h.observed("nss"); seen.State != client.PlacementPlaced {
			t.Errorf("reported is %+v", seen)
		}
	}
	s.certutil("-V", "-u", "V", "-e", "-n", "Server-Cert")
	c.certutil("-V", "-u", "C", "-e", "-n", "Server-Cert")
	said, ok := c.asksNSS(s)
	if !ok {
		t.Errorf("a client of the pool: %s", said)
	}
	if said, ok := rogue.asksNSS(s); ok || !strings.Contains(said, "authentication of server cert failed") {
		t.Errorf("a client of another pool believes the server: %s", said)
	}
	// One who believes the server, and whom the server does not.
	stranger := w.nssHost(t, "stranger", other.Name, "profile=client")
	stranger.converge()
	stranger.write("/pool.pem", pool.Root.PEM)
	stranger.certutil("-A", "-n", "by hand", "-t", "CT,,", "-a", "-i", stranger.path("/pool.pem"))
	if said, ok := stranger.asksNSS(s); ok || !strings.Contains(said, "SSL_ERROR") {
		t.Errorf("a client of another pool is let in: %s", said)
	}

	before, list := []uint64{s.inode(nssDir + "/cert9.db"), s.inode(nssDir + "/key4.db")}, s.certutil("-L")
	s.converge()
	if s.inode(nssDir+"/cert9.db") != before[0] || s.inode(nssDir+"/key4.db") != before[1] {
		t.Error("a database that holds what it should was written")
	}
	own, err := root.New(root.Options{Subject: cert.CommonName("operator's own")}, ecKey(t), time.Now())
	must(t, err)
	s.write("/own.pem", string(keyfile.EncodeCertificates(own.Certificate)))
	s.certutil("-A", "-n", "operators own", "-t", "C,,", "-a", "-i", s.path("/own.pem"))
	leaf := func() *x509.Certificate { return parsed(t, []byte(s.certutil("-L", "-n", "Server-Cert", "-a"))) }
	first := leaf()
	w.chancery(t, "host", "set", s.name, "--dns", "shop-"+s.name)
	s.converge()
	if second := leaf(); second.Equal(first) || strings.Count(s.certutil("-K"), "<") != 1 {
		t.Errorf("after the renewal the database has %s and the keys %s", second.SerialNumber, s.certutil("-K"))
	}
	if said, ok := c.asksNSS(s); !ok {
		t.Errorf("after the renewal: %s", said)
	}
	added, err := w.admin.AddTrust(t.Context(), pool.Name, client.AddTrustRequest{PEM: selfSigned(t, "next root")})
	must(t, err)
	s.converge()
	if now := s.certutil("-L"); strings.Count(now, "CT,,") != strings.Count(list, "CT,,")+1 || !strings.Contains(now, "operators own") {
		t.Errorf("with two roots the database has\n%s", now)
	}
	must(t, w.admin.DropTrust(t.Context(), pool.Name, added[0].ID, client.DropTrustRequest{Because: "it was tried out"}))
	s.converge()
	if now := s.certutil("-L"); strings.Count(now, "CT,,") != strings.Count(list, "CT,,") || !strings.Contains(now, "operators own") {
		t.Errorf("with one root again the database has\n%s", now)
	}
	if said, ok := c.asksNSS(s); !ok {
		t.Errorf("after the rotation: %s", said)
	}
	if text := s.run("sh", "-c", "ls -A "+s.state+"/scratch"); text != "" {
		t.Errorf("the agent left %s", text)
	}
}

// selfSigned is a root of nobody's, in PEM.
func selfSigned(t *testing.T, name string) string {
	t.Helper()
	r, err := root.New(root.Options{Subject: cert.CommonName(name)}, ecKey(t), time.Now())
	must(t, err)
	return string(keyfile.EncodeCertificates(r.Certificate))
}

// TestNSSWithAWrongPassword: a database that is there and has another password is left alone, and named.
func TestNSSWithAWrongPassword(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	h := w.nssHost(t, "locked", w.pool(t).Name)
	h.write("/secret", "of the operator\n")
	h.write(nssPin, "guessed\n")
	h.write(nssDir+"/README", "kept by hand\n")
	h.run("certutil", "-N", "-d", "sql:"+h.path(nssDir), "-f", h.path("/secret"))
	before := h.inode(nssDir + "/key4.db")
	h.refuses("the password is wrong")
	if seen := h.observed("nss"); seen.State != client.PlacementFailed || !strings.Contains(seen.Message, nssDir) {
		t.Errorf("reported is %+v", seen)
	}
	if h.inode(nssDir+"/key4.db") != before {
		t.Error("the database was changed")
	}
	h.write(nssPin, "of the operator\n")
	h.converge()
	h.certutil("-V", "-u", "V", "-e", "-n", "Server-Cert")
}
