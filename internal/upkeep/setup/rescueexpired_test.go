package setup_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/identity"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// writeAs writes a file for the user that a PostgreSQL runs as.
func writeAs(t *testing.T, like, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	stat, err := os.Stat(like)
	if err != nil {
		t.Fatal(err)
	}
	owner := stat.Sys().(*syscall.Stat_t)
	if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
		t.Fatal(err)
	}
}

// certified makes a key and has it certified, as PEM both.
func certified(t *testing.T, s *setup.Services, order ca.Order) (key, path []byte) {
	t.Helper()
	made, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		t.Fatal(err)
	}
	if key, err = keyfile.EncodePKCS8(made); err != nil {
		t.Fatal(err)
	}
	if order.CSR, err = cert.CreateCSR(&cert.CSRTemplate{}, made); err != nil {
		t.Fatal(err)
	}
	issue := s.CA.Issue
	if order.Subject == "CN=chancery_node1" { // which no order gets
		issue = func(ctx context.Context, by access.Principal, order ca.Order) (*ca.Certificate, error) {
			return s.CA.IssueLogin(ctx, by, "chancery_node1", order)
		}
	}
	issued, err := issue(t.Context(), officer, order)
	if err != nil {
		t.Fatal(err)
	}
	var all []*x509.Certificate
	for _, der := range identity.Path(issued) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return key, keyfile.EncodeCertificates(all...)
}

