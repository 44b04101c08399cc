package setup_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/setup"
)

// named is an authority of the year 2000 whose database's URL names the node's login in files, the key behind a link. What the
// authority itself is kept in is SQLite, so that nothing but the rescue looks at those files.
type named struct {
	t                *testing.T
	dir              datadir.Dir
	at               string // the database's
	cert, key, roots string
	options          setup.ExpiredOptions
}

func newNamed(t *testing.T) *named {
	files := t.TempDir()
	n := &named{t: t, dir: newDir(t), cert: filepath.Join(files, "login.crt"), key: filepath.Join(files, "login.key"), roots: filepath.Join(files, "roots.crt")}
	var key, path, roots []byte
	synctest.Test(t, func(t *testing.T) {
		s := found(t, setup.Options{Dir: n.dir, Online: true})
		defer s.DB.Close()
		if _, err := s.Pools.Add(t.Context(), officer, "", pool.Spec{Name: setup.DatabasePool, Organization: "Example", Online: true}); err != nil {
			t.Fatal(err)
		}
		key, path = certified(t, s, ca.Order{Pool: setup.DatabasePool, Profile: "client", Subject: "CN=chancery"})
		p, err := s.Pools.Pool(t.Context(), setup.DatabasePool)
		if err != nil {
			t.Fatal(err)
		}
		roots = keyfile.EncodeCertificates(p.Root.Certificate)
	})
	for file, text := range map[string][]byte{n.cert: path, n.roots: roots, n.key + ".there": key} {
		if err := os.WriteFile(file, text, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(n.key+".there", 0o640), os.Symlink("login.key.there", n.key)); err != nil {
		t.Fatal(err)
	}
	config, err := n.dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	if n.at, _, err = config.DatabaseURLs(n.dir); err != nil {
		t.Fatal(err)
	}
	file := databaseFile(t, "postgres://chancery@db1/chancery?sslcert="+n.cert+"&sslkey="+n.key+"&sslrootcert="+n.roots)
	text := append(readFile(t, n.dir.Config()), "\ndatabase_file: "+file+"\n"...)
	if err := os.WriteFile(n.dir.Config(), text, 0o644); err != nil {
		t.Fatal(err)
	}
	n.options = setup.ExpiredOptions{Dir: n.dir}
	return n
}

// bring runs a rescue, and tells how many certificates and events it made.
func (n *named) bring() (done *setup.Brought, made int, err error) {
	n.t.Helper()
	d, err := db.Open(n.t.Context(), db.Options{URL: n.at})
	if err != nil {
		n.t.Fatal(err)
	}
	defer d.Close()
	count := func() (all int) {
		if err := d.Migrator().QueryRow("SELECT (SELECT COUNT(*) FROM certificate) + (SELECT COUNT(*) FROM audit_event WHERE action <> 'authority.rescue')").Scan(&all); err != nil {
			n.t.Fatal(err)
		}
		return all
	}
	before := count()
	done, err = setup.BringOn(n.t.Context(), n.options, d)
	return done, count() - before, err
}

// TestNamedLogin brings back what a database's URL names: who reads the key goes on reading it, where it is; and a run that was cut
// before the roots were written is made good by the next, which issues nothing.
func TestNamedLogin(t *testing.T) {
	n := newNamed(t)
	there := n.key + ".there"
	if os.Geteuid() == 0 {
		if err := os.Chown(there, 0, 65533); err != nil {
			t.Fatal(err)
		}
	}
	stat := func() (fs.FileMode, uint32) {
		st, err := os.Lstat(there)
		if err != nil {
			t.Fatal(err)
		}
		return st.Mode(), st.Sys().(*syscall.Stat_t).Gid
	}
	mode, group := stat()
	ended, endedKey := readFile(t, n.roots), readFile(t, there)
	done, made, err := n.bring()
	if err != nil || made == 0 || done.LoginLeft != "" {
		t.Fatalf("%+v, %v", done, err)
	}
	if bytes.Equal(readFile(t, there), endedKey) || bytes.Equal(readFile(t, n.roots), ended) {
		t.Error("the login or its roots are the old ones")
	}
	if m, g := stat(); m != mode || g != group {
		t.Errorf("the key had %v of group %d, and has %v of %d", mode, group, m, g)
	}
	if to, err := os.Readlink(n.key); err != nil || to != filepath.Base(there) {
		t.Errorf("the link to the key: %q, %v", to, err)
	}
	good := readFile(t, n.roots)
	if err := os.WriteFile(n.roots, ended, 0o644); err != nil {
		t.Fatal(err)
	}
	if done, made, err = n.bring(); err != nil || made != 0 || !bytes.Equal(readFile(t, n.roots), good) {
		t.Errorf("after a cut: %d things were made, %+v, %v", made, done, err)
	}
	// Roots that hold others as well, and lack none, are left as they are.
	more := append(bytes.Clone(good), ended...)
	if err := os.WriteFile(n.roots, more, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, made, err = n.bring(); err != nil || made != 0 || !bytes.Equal(readFile(t, n.roots), more) {
		t.Errorf("with roots that suffice: %d things were made, %v", made, err)
	}
	// And others stay where one is added.
	other := readFile(t, n.dir.IdentityRoot())
	if err := os.WriteFile(n.roots, append(bytes.Clone(other), ended...), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, made, err = n.bring(); err != nil || made != 0 || !bytes.Equal(readFile(t, n.roots), append(bytes.Clone(good), other...)) {
		t.Errorf("with others' roots: %d things were made, %v", made, err)
	}
}

// put writes a file in the place of what is there, for a user where root may.
func put(t *testing.T, path string, text []byte, owner int) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, text, 0o600)); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Lchown(path, owner, -1); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNamedLoginIsLeft where it cannot be brought back: the members of the database get theirs nevertheless, the operator is told of the
// file in whose place nothing can be put, and runs that do no more than that issue no certificate for it.
func TestNamedLoginIsLeft(t *testing.T) {
	n := newNamed(t)
	n.options.Servers, n.options.ServerDir = []string{"db1"}, filepath.Join(t.TempDir(), "db")
	cert, key, roots := readFile(t, n.cert), readFile(t, n.key), readFile(t, n.roots)
	any := []byte("root:x:0:0:root:/root:/bin/sh\n")
	first := true
	for _, tc := range []struct {
		what, at string
		spoil    func()
	}{
		{"roots that are none", n.roots, func() { put(t, n.roots, any, 0) }},
		{"a link to a link", n.key, func() {
			if err := errors.Join(os.Rename(n.key, n.key+".1"), os.Symlink("login.key.1", n.key+".2"), os.Symlink("login.key.2", n.key)); err != nil {
				t.Fatal(err)
			}
		}},
		{"a directory", n.key, func() {
			if err := errors.Join(os.Remove(n.key), os.Mkdir(n.key, 0o700)); err != nil {
				t.Fatal(err)
			}
		}},
		{"no certificate", n.cert, func() {
			if err := os.Remove(n.cert); err != nil {
				t.Fatal(err)
			}
		}},
		{"one file for two", "one file", func() {
			if err := errors.Join(os.Remove(n.key), os.Link(n.cert, n.key)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		put(t, n.cert, cert, 0)
		put(t, n.key, key, 0)
		put(t, n.roots, roots, 0)
		tc.spoil()
		for range 2 {
			done, made, err := n.bring()
			if err != nil || !strings.Contains(done.LoginLeft, tc.at) || !first && made != 0 {
				t.Errorf("%s: %d things were made, %+v, %v", tc.what, made, done, err)
			}
			first = false
		}
		if len(readFile(t, filepath.Join(n.options.ServerDir, "db1.crt"))) == 0 {
			t.Errorf("%s: the member has no certificate", tc.what)
		}
	}
	put(t, n.cert, cert, 0)
	put(t, n.key, key, 0)
	put(t, n.roots, roots, 0)
	if done, made, err := n.bring(); err != nil || made == 0 || done.LoginLeft != "" || bytes.Equal(readFile(t, n.key), key) {
		t.Errorf("when all is right: %d things were made, %+v, %v", made, done, err)
	}
}

// TestRootWritesForNobodyElse: the user of the service writes the database's URL, and root, who runs the rescue, puts nothing in the place of
// a file that the URL names by his word alone, nor into a directory of root's. Somebody else than root can do no harm so.
func TestRootWritesForNobodyElse(t *testing.T) {
	if os.Geteuid() != 0 {
		return
	}
	const service = 65534
	n := newNamed(t)
	config, err := n.dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	url := n.dir.Within(config.DatabaseFile)
	cert, key, roots := readFile(t, n.cert), readFile(t, n.key), readFile(t, n.roots)
	_, other := keyAndPEM(t)
	any := []byte("root:x:0:0:root:/root:/bin/sh\n")
	for _, tc := range []struct {
		what             string
		url              int // whose it is
		cert, key, roots int // whose they are
		lies             []byte
		at               string // the file that is named to the operator; empty where the login comes back
	}{
		{"any file, by root's word", 0, 0, 0, 0, any, n.key},
		{"any file of root's", service, service, 0, service, any, n.key},
		{"another's key", service, service, 0, service, other, n.key},
		{"another's certificate", service, 0, service, service, other, n.cert},
		{"in root's directory", service, service, 0, service, nil, n.key},
		{"the service's own", service, service, service, service, any, ""},
		{"what it is said to be", service, 0, 0, 0, key, ""},
		{"where root says", 0, 0, 0, 0, nil, ""},
	} {
		put(t, n.cert, cert, tc.cert)
		put(t, n.roots, roots, tc.roots)
		put(t, n.key, tc.lies, tc.key)
		if tc.lies == nil {
			if err := os.Remove(n.key); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Lchown(url, tc.url, -1); err != nil {
			t.Fatal(err)
		}
		done, _, err := n.bring()
		if err != nil || (done.LoginLeft == "") != (tc.at == "") || !strings.Contains(done.LoginLeft, tc.at) {
			t.Errorf("%s: %+v, %v", tc.what, done, err)
		}
		now, err := os.ReadFile(n.key)
		if tc.lies == nil && tc.at != "" && !errors.Is(err, fs.ErrNotExist) || tc.lies != nil && bytes.Equal(now, tc.lies) != (tc.at != "") {
			t.Errorf("%s: the key's place has %d octets, %v", tc.what, len(now), err)
		}
		if certNow := readFile(t, n.cert); bytes.Equal(certNow, cert) != (tc.at != "") {
			t.Errorf("%s: the certificate is the old one: %t", tc.what, bytes.Equal(certNow, cert))
		}
		for file, owner := range map[string]int{n.cert: tc.cert, n.roots: tc.roots} {
			if got := ownerOf(t, file); got != owner {
				t.Errorf("%s: %s is user %d's, and was user %d's", tc.what, file, got, owner)
			}
		}
	}
	// Roots are looked at as the key is: one that has none of the pool, or is not there, is not root's to make.
	put(t, n.cert, cert, service)
	put(t, n.key, key, service)
	put(t, n.roots, nil, 0)
	if err := os.Lchown(url, service, -1); err != nil {
		t.Fatal(err)
	}
	if done, made, err := n.bring(); err != nil || made != 0 || !strings.Contains(done.LoginLeft, n.roots) || len(readFile(t, n.roots)) != 0 {
		t.Errorf("roots in an empty file of root's: %d things were made, %+v, %v", made, done, err)
	}
}

func ownerOf(t *testing.T, path string) int {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(st.Sys().(*syscall.Stat_t).Uid)
}

// keyAndPEM makes a key.
func keyAndPEM(t *testing.T) (crypto.Signer, []byte) {
	t.Helper()
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		t.Fatal(err)
	}
	text, err := keyfile.EncodePKCS8(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, text
}

// TestRescueLooksFirst: what cannot be done is refused before anything is.
func TestRescueLooksFirst(t *testing.T) {
	n := newNamed(t)
	for _, o := range []setup.ExpiredOptions{
		{Pools: []string{"nowhere"}}, {Servers: []string{"db1/"}}, {Servers: []string{"db1", "../db2"}},
	} {
		o.Dir, o.ServerDir = n.dir, filepath.Join(t.TempDir(), "db")
		n.options = o
		_, made, err := n.bring()
		if !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Invalid) || made != 0 {
			t.Errorf("%+v: %d things were made, %v", o, made, err)
		}
		if _, err := os.Stat(o.ServerDir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v: the directory: %v", o, err)
		}
	}
}

// TestGoodTLSStays: the node's own certificate goes where it has ended, and where it has not it stays.
func TestGoodTLSStays(t *testing.T) {
	dir := newDir(t)
	if _, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: dir}); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		t.Fatal(err)
	}
	text, err := keyfile.EncodePKCS8(key)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := s.Identity.Serve(t.Context(), "node1", key.Public(), []string{"dns:localhost"})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(issued.DER)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DB.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		text  []byte
		stays bool
	}{{append(bytes.Clone(text), keyfile.EncodeCertificates(leaf)...), true}, {text, false}} {
		if err := os.WriteFile(dir.TLS(), tc.text, 0o600); err != nil {
			t.Fatal(err)
		}
		done, err := setup.RescueExpired(t.Context(), setup.ExpiredOptions{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir.TLS()); (err == nil) != tc.stays || done.TLSRemoved == tc.stays {
			t.Errorf("it stays: %v, wanted %t; it says that it was removed: %t", err, tc.stays, done.TLSRemoved)
		}
	}
}

// TestAgentsJoinAgain: only where the last root had ended before there was another.
func TestAgentsJoinAgain(t *testing.T) {
	now := time.Now()
	root := func(begins, ends time.Duration) *x509.Certificate {
		return &x509.Certificate{NotBefore: now.Add(begins), NotAfter: now.Add(ends)}
	}
	const day = 24 * time.Hour
	for what, tc := range map[string]struct {
		roots []*x509.Certificate
		good  int
		again bool
	}{
		"one":              {[]*x509.Certificate{root(-day, day)}, 1, false},
		"rotated":          {[]*x509.Certificate{root(-20*day, -day), root(-9*day, 9*day)}, 1, false},
		"rotated twice":    {[]*x509.Certificate{root(-9*day, 9*day), root(-20*day, -day), root(-3*day, 3*day)}, 2, false},
		"brought back":     {[]*x509.Certificate{root(-20*day, -day), root(-time.Hour, 9*day)}, 1, true},
		"at once":          {[]*x509.Certificate{root(-20*day, 0), root(-5*time.Minute, 9*day)}, 1, true},
		"rotated and then": {[]*x509.Certificate{root(-20*day, -12*day), root(-15*day, -day), root(-time.Hour, day)}, 1, true},
	} {
		if good, again := setup.HeardOf(tc.roots, now); len(good) != tc.good || again != tc.again {
			t.Errorf("%s: %d good, %t", what, len(good), again)
		}
	}
}

// TestAgentsJoinAgainOnce: the run that brings the roots back says that hosts join again, where it was cut the next one too, and none after.
func TestAgentsJoinAgainOnce(t *testing.T) {
	n := newNamed(t)
	n.options.Servers, n.options.ServerDir = []string{"db1"}, filepath.Join(t.TempDir(), "db")
	inTheWay := filepath.Join(n.options.ServerDir, "roots.crt")
	if err := os.MkdirAll(filepath.Join(inTheWay, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, made, err := n.bring(); err == nil || made == 0 {
		t.Fatalf("nothing was in the way: %d things were made", made)
	}
	if err := os.RemoveAll(inTheWay); err != nil {
		t.Fatal(err)
	}
	for _, again := range []bool{true, false, false} {
		done, made, err := n.bring()
		if err != nil || done.AgentsJoin != again || again != slices.Contains(done.Files, n.dir.IdentityRoot()) {
			t.Errorf("hosts join again, wanted %t: %d things were made, %+v, %v", again, made, done, err)
		}
	}
}
