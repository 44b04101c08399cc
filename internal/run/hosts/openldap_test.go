package hosts_test

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"chancery/client"
	"chancery/internal/run/consumer"
)

// rootDSE is a search for what an LDAP server says of itself, RFC 4512 section 5.1, as message 1.
const rootDSE = "\x30\x25\x02\x01\x01\x63\x20\x04\x00\x0a\x01\x00\x0a\x01\x00\x02\x01\x00\x02\x01\x00\x01\x01\x00\x87\x0bobjectClass\x30\x00"

// hangsUp is what a client sees whom slapd refuses: it says why in its own log alone.
const hangsUp = "EOF"

// directoryServer is slapd on a host, with StartTLS at another port than that of ldaps.
type directoryServer struct {
	*gate
	plain string // host:port of ldap://
	crl   string
}

// openldap joins a host on which slapd runs, without TLS: what it needs for that it is told by the agent. As root it runs as
// its own user.
func (w *world) openldap(t *testing.T) *directoryServer {
	t.Helper()
	g := w.gateOn(t, "openldap")
	h, tls := g.h, "/etc/ldap/tls/"
	g.cert, g.key, g.hello, g.answers = tls+"server.pem", tls+"server.key", rootDSE, "\x30"
	d := &directoryServer{gate: g, plain: h.freeAddress(), crl: tls + "clients-crl.pem"}
	server := consumer.OpenLDAPServer{Address: d.plain, TLSAddress: g.address, Home: h.inside("/run/slapd"), UID: os.Geteuid(), GID: os.Getegid()}
	parameters := []string{"clients=true", "address=" + g.address, "starttls=none", "dir=" + strings.TrimSuffix(tls, "/"), "socket=" + server.Socket()}
	must(t, os.MkdirAll(h.path("/run/slapd/config"), 0o755))
	configure := h.command(server.Configure()...)
	configure.Stdin = strings.NewReader(server.LDIF())
	output(t, configure)
	if os.Geteuid() == 0 {
		server.User = "openldap"
		h.run("chown", "-R", "openldap:", server.Home)
	} else {
		user, group := runsTests(t)
		parameters = append(parameters, "user="+user, "group="+group)
	}
	g.program = server.Program()
	h.join(order("openldap", parameters...))
	return d
}

// opened is a slapd that runs and serves what was placed, and wants clients' certificates.
func (d *directoryServer) opened() *directoryServer {
	d.h.t.Helper()
	d.Process = d.h.start(d.program)
	d.h.converge()
	d.demand()
	d.good = d.world.clientOf(d.h.t, d.pool, "good")
	d.serves(d.leaf())
	return d
}

// demand is what an operator says once.
func (d *directoryServer) demand() {
	d.h.t.Helper()
	change := d.h.command("ldapmodify", "-Q", "-Y", "EXTERNAL", "-H", "ldapi://"+strings.ReplaceAll(d.h.inside("/run/slapd/ldapi"), "/", "%2F"))
	change.Stdin = strings.NewReader("dn: cn=config\nchangetype: modify\nreplace: olcTLSVerifyClient\nolcTLSVerifyClient: demand\n")
	output(d.h.t, change)
}

// ldap is a command of OpenLDAP's clients on the server's host, as a client with a certificate.
func (d *directoryServer) ldap(trust []byte, own *peer, program string, words ...string) *exec.Cmd {
	d.h.t.Helper()
	file := d.h.t.TempDir() + "/ca.pem"
	must(d.h.t, os.WriteFile(file, trust, 0o644))
	cmd := d.h.command(append([]string{program}, words...)...)
	cmd.Env = append(cmd.Env, "LDAPTLS_CACERT="+file, "LDAPTLS_REQCERT=demand")
	if own != nil {
		cmd.Env = append(cmd.Env, "LDAPTLS_CERT="+own.dir+"/clientcert.pem", "LDAPTLS_KEY="+own.dir+"/clientkey.pem")
	}
	return cmd
}

// uris are both ways to TLS, by the host's name where it is known.
func (d *directoryServer) uris() [][]string {
	if d.h.holds == "" { // an ordinary user's programs have the machine's /etc/hosts
		return [][]string{{"-ZZ", "-H", "ldap://" + d.plain}, {"-H", "ldaps://" + d.address}}
	}
	port := func(address string) string { return address[strings.LastIndex(address, ":"):] }
	return [][]string{{"-ZZ", "-H", "ldap://" + d.h.name + port(d.plain)}, {"-H", "ldaps://" + d.h.name + port(d.address)}}
}