// found makes an authority in a bubble whose clock stands in the year 2000, and opens it a second later: the clock moves in no other way, and
// IDs of rows are drawn by it.
func found(t *testing.T, o setup.Options) *setup.Services {
	t.Helper()
	o.RecoveryWork = pkitest.RecoveryWork
	if _, err := setup.Init(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	return open(t, o.Dir)
}

// longAgo makes an authority in the year 2000, as a synctest bubble has it: by now, all that it certified for itself has ended, its
// roots included. It has the pool of the database, from which a server and this node's login have certificates.
func longAgo(t *testing.T, dir datadir.Dir, socket string, online bool) (serverKey, serverPath []byte) {
	t.Helper()
	file := databaseFile(t, socket)
	synctest.Test(t, func(t *testing.T) {
		s := found(t, setup.Options{Dir: dir, DatabaseFile: file, Organization: "Example", Online: online})
		defer s.DB.Close()
		if _, err := s.Pools.Add(t.Context(), officer, "", pool.Spec{Name: setup.DatabasePool, Organization: "Example", Online: true}); err != nil {
			t.Fatal(err)
		}
		serverKey, serverPath = certified(t, s, ca.Order{Pool: setup.DatabasePool, Profile: "server", Names: []string{"dns:localhost"}})
		loginKey, loginPath := certified(t, s, ca.Order{Pool: setup.DatabasePool, Profile: "client", Subject: "CN=chancery_node1"})
		p, err := s.Pools.Pool(t.Context(), setup.DatabasePool)
		if err != nil {
			t.Fatal(err)
		}
		roots := string(keyfile.EncodeCertificates(p.Root.Certificate))
		if err := dir.KeepDatabaseLogin("chancery_node1", loginKey, []string{string(loginPath)}, roots); err != nil {
			t.Fatal(err)
		}
	})
	return serverKey, serverPath
}

// TestAllCertificatesEnded brings an authority back of which every certificate has ended: its roots, issuers, the node's, the
// administrator's, PostgreSQL's server's and the node's login there. TLS lets nobody in; the Unix socket, by the kernel's word, does.
func TestAllCertificatesEnded(t *testing.T) {
	server := pkitest.Postgres(t)
	data := filepath.Join(server.Dir, "data")
	server.Exec(t, "CREATE ROLE pki NOLOGIN")
	server.Exec(t, "CREATE DATABASE ended OWNER pki")
	if said, err := exec.Command("psql", "-XqvON_ERROR_STOP=1", "-c", db.LoginFunctions, server.URL("ended")).CombinedOutput(); err != nil {
		t.Fatalf("psql: %v\n%s", err, said)
	}
	server.Exec(t, "ALTER ROLE chancery IN DATABASE ended SET role = pki")
	dir := newDir(t)
	key, path := longAgo(t, dir, server.URL("ended"), true)

	// From here on it is now. The server takes TLS with certificates of the pool from the network, and peers over its socket.
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	install := func(key, path, roots []byte) {
		writeAs(t, data, filepath.Join(data, "server.key"), key)
		writeAs(t, data, filepath.Join(data, "server.crt"), path)
		writeAs(t, data, filepath.Join(data, "roots.crt"), roots)
		server.Reload(t)
	}
	writeAs(t, data, filepath.Join(data, "pg_ident.conf"), fmt.Appendf(nil, "chancery %s chancery\n", me.Username))
	writeAs(t, data, filepath.Join(data, "pg_hba.conf"), []byte("local all all peer map=chancery\nhostssl all all 127.0.0.1/32 cert\nhostssl all all ::1/128 cert\n"))
	roots := readFile(t, dir.DatabaseRoots())
	writeAs(t, data, filepath.Join(data, "server.key"), key)
	for _, setting := range []string{"ssl_ca_file = 'roots.crt'", "ssl = on"} {
		server.Exec(t, "ALTER SYSTEM SET "+setting)
	}
	install(key, path, roots)
	over := url.URL{Scheme: "postgres", Host: fmt.Sprintf("localhost:%d", server.Port), Path: "/ended"}
	tlsFile := databaseFile(t, over.String())
	config := bytes.ReplaceAll(readFile(t, dir.Config()), []byte(databaseOf(t, dir)), []byte(tlsFile))
	if err := os.WriteFile(dir.Config(), config, 0o644); err != nil {
		t.Fatal(err)
	}

	_, err = setup.RescueExpired(t.Context(), setup.ExpiredOptions{Dir: dir})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "the database does not let this node in by TLS") {
		t.Fatalf("with certificates that ended: %v", err)
	}
	socket := databaseFile(t, server.URL("ended"))
	out := filepath.Join(t.TempDir(), "servers")
	if err := os.MkdirAll(filepath.Join(out, "roots.crt", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	// One that is cut at its last file is known of, and is simply run again.
	members := []string{"localhost/127.0.0.1"}
	pkitest.Leave(t, filepath.Dir(dir.DatabaseLogin()))
	first, err := setup.RescueExpired(t.Context(), setup.ExpiredOptions{Dir: dir, DatabaseFile: socket, Servers: members, ServerDir: out})
	if err == nil {
		t.Fatalf("nothing was in the way: %+v", first)
	}
	if err := os.RemoveAll(filepath.Join(out, "roots.crt")); err != nil {
		t.Fatal(err)
	}
	done, err := setup.RescueExpired(t.Context(), setup.ExpiredOptions{Dir: dir, DatabaseFile: socket, Servers: members, ServerDir: out})
	if err != nil {
		t.Fatal(err)
	}
	if len(done.Pools) != 0 || done.Administrator != "admin" || len(done.Offline) != 0 {
		t.Errorf("brought back by the second run: %+v", done)
	}
	for suffix, usage := range map[string][]x509.ExtKeyUsage{
		"": {x509.ExtKeyUsageServerAuth}, "-peer": {x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, "-client": {x509.ExtKeyUsageClientAuth},
	} {
		if _, err := tls.LoadX509KeyPair(filepath.Join(out, "localhost"+suffix+".crt"), filepath.Join(out, "localhost"+suffix+".key")); err != nil {
			t.Error(err)
		}
		made, err := keyfile.ParseCertificates(readFile(t, filepath.Join(out, "localhost"+suffix+".crt")))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(made[0].ExtKeyUsage, usage) {
			t.Errorf("%s has the usages %v", suffix, made[0].ExtKeyUsage)
		}
		if suffix != "-client" && (made[0].VerifyHostname("localhost") != nil || made[0].VerifyHostname("127.0.0.1") != nil) {
			t.Errorf("%s is for %v and %v", suffix, made[0].DNSNames, made[0].IPAddresses)
		}
	}
	install(readFile(t, filepath.Join(out, "localhost.key")), readFile(t, filepath.Join(out, "localhost.crt")), readFile(t, filepath.Join(out, "roots.crt")))

	pkitest.IsLeft(t, dir.DatabaseLogin())
	if !done.AgentsJoin {
		t.Error("hosts are not told that they know none of the roots")
	}

	// The node comes in by TLS as itself, issues, and its administrator is known by the root that is pinned.
	s := open(t, dir)
	admin, err := keyfile.ParseCertificates(readFile(t, dir.AdminCert()))
	if err != nil {
		t.Fatal(err)
	}
	pinned := x509.NewCertPool()
	pinned.AppendCertsFromPEM(readFile(t, dir.IdentityRoot()))
	above := x509.NewCertPool()
	for _, c := range admin[1:] {
		above.AddCert(c)
	}
	if _, err := admin[0].Verify(x509.VerifyOptions{Roots: pinned, Intermediates: above, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("the administrator: %v", err)
	}
	spki, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Identity.Serve(t.Context(), "node1", spki.Public(), []string{"dns:localhost"}); err != nil {
		t.Errorf("the node's certificate: %v", err)
	}
	page, err := s.Audit.Search(t.Context(), audit.Filter{Action: "authority.rescue"}, "", 10)
	if err != nil || len(page.Events) != 3 {
		t.Errorf("the audit has %d events of the run that was cut and of the one that was not: %v", len(page.Events), err)
	}
	var role string
	if err := s.DB.Migrator().QueryRow("SELECT session_user").Scan(&role); err != nil || role != "chancery_node1" {
		t.Errorf("the node is known to the database as %q, %v", role, err)
	}
	// A second time there is nothing to bring back, and nothing is issued.
	var before, after int
	if err := s.DB.Migrator().QueryRow("SELECT COUNT(*) FROM certificate").Scan(&before); err != nil {
		t.Fatal(err)
	}
	if err := s.DB.Close(); err != nil {
		t.Fatal(err)
	}
	again := setup.ExpiredOptions{Dir: dir, Servers: members, ServerDir: out}
	if done, err = setup.RescueExpired(t.Context(), again); err != nil || len(done.Pools) != 0 || !done.Kept {
		t.Errorf("a second time: %+v, %v", done, err)
	}
	s = open(t, dir)
	if err := s.DB.Migrator().QueryRow("SELECT COUNT(*) FROM certificate").Scan(&after); err != nil || after != before {
		t.Errorf("a second time has issued %d certificates, %v", after-before, err)
	}
}

// databaseOf is the file that node.yaml names.
func databaseOf(t *testing.T, dir datadir.Dir) string {
	t.Helper()
	config, err := dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	return config.DatabaseFile
}

// TestOfflineRootEnded has the root's key sealed away as it was before.
func TestOfflineRootEnded(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: dir}); err != nil {
			t.Fatal(err)
		}
	})
	done, err := setup.RescueExpired(t.Context(), setup.ExpiredOptions{Dir: dir, Passphrase: []byte("correct horse battery")})
	if err != nil {
		t.Fatal(err)
	}
	if len(done.NewRoots) != 1 || len(done.Offline) != 1 {
		t.Fatalf("%+v", done)
	}
	sealedForYears(t, done.Offline[0])
	if stat, err := os.Stat(done.Offline[0]); err != nil || stat.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", stat, err)
	}
	s := open(t, dir)
	if _, err := s.Access.PrincipalNamed(t.Context(), "admin"); err != nil {
		t.Error(err)
	}
	if p, err := s.Pools.Pool(t.Context(), pool.Identity); err != nil || time.Now().After(p.Root.Certificate.NotAfter) {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestOfflineRootIsCut ends a rescue at each commit: the new root's key is in its file before the database hears of that root, and the
// next run goes on under it instead of making another.
func TestOfflineRootIsCut(t *testing.T) {
	for name, passphrase := range map[string][]byte{"given": []byte("correct horse battery"), "made": nil} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			synctest.Test(t, func(t *testing.T) {
				if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: dir}); err != nil {
					t.Fatal(err)
				}
			})
			config, err := dir.Load()
			if err != nil {
				t.Fatal(err)
			}
			at, _, err := config.DatabaseURLs(dir)
			if err != nil {
				t.Fatal(err)
			}
			roots := func() (names []string) {
				s := open(t, dir)
				defer s.DB.Close()
				all, err := s.CA.Issuers(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, i := range all {
					if i.Pool == pool.Identity && i.Parent == "" {
						names = append(names, i.Name)
					}
				}
				return names
			}
			cut := 0
			for {
				var faults pkitest.Faults
				d, err := db.Open(t.Context(), db.Options{URL: at, Wrap: faults.Wrap})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				faults.BeforeCommit(cancel)
				err = setup.ReviveOn(ctx, dir, d, pool.Identity, passphrase)
				cancel()
				d.Close()
				if err == nil {
					break
				}
				if cut++; cut > 20 {
					t.Fatalf("it comes to no end: %v", err)
				}
			}
			if cut < 2 {
				t.Errorf("it was cut %d times", cut)
			}
			done, err := setup.RescueExpired(t.Context(), setup.ExpiredOptions{Dir: dir, Passphrase: passphrase})
			if err != nil {
				t.Fatal(err)
			}
			if all := roots(); len(all) != 2 {
				t.Errorf("the pool has the roots %v after %d cuts", all, cut)
			}
			// The file's key is that root's.
			given := passphrase
			file := filepath.Join(dir.Offline(), "identity-root-2.key")
			if given == nil {
				given = bytes.TrimSpace(readFile(t, file+".passphrase"))
			}
			key, err := keys.OpenOffline(readFile(t, file), given)
			if err != nil {
				t.Fatal(err)
			}
			s := open(t, dir)
			p, err := s.Pools.Pool(t.Context(), pool.Identity)
			if err != nil || keyfile.CheckPair(key.Public(), p.Root.Certificate) != nil {
				t.Errorf("the key in the file is not the root's: %v, %+v", err, done)
			}
		})
	}
}

