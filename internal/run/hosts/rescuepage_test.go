package hosts_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/identity"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// pem3 is a key, its certification path, and the roots that its holder trusts, all PEM.
type pem3 struct{ key, path, roots []byte }

// memberFiles are the places on a member, with who reads the key there.
var memberFiles = []struct{ dir, name, owner, mode string }{
	{"/etc/postgresql/tls", "server", "postgres", "0600"}, {"/etc/postgresql/client", "postgresql", "postgres", "0600"},
	{"/etc/etcd/tls", "peer", "etcd", "0640"},
}

// place puts material where a consumer reads it.
func (m pem3) place(h *host, dir, name, owner, mode string) {
	h.t.Helper()
	h.run("install", "-d", "-o", owner, "-g", "postgres", dir)
	for file, text := range map[string][]byte{name + ".crt": m.path, "root.crt": m.roots, name + ".key": m.key} {
		h.write(filepath.Join(dir, file), string(text))
	}
	key := filepath.Join(dir, name+".key")
	h.run("chown", owner+":postgres", key)
	h.run("chmod", mode, key)
}

// passing is what the members hold while the cluster is made: of a CA that is nobody's.
type passing struct {
	key  *ecdsa.PrivateKey
	root *x509.Certificate
}

func newPassing(t *testing.T) *passing {
	t.Helper()
	p := &passing{}
	var err error
	p.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "for the beginning"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, p.key.Public(), p.key)
	must(t, err)
	p.root, err = x509.ParseCertificate(der)
	must(t, err)
	return p
}

func (p *passing) certify(t *testing.T, name, at string) pem3 {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name, name + "-control"}, IPAddresses: []net.IP{net.ParseIP(at)},
		NotBefore: p.root.NotBefore, NotAfter: p.root.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, p.root, key.Public(), p.key)
	must(t, err)
	text, err := keyfile.EncodePKCS8(key)
	must(t, err)
	return pem3{text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyfile.EncodeCertificates(p.root)}
}

// ended is an authority that was made in the year 2000, on the cluster: all that it certified has ended, its roots included.
type ended struct {
	t        *testing.T
	s        *stage
	dir      datadir.Dir
	services *setup.Services
	members  map[string][3]pem3 // as memberFiles has them
	node     pem3
	issued   int
	places   map[string]string // of the members, as look prints them
}

var founder = access.Principal{ID: "t", Name: "t", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}

// found makes it, in a bubble whose clock stands in the year 2000. The cluster is spoken to by its socket.
func (e *ended) found(socket string) {
	e.t.Helper()
	at := e.s.machines["authority"].at
	synctest.Test(e.t, func(t *testing.T) {
		ctx := t.Context()
		_, err := setup.Init(ctx, setup.Options{
			Dir: e.dir, DatabaseFile: socket, Organization: "Example", Address: "https://" + at + ":8443", Listen: at + ":8443",
			PublicURL: "http://" + at + ":8080", PublicListen: at + ":8080", Metrics: at + ":9443",
		})
		must(t, err)
		time.Sleep(time.Second) // the clock moves in no other way, and what is set up now draws row IDs by it
		config, err := e.dir.Load()
		must(t, err)
		e.services, err = setup.Open(ctx, e.dir, config, slog.New(slog.DiscardHandler))
		must(t, err)
		defer e.services.Close()
		for _, name := range []string{setup.DatabasePool, setup.ControlPool} {
			_, _, err := e.services.Pools.AddOffline(ctx, founder, pool.Spec{Name: name, Organization: "Example"})
			must(t, err)
		}
		set, err := e.services.Settings.Get(ctx)
		must(t, err)
		next := *set
		next.Durability = "synchronous"
		_, err = e.services.Settings.Set(ctx, "t", next, once.Call{})
		must(t, err)
		e.hosts(t)
	})
}

// hosts are the members' and the node's, as docs/database.md adds them: joined, with what their agents had placed.
func (e *ended) hosts(t *testing.T) {
	t.Helper()
	e.members = map[string][3]pem3{}
	for name, h := range e.s.machines {
		if name == "authority" {
			e.host(t, h, "node1", setup.DatabasePool, "/opt/chancery-agent", h.at, order("postgresql-client", "user=chancery", "dir=/etc/chancery/database"))
			e.node = e.issue(t, ca.Order{Pool: setup.DatabasePool, Profile: "client", Subject: "CN=node1"})
			continue
		}
		e.host(t, h, name, setup.DatabasePool, h.state, h.at,
			order("postgresql", "data=/opt/postgresql/15/chancery", "address="+h.at+":5432"), order("postgresql-client", "user=postgres", "dir=/etc/postgresql/client"))
		e.host(t, h, name+"-control", setup.ControlPool, "/opt/chancery-agent-control", "", order("plain", "profile=peer", "owner=etcd", "group=postgres",
			"key=/etc/etcd/tls/peer.key", "cert=/etc/etcd/tls/peer.crt", "trust=/etc/etcd/tls/root.crt"))
		names := []string{"dns:" + name, "dns:" + name + "-control", "ip:" + h.at}
		e.members[name] = [3]pem3{
			e.issue(t, ca.Order{Pool: setup.DatabasePool, Profile: "server", Names: names}),
			e.issue(t, ca.Order{Pool: setup.DatabasePool, Profile: "client", Subject: "CN=" + name}),
			e.issue(t, ca.Order{Pool: setup.ControlPool, Profile: "peer", Names: names}),
		}
	}
}

