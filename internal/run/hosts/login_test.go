package hosts_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/pki/cert"
)

// login is a client of PostgreSQL on a host: a service's, with a directory of its own.
type login struct {
	h      *host
	d      *database
	user   string
	dir    string
	hidden bool // it does not show its certificate
}

// loginHost makes a host with a user for a service, who is nobody's yet; it has not joined.
func (w *world) loginHost(t *testing.T, pool *client.Pool) *login {
	t.Helper()
	m := machine{pool: pool.Name}
	l := &login{user: "shop"}
	if os.Geteuid() == 0 {
		m.users = []string{l.user, "alice"}
	} else {
		l.user, _ = runsTests(t)
	}
	l.h = w.newHost(t, "client", m)
	l.dir = "/etc/chancery/placed/shop"
	return l
}

// placement is what the service has, under another name or profile where they are given.
func (l *login) placement(more ...string) client.PlacementOrder {
	return order("postgresql-client", append([]string{"user=" + l.user, "dir=" + l.dir}, more...)...)
}

// psql asks a server something as the service would, which knows of its files from its environment.
func (l *login) psql(d *database, role, statement string) *exec.Cmd {
	in := func(name string) string { return l.h.inside(l.dir + "/" + name) }
	words := []string{"env", "PGSSLMODE=verify-full", "PGSSLROOTCERT=" + in("root.crt"), "PGSSLCRL=" + in("root.crl")}
	if l.hidden {
		words = append(words, "PGSSLCERT=/nowhere", "PGSSLKEY=/nowhere")
	} else {
		words = append(words, "PGSSLCERT="+in("postgresql.crt"), "PGSSLKEY="+in("postgresql.key"))
	}
	return l.run(append(words, "psql", "-XAtwc", statement,
		fmt.Sprintf("host=%s hostaddr=%s port=%s user=%s dbname=postgres", d.h.name, d.h.at, d.port, role))...)
}

func (l *login) run(words ...string) *exec.Cmd {
	if os.Geteuid() == 0 {
		return l.h.as(l.user, words...)
	}
	return l.h.command(words...)
}

// in wants the service to be who it says.
func (l *login) in(role string) {
	l.h.t.Helper()
	who := output(l.h.t, l.psql(l.d, role, "select current_user || ' ' || ssl || ' ' || client_dn from pg_stat_ssl where pid = pg_backend_pid()"))
	if want := role + " true /CN=" + role; strings.TrimSpace(who) != want {
		l.h.t.Errorf("PostgreSQL knows the client as %q, not %q", who, want)
	}
}

// order changes what the host shall hold.
func (l *login) order(orders ...client.PlacementOrder) {
	l.h.t.Helper()
	_, err := l.h.world.admin.ChangeHost(l.h.t.Context(), l.h.name, client.ChangeHostRequest{Placements: &orders})
	must(l.h.t, err)
}

// TestLogin takes a service from its first login through one with another key, with its certificate revoked, and with the server's
// revoked; and wants others refused, on either side.
func TestLogin(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool, other := w.pool(t), w.pool(t)
	l := w.loginHost(t, pool)
	h := l.h
	l.d = w.runningDatabase(t, machine{pool: pool.Name}, h.name)
	foreign := w.runningDatabase(t, machine{pool: other.Name}, h.name)
	h.join(l.placement())
	h.converge()
	if seen := h.observed("postgresql-client"); seen.State != client.PlacementPlaced {
		t.Errorf("reported is %+v", seen)
	}
	l.in(h.name)
	fails(t, l.psql(l.d, "postgres", "select 1"), "certificate authentication failed for user")
	fails(t, l.psql(foreign, h.name, "select 1"), "certificate verify failed") // which does not believe the client either
	l.d.refused([]byte(pool.Root.PEM), w.clientOf(t, other, h.name), h.name, "unknown ca")
	l.hidden = true
	fails(t, l.psql(l.d, h.name, "select 1"), "requires a valid client certificate")
	l.hidden = false
	key := h.path(l.dir + "/postgresql.key")
	must(t, os.Chmod(key, 0o644))
	fails(t, l.psql(l.d, h.name, "select 1"), "group or world access")
	h.converge()
	if st, err := os.Stat(key); err != nil || st.Mode() != 0o600 {
		t.Errorf("the key: %v %v", st, err)
	}
	l.in(h.name)

	first := parsed(t, h.read(l.dir+"/postgresql.crt"))
	l.order(l.placement("algorithm=ecdsa-p384"))
	h.converge()
	second := parsed(t, h.read(l.dir+"/postgresql.crt"))
	if string(second.RawSubjectPublicKeyInfo) == string(first.RawSubjectPublicKeyInfo) {
		t.Error("it was not re-keyed")
	}
	l.in(h.name)

	l.d.h.revoked(pool, second, pgCRL)
	until(t, "PostgreSQL refuses what is revoked", func() bool { return l.psql(l.d, h.name, "select 1").Run() != nil })
	fails(t, l.psql(l.d, h.name, "select 1"), "certificate revoked")
	h.converge()
	l.in(h.name) // as its agent has another key by now

	// The server's agent has not heard of it yet, and the client's has.
	h.revoked(pool, parsed(t, l.d.h.read(pgCert)), l.dir+"/root.crl")
	fails(t, l.psql(l.d, h.name, "select 1"), "certificate verify failed")
	l.d.h.converge()
	until(t, "PostgreSQL shows another certificate", func() bool { return l.psql(l.d, h.name, "select 1").Run() == nil })
	l.in(h.name)
}