// TestRescueIsCutAnywhere ends a whole rescue after its first commit, then after its second, and so on: each run goes on with what the ones
// before made. In the end each pool has one new root, whose key is in a file, and no certificate was made twice.
func TestRescueIsCutAnywhere(t *testing.T) {
	dir := newDir(t)
	pools := []string{pool.Identity, setup.DatabasePool, setup.ControlPool, pool.Default}
	synctest.Test(t, func(t *testing.T) {
		s := found(t, setup.Options{Dir: dir})
		defer s.DB.Close()
		for _, name := range []string{setup.DatabasePool, setup.ControlPool} {
			if _, _, err := s.Pools.AddOffline(t.Context(), officer, pool.Spec{Name: name}); err != nil {
				t.Fatal(err)
			}
		}
	})
	o := setup.ExpiredOptions{Dir: dir, Pools: []string{pool.Default}, Servers: []string{"db1/192.0.2.11"}, ServerDir: filepath.Join(t.TempDir(), "db")}
	config, err := dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	at, _, err := config.DatabaseURLs(dir)
	if err != nil {
		t.Fatal(err)
	}
	cut := 0
	for err = context.Canceled; err != nil; cut++ {
		if cut > 60 {
			t.Fatalf("it comes to no end: %v", err)
		}
		var faults pkitest.Faults
		d, opened := db.Open(t.Context(), db.Options{URL: at, Wrap: faults.Wrap})
		if opened != nil {
			t.Fatal(opened)
		}
		ctx, cancel := context.WithCancel(t.Context())
		// The first commit is the record that a rescue begins; the run ends behind the one after it.
		commits := 0
		faults.BeforeCommit(func() {
			if commits++; commits > 2 {
				cancel()
			}
		})
		_, err = setup.BringOn(ctx, o, d)
		cancel()
		d.Close()
	}
	if cut < 8 {
		t.Errorf("it was cut %d times", cut)
	}
	s := open(t, dir)
	all, err := s.CA.Issuers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range pools {
		roots := 0
		for _, i := range all {
			if i.Pool == name && i.Root() && time.Now().Before(i.Certificate.NotAfter) {
				roots++
				file := filepath.Join(dir.Offline(), i.Name+".key")
				key, err := keys.OpenOffline(readFile(t, file), bytes.TrimSpace(readFile(t, file+".passphrase")))
				if err != nil || keyfile.CheckPair(key.Public(), i.Certificate) != nil {
					t.Errorf("the key in %s is not its root's: %v", file, err)
				}
			}
		}
		if p, err := s.Pools.Pool(t.Context(), name); err != nil || roots != 1 || !time.Now().Before(p.Issuer.Certificate.NotAfter) {
			t.Errorf("pool %s has %d roots, %v", name, roots, err)
		}
	}
	// The administrator's, and the three of the server's; a run that is cut between the commit and the file leaves one more of them.
	var made int
	if err := s.DB.Migrator().QueryRow("SELECT COUNT(*) FROM certificate WHERE not_after > $1 AND profile <> 'ca'", db.Micros(time.Now())).Scan(&made); err != nil || made > 8 {
		t.Errorf("%d certificates were made for four places: %v", made, err)
	}
}
