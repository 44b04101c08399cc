package hosts_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/run/consumer"
)

// The places where the recipe postgresql puts its files.
const (
	pgCert = "/etc/postgresql/tls/server.crt"
	pgKey  = "/etc/postgresql/tls/server.key"
	pgCA   = "/etc/postgresql/tls/root.crt"
	pgCRL  = "/etc/postgresql/tls/root.crl"
)

const postgresPrograms = "/usr/lib/postgresql/15/bin/"

// database is a PostgreSQL on a host. Over TLS a client's common name is its login (hostssl … cert).
type database struct {
	*consumer.Process
	h    *host
	home string // where its data directory and its socket are
	port string
	as   *syscall.Credential
}

// databaseHost joins a host whose PostgreSQL is configured and does not run yet.
func (w *world) databaseHost(t *testing.T, m machine) *database {
	t.Helper()
	h := w.newHost(t, "db", m)
	free, err := consumer.FreeAddress()
	must(t, err)
	d := &database{h: h, home: filepath.Join(h.home, "pg")}
	_, d.port, _ = strings.Cut(free, ":")
	must(t, os.Mkdir(d.home, 0o755))
	owner, group := d.account()
	d.initialize()
	h.write("/etc/postgresql/pg_hba.conf", "local all postgres trust\nhostssl all all 127.0.0.0/8 cert\n")
	settings := map[string]string{
		"listen_addresses": h.at, "port": d.port, "unix_socket_directories": d.home, "fsync": "off",
		"hba_file": h.inside("/etc/postgresql/pg_hba.conf"), "ssl": "on",
		"ssl_key_file": h.inside(pgKey), "ssl_cert_file": h.inside(pgCert), "ssl_ca_file": h.inside(pgCA), "ssl_crl_file": h.inside(pgCRL),
	}
	var conf strings.Builder
	for name, value := range settings {
		fmt.Fprintf(&conf, "%s = '%s'\n", name, value)
	}
	h.write("/etc/postgresql/postgresql.conf", conf.String())
	h.write("/etc/chancery/agent.yaml", d.reads())
	h.join(order("postgresql", "conf="+h.inside("/etc/postgresql/postgresql.conf"), "data="+d.home+"/data", "address="+h.at+":"+d.port,
		"user="+owner, "group="+group))
	return d
}

// initialize makes the data directory. It is a copy of one that initdb made for all tests, which takes a fifth of the time.
func (d *database) initialize() {
	d.h.t.Helper()
	program(d.h.t)
	shared.initdb.Do(func() { shared.data, shared.dataErr = newData(d.as) })
	must(d.h.t, shared.dataErr)
	output(d.h.t, exec.Command("cp", "-a", shared.data, filepath.Join(d.home, "data")))
}