// TestLoginAsRole: a host may be known by a role's name where a profile says so, and by no other's.
func TestLoginAsRole(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	l := w.loginHost(t, pool)
	h := l.h
	role := "app_" + strings.ReplaceAll(h.name, "-", "_")
	l.d = w.runningDatabase(t, machine{pool: pool.Name}, role)
	h.join(l.placement("role=" + role))
	h.refuses(role) // profile client grants a host its own names
	h.absent(l.dir + "/postgresql.crt")
	profile := "db-" + h.name
	file := t.TempDir() + "/profile.yaml"
	must(t, os.WriteFile(file, []byte(strings.NewReplacer("PROFILE", profile, "ROLE", role).Replace(`name: PROFILE
names: {common_name: subject, rules: [{roles: [host], subject: {CN: [ROLE]}}]}
key: {algorithms: [ecdsa-p256]}
usage: {key_usage: [digitalSignature], extended: [clientAuth], extended_critical: true}
validity: {default: 90d, max: 90d, backdate: 5m}
approval: {automatic: [host]}
`)), 0o644))
	w.chancery(t, "profile", "save", profile, file)
	l.order(l.placement("role="+role, "profile="+profile))
	h.converge()
	l.in(role)
	l.order(l.placement("role=postgres", "profile="+profile))
	h.refuses("postgres")
	l.in(role) // what was placed stays
}

// TestLoginOfAUser: libpq finds a user's files by itself, and psql's own login is the probe.
func TestLoginOfAUser(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	l := w.loginHost(t, pool)
	h := l.h
	l.d = w.runningDatabase(t, machine{pool: pool.Name}, h.name)
	if os.Geteuid() != 0 { // a home directory is not another's to write to; the service's is tried
		h.join(l.placement())
		h.converge()
		l.in(h.name)
		return
	}
	h.write("/etc/chancery/agent.yaml", "paths: [/home]\n")
	h.join(order("postgresql-client", "user=alice", "server="+l.d.h.at, "port="+l.d.port))
	h.converge()
	seen := h.observed("postgresql-client")
	leaf := parsed(t, h.read("/home/alice/.postgresql/postgresql.crt"))
	if seen.Serial != cert.FormatSerial(leaf.SerialNumber) {
		t.Errorf("reported is %+v", seen)
	}
	for line := range strings.Lines(h.run("stat", "-c", "%U %a %n", "/home/alice/.postgresql", "/home/alice/.postgresql/postgresql.key")) {
		if !strings.HasPrefix(line, "alice 700 ") && !strings.HasPrefix(line, "alice 600 ") {
			t.Errorf("placed is %s", line)
		}
	}
	conn := fmt.Sprintf("host=%s hostaddr=%s port=%s user=%s dbname=postgres sslmode=verify-full", l.d.h.name, l.d.h.at, l.d.port, h.name)
	if who := strings.TrimSpace(output(t, h.as("alice", "psql", "-XAtwc", "select current_user", conn))); who != h.name {
		t.Errorf("logged in as %q", who)
	}
	fails(t, h.as("shop", "psql", "-XAtwc", "select 1", conn), "") // who has no files
	orders := []client.PlacementOrder{order("postgresql-client", "user=alice", "server="+l.d.h.at, "port="+l.d.port, "login=nobody")}
	_, err := w.admin.ChangeHost(t.Context(), h.name, client.ChangeHostRequest{Placements: &orders})
	must(t, err)
	l.d.h.revoked(pool, leaf, pgCRL)
	h.refuses("certificate authentication failed") // the new one is tried, by psql, and the reason is told
}
