package hosts_test

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
)

// logins wants every node to be at PostgreSQL over TLS, by its own certificate.
func (n *nodes) logins(t *testing.T) {
	for name := range n.all {
		want := "chancery_" + name + "|/CN=chancery_" + name
		until(t, name+" is known by its certificate", func() bool {
			return strings.Contains(n.sql(t, `SELECT DISTINCT usename || '|' || client_dn FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl`), want)
		})
		until(t, "its login is shown", func() bool {
			c, err := n.all["node2"].admin.Clone(t.Context(), name)
			must(t, err)
			return c.Database.Role == "chancery_"+name && c.Database.LoginEnds.After(time.Now())
		})
	}
	if others := n.sql(t, `SELECT COUNT(*) FROM pg_stat_activity WHERE application_name = 'chancery' AND usename NOT LIKE 'chancery\_node%'`); others != "0" {
		t.Errorf("%s connections of nodes are by another login", others)
	}
	if owners := n.sql(t, `SELECT string_agg(DISTINCT tableowner, ',') FROM pg_tables WHERE schemaname = 'public'`); owners != "pki" {
		t.Errorf("the tables are %s's", owners)
	}
}

// keys wants a node that runs ocsp alone to have no issuer's key, and the others all.
func (n *nodes) keys(t *testing.T) {
	count := func(name, which string) string {
		return n.sql(t, `SELECT COUNT(*) FROM key_wrap w JOIN sealed_key k ON k.id = w.key_id WHERE w.recipient_id = '`+name+`' AND k.purpose `+which)
	}
	if have := count("node3", "= 'issuer'"); have != "0" {
		t.Errorf("node3 has %s issuers' keys", have)
	}
	if have := count("node3", "<> 'issuer'"); have == "0" {
		t.Error("node3 has no key at all: the look proves nothing")
	}
	n.sameIssuers(t)
	fails(t, n.asked(t, "node3", "cert", "issue", "--profile", "server", "--csr", newRequest(t), "--name", "w.test"), "ca runs on node1 at https://localhost:")
	identities := map[string]bool{}
	for name, m := range n.all {
		text, err := os.ReadFile(m.dir.TLS())
		must(t, err)
		_, rest := pem.Decode(text)
		leaf := parsed(t, rest)
		identities[string(leaf.RawSubjectPublicKeyInfo)] = true
		if issued := n.types(t, "node1", "cert", "show", fmt.Sprintf("%x", leaf.SerialNumber)); issued == "" {
			t.Errorf("the authority does not know the TLS identity of %s", name)
		}
	}
	if len(identities) != len(n.all) {
		t.Errorf("%d nodes have %d TLS keys", len(n.all), len(identities))
	}
}

// killed kills a node while it issues. It comes back, and for each certificate that was acknowledged there is one, and for no call two.
func (n *nodes) killed(t *testing.T) {
	two := n.all["node2"]
	var mu sync.Mutex
	given := map[string]string{} // serial by name
	some := make(chan struct{}, 1000)
	var all sync.WaitGroup
	for i := range 8 {
		request, err := os.ReadFile(newRequest(t))
		must(t, err)
		all.Go(func() {
			for k := 0; ; k++ {
				name := fmt.Sprintf("k%d-%d.test", i, k)
				made, err := two.admin.Issue(t.Context(), client.IssueRequest{Profile: "server", CSR: string(request), Names: &client.Names{SAN: []string{"dns:" + name}}})
				if err != nil {
					return // killed; the client has tried again as long as it does
				}
				mu.Lock()
				given[name] = made.Certificate.Serial
				mu.Unlock()
				some <- struct{}{}
			}
		})
	}
	for range 100 {
		select {
		case <-some:
		case <-time.After(2 * time.Minute):
			t.Fatal("nothing is issued")
		}
	}
	kill(t, two.process)
	all.Wait()
	if _, err := n.all["node1"].admin.Status(t.Context()); err != nil {
		t.Errorf("the others are not as they were: %v", err)
	}
	n.start(t, two)
	n.types(t, "node1", "clone", "status", "node2", "--wait", "2m")
	names := map[string]int{}
	serials := map[string]bool{}
	for c, err := range two.admin.Certificates(t.Context(), client.CertificateFilter{}) {
		must(t, err)
		serials[c.Serial] = true
		for _, name := range c.SAN {
			if name, ok := strings.CutPrefix(name, "dns:k"); ok {
				names[name]++
			}
		}
	}
	for name, serial := range given {
		if !serials[serial] {
			t.Errorf("%s for %s was acknowledged and is not there", serial, name)
		}
	}
	for name, many := range names {
		if many != 1 {
			t.Errorf("there are %d certificates of the one call for k%s", many, name)
		}
	}
	if len(given) < 100 || len(names) < len(given) {
		t.Errorf("%d certificates were acknowledged, and names of %d are there", len(given), len(names))
	}
}