// TestOpenLDAP takes slapd from one without TLS to one that knows its clients by their certificates, by StartTLS and by
// ldaps, mends what somebody changed, and leaves it stopped.
func TestOpenLDAP(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	d := w.openldap(t)
	h := d.h
	h.converge()
	if seen := h.observed("openldap"); seen.State != client.PlacementDown || seen.Serial == "" {
		t.Errorf("before it runs: %+v", seen)
	}
	d.opened()
	other := w.pool(t)
	rogues := map[string]*peer{"of another pool": w.clientOf(t, other, "good"), "of nobody's": selfMade(t, d.trust, "good"), "without a certificate": nil}
	for _, uri := range d.uris() {
		who := append([]string{"-Q", "-Y", "EXTERNAL"}, uri...)
		if said := strings.TrimSpace(output(t, d.ldap(d.trust, d.good, "ldapwhoami", who...))); said != "dn:cn=good" {
			t.Errorf("%v: slapd takes the client for %q", uri, said)
		}
		search := append([]string{"-x", "-LLL", "-s", "base", "-b", "", "objectClass"}, uri...)
		if found := output(t, d.ldap(d.trust, d.good, "ldapsearch", search...)); !strings.Contains(found, "objectClass: top") {
			t.Errorf("%v: found is %q", uri, found)
		}
		for name, rogue := range rogues {
			if out, err := d.ldap(d.trust, rogue, "ldapwhoami", append([]string{"-x"}, uri...)...).CombinedOutput(); err == nil {
				t.Errorf("%v: a client %s gets in: %s", uri, name, out)
			}
		}
		if out, err := d.ldap([]byte(other.Root.PEM), d.good, "ldapwhoami", append([]string{"-x"}, uri...)...).CombinedOutput(); err == nil {
			t.Errorf("%v: a client of another pool believes the server: %s", uri, out)
		}
	}
	for _, rogue := range rogues {
		d.turnsAway(rogue, hangsUp)
	}
	d.mends(0o640)
	must(t, d.Signal(syscall.SIGHUP)) // which is no reload
	<-d.Done()
	h.converge()
	if seen := h.observed("openldap"); seen.State != client.PlacementDown {
		t.Errorf("after it was stopped: %+v", seen)
	}
	if err := consumer.Listening(d.address)(t.Context()); err == nil {
		t.Error("the agent started what was stopped")
	}
	d.Process = h.start(d.program) // which has kept what it was told
	h.converge()
	d.serves(d.leaf())
}

// TestOpenLDAPRenewalUnderAConnection: slapd takes a new key without a restart, at both ports, and a client that is connected stays so.
func TestOpenLDAPRenewalUnderAConnection(t *testing.T) {
	t.Parallel()
	d := theWorld(t).openldap(t).opened()
	live, err := d.connect(t.Context(), d.trust, d.good)
	must(t, err)
	defer live.conn.Close()
	d.rekey("shop")
	must(t, live.hello())
	if live.shown().Equal(d.leaf()) {
		t.Error("the connection is a new one")
	}
	if seen := onTheWire(t, d.h, d.plain, "-starttls", "ldap"); seen != d.h.observed("openldap").Serial {
		t.Errorf("StartTLS shows %s", seen)
	}
}

// TestOpenLDAPRenewalThatFails: slapd that is told of a key which is not the certificate's has no TLS at all, until it is told of
// the old files again.
func TestOpenLDAPRenewalThatFails(t *testing.T) {
	t.Parallel()
	d := theWorld(t).openldap(t).opened()
	socket := "ldapi://" + strings.ReplaceAll(d.h.inside("/run/slapd/ldapi"), "/", "%2F")
	spoil := "#!/bin/sh\n[ -e DONE ] || cat OTHER >KEY\n: >DONE\n" +
		"printf 'dn: cn=config\\nchangetype: modify\\nreplace: olcTLSCertificateFile\\nolcTLSCertificateFile: %s\\n' " + d.h.inside(d.cert) +
		" | ldapmodify -Q -Y EXTERNAL -H " + socket + "\n"
	d.fails("set: [SPOIL]", spoil, "(80)")
	if log := d.Output(); !strings.Contains(log, "The certificate and the given key do not match") {
		t.Errorf("slapd did not see the spoilt pair: %s", log)
	}
}

func TestOpenLDAPRevocation(t *testing.T) {
	t.Parallel()
	d := theWorld(t).openldap(t).opened()
	bad := d.world.clientOf(t, d.pool, "bad")
	d.lets(bad)
	d.h.revoked(d.pool, bad.pair.Leaf, d.crl)
	d.turnsAway(bad, hangsUp)
	d.lets(d.good)
	leaf := d.leaf()
	d.h.revoked(d.pool, leaf, d.crl)
	if again := d.leaf(); string(again.RawSubjectPublicKeyInfo) == string(leaf.RawSubjectPublicKeyInfo) {
		t.Error("a revoked server was not re-keyed")
	}
	d.serves(d.leaf())
	d.lets(d.good)
	d.alive()
}