// newData has initdb make a data directory, where its owner alone comes by.
func newData(as *syscall.Credential) (string, error) {
	home := filepath.Join(shared.bin, "pg")
	if err := os.Mkdir(home, 0o700); err != nil {
		return "", err
	}
	if as != nil {
		if err := os.Chown(home, int(as.Uid), int(as.Gid)); err != nil {
			return "", err
		}
	}
	data := filepath.Join(home, "data")
	initdb := exec.Command(postgresPrograms+"initdb", "-D", data, "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8", "--locale=C")
	initdb.Dir, initdb.SysProcAttr = home, &syscall.SysProcAttr{Credential: as}
	if out, err := initdb.CombinedOutput(); err != nil {
		return "", fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return data, nil
}

// reads has the host accept where its server's pid file is: the lines of agent.yaml.
func (d *database) reads() string { return "reads: [/etc/postgresql, " + d.home + "]\n" }

// account is who runs the server: it does not run as root.
func (d *database) account() (owner, group string) {
	d.h.t.Helper()
	name := "postgres"
	if os.Geteuid() != 0 {
		me, err := user.Current()
		must(d.h.t, err)
		name = me.Username
	}
	u, err := user.Lookup(name)
	must(d.h.t, err)
	g, err := user.LookupGroupId(u.Gid)
	must(d.h.t, err)
	if os.Geteuid() == 0 {
		uid, err := strconv.Atoi(u.Uid)
		must(d.h.t, err)
		gid, err := strconv.Atoi(u.Gid)
		must(d.h.t, err)
		must(d.h.t, os.Chown(d.home, uid, gid))
		d.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	return name, g.Name
}

// begin starts the server on the host, as its user, and makes a role.
func (d *database) begin(roles ...string) {
	d.h.t.Helper()
	program := consumer.Program{
		Path: postgresPrograms + "postgres", Args: []string{"-D", d.home + "/data", "-c", "config_file=" + d.h.inside("/etc/postgresql/postgresql.conf")},
		Stop: syscall.SIGINT,
		Ready: func(ctx context.Context) error {
			return exec.CommandContext(ctx, postgresPrograms+"pg_isready", "-q", "-h", d.home, "-p", d.port).Run()
		},
	}
	if d.as != nil {
		as := []string{fmt.Sprintf("--reuid=%d", d.as.Uid), fmt.Sprintf("--regid=%d", d.as.Gid), "--clear-groups", program.Path}
		program.Path, program.Args = "setpriv", append(as, program.Args...)
	}
	d.Process = d.h.start(program)
	for _, role := range roles {
		_, err := d.inside().Exec(d.h.t.Context(), "create role "+pgx.Identifier{role}.Sanitize()+" login")
		must(d.h.t, err)
	}
}

// inside is a session of the superuser's, over the server's own socket.
func (d *database) inside() *pgx.Conn {
	d.h.t.Helper()
	conn, err := pgx.Connect(d.h.t.Context(), fmt.Sprintf("host=%s port=%s user=postgres dbname=postgres sslmode=disable", d.home, d.port))
	must(d.h.t, err)
	d.h.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// runningDatabase is a databaseHost whose server runs and serves.
func (w *world) runningDatabase(t *testing.T, m machine, roles ...string) *database {
	t.Helper()
	d := w.databaseHost(t, m)
	d.h.converge()
	d.begin(roles...)
	d.h.converge()
	return d
}

// psql is the client that people use; it checks the server's path and name, and knows no certificate but those given.
func (d *database) psql(trust []byte, own *peer, role, statement string) *exec.Cmd {
	d.h.t.Helper()
	file := filepath.Join(d.h.t.TempDir(), "root.pem")
	must(d.h.t, os.WriteFile(file, trust, 0o644))
	dsn := fmt.Sprintf("host=%s hostaddr=%s port=%s user=%s dbname=postgres sslmode=verify-full sslrootcert=%s", d.h.name, d.h.at, d.port, role, file)
	if own != nil {
		dsn += fmt.Sprintf(" sslcert=%s/clientcert.pem sslkey=%[1]s/clientkey.pem", own.dir)
	} else {
		dsn += " sslcert=/nowhere sslkey=/nowhere"
	}
	cmd := exec.Command("psql", "-XAtc", statement, dsn)
	cmd.Env = append(os.Environ(), "HOME="+d.home)
	return cmd
}

// lets wants a client to log in.
func (d *database) lets(trust []byte, own *peer, role string) {
	d.h.t.Helper()
	if who := strings.TrimSpace(output(d.h.t, d.psql(trust, own, role, "select current_user"))); who != role {
		d.h.t.Errorf("logged in as %q", who)
	}
}

// refused wants a login to fail, with a text that the client prints.
func (d *database) refused(trust []byte, own *peer, role, text string) {
	d.h.t.Helper()
	fails(d.h.t, d.psql(trust, own, role, "select 1"), text)
}

func (d *database) onTheWire() string {
	d.h.t.Helper()
	return onTheWire(d.h.t, d.h, d.h.at+":"+d.port, "-starttls", "postgres")
}

// serves wants the placed certificate on the wire, and the authority to know that it is.
func (d *database) serves(want *x509.Certificate) {
	d.h.t.Helper()
	serial := cert.FormatSerial(want.SerialNumber)
	if seen := d.onTheWire(); seen != serial {
		d.h.t.Errorf("%s is served, not %s", seen, serial)
	}
	if seen := d.h.observed("postgresql"); seen.State != client.PlacementServed || seen.Served != serial || seen.Serial != serial {
		d.h.t.Errorf("reported is %+v, not %s served", seen, serial)
	}
}

// TestDatabase, scenario S17, takes PostgreSQL from a host that has just joined to logins by certificate, through changes
// by somebody else, to its end, which is left to whoever ended it.
func TestDatabase(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool, other := w.pool(t), w.pool(t)
	d := w.databaseHost(t, machine{pool: pool.Name})
	h := d.h
	h.converge()
	if seen := h.observed("postgresql"); seen.State != client.PlacementDown {
		t.Errorf("before PostgreSQL runs: %+v", seen)
	}
	d.begin("app")
	h.converge()
	leaf := parsed(t, h.read(pgCert))
	d.serves(leaf)
	trust, app := []byte(pool.Root.PEM), w.clientOf(t, pool, "app")
	d.lets(trust, app, "app")
	d.refused(trust, app, "postgres", "certificate authentication failed")
	d.refused(trust, w.clientOf(t, other, "app"), "app", "unknown ca")
	d.refused(trust, selfMade(t, trust, "app"), "app", "unknown ca")
	d.refused(trust, nil, "app", "requires a valid client certificate")
	d.refused([]byte(other.Root.PEM), app, "app", "certificate verify failed")
	for path, change := range map[string]func() error{
		pgKey: func() error { return os.Chmod(h.path(pgKey), 0o644) }, // with which the server would not start again
		pgCA:  func() error { return os.WriteFile(h.path(pgCA), []byte(other.Root.PEM), 0o644) },
		pgCRL: func() error { return os.Remove(h.path(pgCRL)) },
	} {
		must(t, change())
		h.converge()
		if mended := strings.Join(h.observed("postgresql").Repaired, "\n"); !strings.Contains(mended, path) {
			t.Errorf("of %s is reported %q", path, mended)
		}
		if st, err := os.Stat(h.path(pgKey)); err != nil || st.Mode() != 0o600 || string(h.read(pgCA)) != pool.Root.PEM || len(h.crls(pgCRL)) != 2 {
			t.Errorf("%s was not mended", path)
		}
		d.lets(trust, app, "app")
	}
	must(t, d.Stop())
	h.converge()
	if seen := h.observed("postgresql"); seen.State != client.PlacementDown {
		t.Errorf("after it was stopped: %+v", seen)
	}
	if err := consumer.Listening(h.at + ":" + d.port)(t.Context()); err == nil {
		t.Error("the agent started what was stopped")
	}
}

// TestDatabaseRenewalUnderAQuery, scenario S17: a query that runs while a new key is placed comes to its end, in its
// session.
func TestDatabaseRenewalUnderAQuery(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	d := w.runningDatabase(t, machine{pool: pool.Name}, "app")
	trust, app := []byte(pool.Root.PEM), w.clientOf(t, pool, "app")
	before := parsed(t, d.h.read(pgCert))
	d.serves(before)
	holds := d.inside()
	_, err := holds.Exec(t.Context(), "select pg_advisory_lock(1)")
	must(t, err)
	// The query waits for the lock.
	query := d.psql(trust, app, "app", "select pg_advisory_lock(1) is null, ssl, pg_backend_pid() = pid from pg_stat_ssl where pid = pg_backend_pid()")
	var answer strings.Builder
	query.Stdout, query.Stderr = &answer, &answer
	must(t, query.Start())
	look := d.inside()
	until(t, "the query waits", func() bool {
		var waiting int
		must(t, look.QueryRow(t.Context(), "select count(*) from pg_locks where locktype = 'advisory' and not granted").Scan(&waiting))
		return waiting == 1
	})
	w.chancery(t, "host", "set", d.h.name, "--dns", "other-"+d.h.name)
	d.h.converge()
	after := parsed(t, d.h.read(pgCert))
	if string(after.RawSubjectPublicKeyInfo) == string(before.RawSubjectPublicKeyInfo) {
		t.Error("it was not re-keyed")
	}
	d.serves(after)
	d.lets(trust, app, "app")
	_, err = holds.Exec(t.Context(), "select pg_advisory_unlock(1)")
	must(t, err)
	if err := query.Wait(); err != nil || strings.TrimSpace(answer.String()) != "f|t|t" {
		t.Errorf("the query ended with %v, %q", err, answer.String())
	}
}

// TestDatabaseReloadThatFails: PostgreSQL keeps the old files where it cannot use the new ones, and says so in its log
// alone. The agent sees it on the port and puts the old files back.
func TestDatabaseReloadThatFails(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	for name, c := range map[string]struct{ reload, says string }{
		"the reload lies":  {"/bin/true", "serves certificate"},
		"the reload fails": {"/bin/false", "exit status 1"},
		"wrong material":   {"SPOIL", "serves certificate"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			pool := w.pool(t)
			d := w.runningDatabase(t, machine{pool: pool.Name}, "app")
			trust, app := []byte(pool.Root.PEM), w.clientOf(t, pool, "app")
			before, key := parsed(t, d.h.read(pgCert)), string(d.h.read(pgKey))
			d.serves(before)
			other, err := keyfile.EncodePKCS8(ecKey(t))
			must(t, err)
			spoil := d.h.inside("/opt/spoil")
			d.h.write("/opt/other.key", string(other))
			// Between placing and the first reload somebody puts another key there.
			d.h.write("/opt/spoil", strings.NewReplacer("DONE", d.h.inside("/opt/spoilt"), "OTHER", d.h.inside("/opt/other.key"),
				"KEY", d.h.inside(pgKey), "PID", d.home+"/data/postmaster.pid").Replace("#!/bin/sh\n[ -e DONE ] || cat OTHER >KEY\n: >DONE\nexec kill -HUP $(head -n 1 PID)\n"))
			must(t, os.Chmod(d.h.path("/opt/spoil"), 0o755))
			d.h.write("/etc/chancery/agent.yaml", d.reads()+"steps:\n  postgresql:\n    reload: ["+strings.ReplaceAll(c.reload, "SPOIL", spoil)+"]\n")
			w.chancery(t, "host", "set", d.h.name, "--dns", "other-"+d.h.name)
			d.h.refuses("the old files are back")
			if seen := d.h.observed("postgresql"); seen.State != client.PlacementFailed || !strings.Contains(seen.Message, c.says) ||
				seen.Serial != cert.FormatSerial(before.SerialNumber) {
				t.Errorf("reported is %+v, where %q is expected", seen, c.says)
			}
			if string(d.h.read(pgKey)) != key || !parsed(t, d.h.read(pgCert)).Equal(before) {
				t.Error("the old pair was not put back")
			}
			if seen := d.onTheWire(); seen != cert.FormatSerial(before.SerialNumber) {
				t.Errorf("%s is served", seen)
			}
			d.lets(trust, app, "app")
			d.h.write("/etc/chancery/agent.yaml", d.reads())
			d.h.converge()
			if after := parsed(t, d.h.read(pgCert)); after.Equal(before) {
				t.Error("the new pair is not placed when it can be")
			} else {
				d.serves(after)
			}
		})
	}
}

// TestDatabaseRevocation: a revoked client's login is refused once the agent has placed the CRL, and no other.
func TestDatabaseRevocation(t *testing.T) {
	t.Parallel()
	w := theWorld(t)
	pool := w.pool(t)
	d := w.runningDatabase(t, machine{pool: pool.Name}, "good", "bad")
	trust, good, bad := []byte(pool.Root.PEM), w.clientOf(t, pool, "good"), w.clientOf(t, pool, "bad")
	d.lets(trust, good, "good")
	d.lets(trust, bad, "bad")
	before := d.h.crls(pgCRL)
	d.h.revoked(pool, bad.pair.Leaf, pgCRL)
	// The postmaster reads the files when it gets to its signal.
	until(t, "PostgreSQL refuses a revoked client", func() bool { return d.psql(trust, bad, "bad", "select 1").Run() != nil })
	d.refused(trust, bad, "bad", "certificate revoked")
	d.lets(trust, good, "good")
	d.h.grows(before, d.h.crls(pgCRL), pool.Issuer)
	d.lets(trust, w.clientOf(t, pool, "bad"), "bad")
}