// renewal: a node that cannot issue gets a new certificate from one that can, where its key may be known to others.
func (n *nodes) renewal(t *testing.T) {
	three := n.all["node3"]
	before, err := os.ReadFile(three.dir.TLS())
	must(t, err)
	must(t, three.process.Stop())
	n.start(t, three)
	if same, err := os.ReadFile(three.dir.TLS()); err != nil || !bytes.Equal(same, before) {
		t.Errorf("a start without need renewed its identity (%v)", err)
	}
	config, err := three.dir.Load()
	must(t, err)
	for _, asks := range []struct {
		names []string
		has   bool // what it asks for
	}{{nil, true}, {[]string{"ocsp.example.test", "another.example.test"}, false}} {
		must(t, three.process.Stop())
		config.TLSNames = asks.names
		must(t, os.Remove(three.dir.Config()))
		must(t, three.dir.Create(*config))
		n.start(t, three)
		text, err := os.ReadFile(three.dir.TLS())
		must(t, err)
		_, rest := pem.Decode(text)
		if leaf := parsed(t, rest); leaf.VerifyHostname("another.example.test") == nil || leaf.VerifyHostname("localhost") != nil {
			t.Errorf("its certificate is for %v", leaf.DNSNames)
		}
	}
	must(t, three.process.Stop())
	config.TLSNames = []string{"ocsp.example.test"}
	must(t, os.Remove(three.dir.Config()))
	must(t, three.dir.Create(*config))
	n.start(t, three)
	_, err = three.admin.Status(t.Context())
	must(t, err)
}

// releases: the schema says which program may start on the database, and join. A newer one is played by a schema that lacks what this one
// knows, an older one by a schema that has what this one does not know.
func (n *nodes) releases(t *testing.T) {
	three, work := n.all["node3"], t.TempDir()
	refused := func(want string) {
		t.Helper()
		token := filepath.Join(t.TempDir(), "token")
		n.types(t, "node1", "clone", "invite", "--out", token)
		fails(t, exec.Command(program(t), "clone", "join", "--token-file", token, "--dir", filepath.Join(t.TempDir(), "late"), "--name", "late",
			"--address", "https://localhost:1", "--listen", freeAddress(t), "--database-file", n.url, "--wait", "1m"), want)
	}
	serve := func() *exec.Cmd { return exec.Command(program(t), "serve", "--dir", string(three.dir)) }
	must(t, three.process.Stop())

	kept := filepath.Join(work, "newest")
	output(t, psql("-Xqwc", `\copy (SELECT * FROM schema_version ORDER BY version DESC LIMIT 1) TO '`+kept+`'`, n.store.admin(t, "authority")))
	n.sql(t, `DELETE FROM schema_version WHERE version = (SELECT MAX(version) FROM schema_version)`)
	n.store.replayed(t)
	refused("it would change the database under the nodes there are")
	fails(t, serve(), "start this release on a node that runs ca first")
	output(t, psql("-Xqwc", `\copy schema_version FROM '`+kept+`'`, n.store.admin(t, "authority")))

	n.sql(t, `INSERT INTO schema_version (version, readers_from, applied_at) VALUES (9999, 9999, 1)`)
	n.store.replayed(t)
	refused("install the release that the nodes run")
	fails(t, serve(), "run the newer chancery")
	n.issue(t, "node2") // what runs goes on
	n.sql(t, `UPDATE schema_version SET readers_from = 1 WHERE version = 9999`)
	n.store.replayed(t)
	n.start(t, three)
	n.types(t, "node1", "clone", "status", "node3", "--wait", "2m")
	n.sql(t, `DELETE FROM schema_version WHERE version = 9999`)
}