// host adds a host and has it join.
func (e *ended) host(t *testing.T, h *host, name, in, state, at string, placements ...client.PlacementOrder) {
	t.Helper()
	request := client.AddHostRequest{Name: name, Pool: in, Placements: placements}
	if at != "" {
		request.IP = []string{at}
	}
	added, err := e.services.Hosts.Add(t.Context(), founder, request, "")
	must(t, err)
	key, csr := keyAndRequest(t)
	joined, err := e.services.Hosts.Join(t.Context(), client.JoinRequest{Token: added.Token, CSR: csr, Agent: "test"})
	must(t, err)
	text, err := json.Marshal(map[string]any{"address": "https://" + e.s.machines["authority"].at + ":8443", "host": joined.Host, "generation": joined.Generation,
		"epoch": "0011223344556677", "key": string(key), "certificate": joined.Certificate, "chain": joined.Chain})
	must(t, err)
	must(t, os.MkdirAll(h.path(state), 0o700))
	for file, content := range map[string]string{"identity.json": string(text), "roots.pem": joined.Roots, "audit-key.pem": joined.AuditKey, "settings.json": "{}"} {
		must(t, os.WriteFile(filepath.Join(h.path(state), file), []byte(content), 0o600))
	}
}

func keyAndRequest(t *testing.T) (key []byte, csr string) {
	t.Helper()
	made, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	must(t, err)
	key, err = keyfile.EncodePKCS8(made)
	must(t, err)
	der, err := cert.CreateCSR(&cert.CSRTemplate{}, made)
	must(t, err)
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func (e *ended) issue(t *testing.T, o ca.Order) pem3 {
	t.Helper()
	key, csr := keyAndRequest(t)
	// A commit whose outcome nobody knows, while the cluster is young, is looked up by its key.
	o.CSR, o.IdempotencyKey = []byte(csr), fmt.Sprintf("held %d", e.issued)
	issued, err := e.services.CA.Issue(t.Context(), founder, o)
	must(t, err)
	m := pem3{key: key}
	for _, der := range identity.Path(issued) {
		m.path = append(m.path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	p, err := e.services.Pools.Pool(t.Context(), o.Pool)
	must(t, err)
	m.roots = keyfile.EncodeCertificates(p.Root.Certificate)
	e.issued++
	return m
}

// types runs a script on a machine, as root types it.
func (s *stage) types(machine, script string) string {
	s.t.Helper()
	real, _ := s.replaced()
	return output(s.t, s.machines[machine].shell(strings.NewReplacer(real...).Replace(script)))
}

// cluster starts etcd and Patroni on the three machines; db1 leads.
func (s *stage) cluster() {
	s.t.Helper()
	start := newPassing(s.t)
	for _, name := range []string{"db1", "db2", "db3"} {
		h := s.machines[name]
		for _, f := range memberFiles {
			start.certify(s.t, name, h.at).place(h, f.dir, f.name, f.owner, f.mode)
		}
		last := name[2:]
		s.types(name, "install -d /etc/patroni\ncp deploy/patroni/patroni-fenced deploy/patroni/chancery-member-rescue /usr/local/sbin/\n"+
			"sed '/^# this member/,/^# end/{s/db1/"+name+"/;s/192.0.2.11/192.0.2.1"+last+"/}' deploy/patroni/etcd.default > /etc/default/etcd\n"+
			"sed '/# this member/{s/db1/"+name+"/;s/192.0.2.11/192.0.2.1"+last+"/}' deploy/patroni/patroni.yml > /etc/patroni/patroni.yml\n"+
			"systemctl start etcd")
	}
	for _, name := range []string{"db1", "db2", "db3"} {
		s.types(name, "systemctl start patroni")
		if name == "db1" {
			s.members("Leader", 1)
		}
	}
	s.members("running", 3)
	s.members("Sync Standby", 1)
	s.types("db1", `runuser -u postgres -- psql -q -h /run/postgresql <<'SQL'
CREATE ROLE chancery LOGIN;
GRANT pg_monitor TO chancery;
CREATE DATABASE chancery OWNER chancery;
SQL
runuser -u postgres -- psql -q -h /run/postgresql -d chancery -v ON_ERROR_STOP=1 < deploy/patroni/logins.sql`)
}

// members waits until Patroni shows so many members with a word.
func (s *stage) members(word string, n int) {
	s.t.Helper()
	until(s.t, fmt.Sprintf("%d members are shown as %s", n, word), func() bool {
		out, err := s.machines["db1"].shell("patronictl -c /etc/patroni/patroni.yml list").CombinedOutput()
		return err == nil && strings.Count(string(out), word) == n
	})
}

// ends is the day on which somebody comes back: the programs are stopped, and what they hold is of the year 2000.
func (e *ended) ends(socket string) {
	t, s := e.t, e.s
	t.Helper()
	for _, name := range []string{"db3", "db2", "db1"} {
		s.types(name, "systemctl stop patroni")
	}
	for name, held := range e.members {
		s.types(name, "systemctl stop etcd")
		for i, f := range memberFiles {
			held[i].place(s.machines[name], f.dir, f.name, f.owner, f.mode)
		}
		s.machines[name].write("/etc/chancery/agent.yaml", "paths: [/etc/postgresql, /etc/etcd/tls]\nreads: [/etc/postgresql, /run, /opt/postgresql]\n")
	}
	node := s.machines["authority"]
	node.write("/etc/chancery/agent.yaml", "paths: [/etc/chancery/database]\n")
	e.node.place(node, "/etc/chancery/database", "postgresql", "chancery", "0600")
	s.types("authority", `(umask 077 && tr -d '\n ' > /etc/chancery/database-url) <<'URL'
postgres://chancery@192.0.2.11,192.0.2.12,192.0.2.13/chancery?target_session_attrs=read-write&connect_timeout=2&sslmode=verify-full
&sslcert=/etc/chancery/database/postgresql.crt&sslkey=/etc/chancery/database/postgresql.key&sslrootcert=/etc/chancery/database/root.crt
URL`)
	text, err := os.ReadFile(e.dir.Config())
	must(t, err)
	must(t, os.WriteFile(e.dir.Config(), []byte(strings.ReplaceAll(string(text), socket, "/etc/chancery/database-url")), 0o644))
}

// isDown shows that nothing comes up by itself: etcds do not let each other in, so nobody leads, and the node is let in nowhere.
func (e *ended) isDown() {
	t, s := e.t, e.s
	t.Helper()
	for name := range e.members {
		h := s.machines[name]
		must(t, errors.Join(os.Truncate(h.path("/run/etcd.out"), 0), os.Truncate(h.path("/run/patroni.out"), 0)))
		s.types(name, "systemctl start etcd\nsystemctl start patroni")
	}
	for name := range e.members {
		until(t, "the etcd of "+name+" lets nobody in", func() bool {
			return strings.Contains(string(s.machines[name].read("/run/etcd.out")), "tls: bad certificate")
		})
	}
	for name := range e.members {
		until(t, "the Patroni of "+name+" starts no PostgreSQL", func() bool {
			return strings.Contains(string(s.machines[name].read("/run/patroni.out")), "waiting on etcd")
		})
		if _, err := os.Stat(s.machines[name].path("/run/postgresql/.s.PGSQL.5432")); err == nil {
			t.Errorf("the PostgreSQL of %s runs", name)
		}
	}
	fails(t, s.machines["authority"].shell(`chancery serve --dir "$CHANCERY_DIR"`), "database")
	fails(t, s.machines["authority"].shell(`chancery rescue expired --dir "$CHANCERY_DIR"`), "--database-file")
}

// pinned has those who know the old root alone refuse the authority, and keep what they hold.
func (e *ended) pinned(before *x509.CertPool) {
	t, s := e.t, e.s
	t.Helper()
	old, err := client.New(client.Options{
		Address: "https://" + s.machines["authority"].at + ":8443", Roots: before, Certificate: client.CertificateFiles(e.dir.AdminCert(), e.dir.AdminKey()),
	})
	must(t, err)
	defer old.Close()
	if _, err := old.Settings(t.Context()); err == nil {
		t.Error("who pins the root that ended takes the new one's node for the authority")
	} else {
		t.Logf("who pins the old root is told: %v", err)
	}
	node := s.machines["authority"]
	held := string(node.read("/etc/chancery/database/postgresql.crt"))
	out, err := node.shell("chancery agent run --state /opt/chancery-agent-before --once").CombinedOutput()
	if err == nil || held != string(node.read("/etc/chancery/database/postgresql.crt")) {
		t.Errorf("an agent that has not joined again: %v\n%s", err, out)
	}
	t.Logf("an agent that has not joined again says\n%s", out)
}

// told wants the rescue in the audit, and every host placed by its agent.
func (e *ended) told() {
	t, s := e.t, e.s
	t.Helper()
	roots, err := client.RootsFile(e.dir.IdentityRoot())
	must(t, err)
	e.s.machines["authority"].world.admin, err = client.New(client.Options{
		Address: "https://" + s.machines["authority"].at + ":8443", Roots: roots, Certificate: client.CertificateFiles(e.dir.AdminCert(), e.dir.AdminKey()),
	})
	must(t, err)
	admin := e.s.machines["authority"].world.admin
	for name := range e.members {
		for _, host := range []string{name, name + "-control"} {
			h, err := admin.Host(t.Context(), host)
			must(t, err)
			for _, p := range h.Placements {
				if o := p.Observed; o.Serial == "" || o.State == client.PlacementFailed || o.NotAfter.Before(time.Now()) {
					t.Errorf("%s of %s is %+v", p.Recipe, host, o)
				}
			}
		}
	}
	if out := s.types("authority", "chancery audit list --action authority.rescue"); strings.Count(out, "authority.rescue") != 2 {
		t.Errorf("the audit has of the rescue\n%s", out)
	}
}