// login tries to log in at PostgreSQL by what a node has.
func (n *nodes) login(t *testing.T, pair, roots []byte, role string) (string, error) {
	t.Helper()
	work := t.TempDir()
	must(t, os.WriteFile(filepath.Join(work, "login.pem"), pair, 0o600))
	must(t, os.WriteFile(filepath.Join(work, "roots.pem"), roots, 0o600))
	url, mark, _ := strings.Cut(n.reach(role+"@", "authority"), "?")
	out, err := psql("-XAtwc", "SELECT session_user", fmt.Sprintf("%s?%s&connect_timeout=10&sslmode=verify-full&"+
		"sslcert=%[3]s/login.pem&sslkey=%[3]s/login.pem&sslrootcert=%[3]s/roots.pem", url, mark, work)).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (m *member) pair(t *testing.T) (pair, roots []byte) {
	t.Helper()
	pair, err := os.ReadFile(m.dir.DatabaseLogin())
	must(t, err)
	roots, err = os.ReadFile(m.dir.DatabaseRoots())
	must(t, err)
	return pair, roots
}

// lost destroys the machine that the authority began on, and on which the primary of the database is. The others go on, and it grows again.
func (n *nodes) lost(t *testing.T) {
	one := n.all["node1"]
	c := n.issue(t, "node1")
	pair, roots := one.pair(t)
	if who, err := n.login(t, pair, roots, "chancery_node1"); err != nil || who != "chancery_node1" {
		t.Fatalf("node1's login is not good before: %s, %v", who, err)
	}
	fails(t, n.asked(t, "node2", "clone", "remove", "node1"), "--yes") // it runs
	n.types(t, "node2", "clone", "promote", "node1")                   // it dies as the one that signs CRLs, and lets go of nothing
	n.store.replayed(t)
	before, number := n.signing(t, "node2"), n.number(t, "node3", c.Issuer)
	if before.Holder != "node1" {
		t.Fatalf("node1 was promoted, and the lease is %+v", before)
	}
	n.machineLost(t)
	until(t, "node2 has followed by itself", func() bool { return n.signing(t, "node2").Holder == "node2" })
	if after := n.signing(t, "node2"); after.Epoch <= before.Epoch {
		t.Errorf("the lease %+v follows %+v", after, before)
	}
	made := decode[client.CRL](t, n.types(t, "node2", "crl", "issue", "--issuer", c.Issuer, "-o", "json"))
	if now, err := strconv.ParseInt(made.Number, 10, 64); err != nil || now <= number {
		t.Errorf("the list after %d has the number %s", number, made.Number)
	}
	n.types(t, "node2", "clone", "remove", "node1", "--yes")
	delete(n.all, "node1")
	if who, err := n.login(t, pair, roots, "chancery_node1"); err == nil {
		t.Errorf("who is gone logs in as %s", who)
	}
	n.revoke(t, "node2", c)
	until(t, "node3 says revoked", func() bool { return n.status(t, "node3", c) == "revoked" })
	until(t, "the list has it", func() bool { return n.listed(t, "node3", c) })
	n.join(t, "node2", "node4", 0, "ca,ocsp")
	more := n.issue(t, "node4")
	until(t, "node3 says good", func() bool { return n.status(t, "node3", more) == "good" })
	n.freshCRL(t)
}

// signing is the lease to sign CRLs, as a node shows it; empty where nobody has it, or where the node cannot say so yet.
func (n *nodes) signing(t *testing.T, at string) (lease client.CloneLease) {
	t.Helper()
	all, err := client.Collect(n.all[at].admin.Clones(t.Context()))
	if err != nil {
		t.Logf("%s says of the lease: %v", at, err)
		return lease
	}
	for _, c := range all {
		for _, l := range c.Leases {
			if l.Name == "crl" && l.Holder == c.Name {
				lease = l
			}
		}
	}
	return lease
}

// removed takes away the node by which both others came, while it runs: it ends, PostgreSQL refuses it, and the others go on.
func (n *nodes) removed(t *testing.T) {
	two := n.all["node2"]
	c := n.issue(t, "node2")
	pair, roots := two.pair(t)
	n.types(t, "node4", "clone", "remove", "node2", "--compromised")
	select {
	case <-two.process.Done():
	case <-time.After(2 * time.Minute):
		t.Fatalf("it runs on:\n%s", two.process.Output())
	}
	if said := two.process.Output(); !strings.Contains(said, "left or was removed") {
		t.Errorf("it ended with\n%s", said)
	}
	delete(n.all, "node2")
	if who, err := n.login(t, pair, roots, "chancery_node2"); err == nil {
		t.Errorf("who is gone logs in as %s", who)
	}
	fails(t, exec.CommandContext(t.Context(), program(t), "serve", "--dir", string(two.dir)), "PostgreSQL does not let this login in")
	if left := n.sql(t, `SELECT string_agg(rolname, ' ' ORDER BY rolname) FROM pg_roles WHERE rolname LIKE 'chancery\_%'`); left != "chancery_node3 chancery_node4" {
		t.Errorf("the logins are %s", left)
	}
	n.revoke(t, "node4", c)
	until(t, "node3 says revoked", func() bool { return n.status(t, "node3", c) == "revoked" })
	until(t, "the list has it", func() bool { return n.listed(t, "node3", c) })
}

// verified wants verify to find nothing.
func (n *nodes) verified(t *testing.T) {
	seen := 0
	for f, err := range n.all["node4"].admin.Verify(t.Context(), client.VerifyRequest{}) {
		must(t, err)
		seen++
		if f.Level == "error" {
			t.Errorf("%s: %s", f.Object, f.Message)
		}
	}
	if seen == 0 {
		t.Error("verify said nothing")
	}
}
