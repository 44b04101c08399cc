package place

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/keyfile"
)

// nssScene is a host with an NSS database and what it is made by.
type nssScene struct {
	scene
	placer  *Placer
	sources Sources
	ran     int // how many tools ran
	dir     string
}

func newNSS(t *testing.T, password string) *nssScene {
	t.Helper()
	n := &nssScene{scene: newScene(t)}
	n.placer, n.dir = n.scene.placer(t), filepath.Join(n.root, "srv/nssdb")
	n.sources = Sources{
		Password: func(string) ([]byte, error) { return []byte(password + "\n"), nil },
		Run: func(args ...string) ([]byte, error) {
			n.ran++
			if strings.Contains(strings.Join(args, " "), password) {
				t.Errorf("the password is an argument: %v", args)
			}
			return probe.System{}.Run(context.Background(), probe.Command{Args: args})
		},
		Scratch: filepath.Join(t.TempDir(), "scratch", "nss"),
	}
	n.put(t, "/srv/pin", []byte(password+"\n"), 0o600)
	return n
}

func (n *nssScene) set(t *testing.T, m *probe.Material, nickname string) Set {
	t.Helper()
	plan := planned("", recipe.PlannedFile{Format: "nss", Content: []string{"key", "path", "anchors", "pinned"}, Alias: nickname, PasswordFile: "/srv/pin"})
	plan.Files[0].Path, plan.Files[0].Mode = "/srv/nssdb", 0o640
	set, err := Render(plan, map[string]*probe.Material{"main": m}, n.sources)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// certutil runs certutil upon the database as its consumer would find it.
func (n *nssScene) certutil(t *testing.T, words ...string) string {
	t.Helper()
	return program(t, "certutil", append(words, "-d", "sql:"+n.dir, "-f", filepath.Join(n.root, "srv/pin"))...)
}

// TestNSSDatabase takes a database that was not there through a renewal and a rotation, with NSS's own tools to judge it.
func TestNSSDatabase(t *testing.T) {
	o, next := newOffice(t, keyfile.ECDSAP256), newOffice(t, keyfile.ECDSAP256)
	peer, _ := o.certify(t, "peer", keyfile.RSA, o.issuer, o.issuerKey)
	n := newNSS(t, "a secret of the store")
	o.material.Pinned = []*x509.Certificate{peer, o.leaf} // a peer, and the host itself
	mustPlace(t, n.placer, n.set(t, o.material, "server"))
	n.certutil(t, "-V", "-u", "V", "-n", "server", "-e") // of a TLS server, with signatures
	if keys := n.certutil(t, "-K"); strings.Count(keys, "server") != 1 || strings.Count(keys, "<") != 1 {
		t.Errorf("keys: %s", keys)
	}
	list := n.certutil(t, "-L")
	for _, want := range []string{fileStem(o.root) + " +CT,,", fileStem(o.issuer) + " +,,", fileStem(peer) + " +P,,", "server +u,u,u"} {
		name, flags, _ := strings.Cut(want, " +")
		found := false
		for line := range strings.Lines(list) {
			fields := strings.Fields(line)
			found = found || len(fields) > 1 && fields[0] == name && sameFlags(fields[1], flags)
		}
		if !found {
			t.Errorf("the database does not have %s with %s:\n%s", name, flags, list)
		}
	}
	if text := string(n.get(t, "/srv/nssdb/pkcs11.txt")); strings.Contains(text, "scratch") || !strings.Contains(text, "sql:/srv/nssdb") {
		t.Errorf("pkcs11.txt: %s", text)
	}
	for _, name := range []string{"cert9.db", "key4.db", "pkcs11.txt"} {
		if st, err := os.Stat(filepath.Join(n.dir, name)); err != nil || st.Mode() != 0o640 {
			t.Errorf("%s: %v %v", name, st.Mode(), err)
		}
	}
	n.ran = 0
	if out := mustPlace(t, n.placer, n.set(t, o.material, "server")); len(out.Changed) > 0 || n.ran > 0 {
		t.Errorf("nothing is new, and %d tools ran: %+v", n.ran, out)
	}

	// Its operator adds a CA and a key of his own. They stay through all that follows.
	program(t, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", n.dir+"/k", "-out", n.dir+"/c", "-subj", "/CN=hand made", "-days", "9")
	program(t, "openssl", "pkcs12", "-export", "-inkey", n.dir+"/k", "-in", n.dir+"/c", "-name", "by hand", "-passout", "pass:x", "-out", n.dir+"/p")
	program(t, "pk12util", "-i", n.dir+"/p", "-W", "x", "-d", "sql:"+n.dir, "-k", filepath.Join(n.root, "srv/pin"))
	second := *next.material
	second.Anchors = []*x509.Certificate{o.root, next.root}
	mustPlace(t, n.placer, n.set(t, &second, "server"))
	n.certutil(t, "-V", "-u", "V", "-n", "server", "-e")
	if !strings.Contains(strings.ReplaceAll(n.certutil(t, "-L", "-n", "server", "-a"), "\r", ""), strings.TrimSpace(string(keyfile.EncodeCertificates(next.leaf)))) {
		t.Error("the renewed certificate is not in the database")
	}
	last := *next.material
	mustPlace(t, n.placer, n.set(t, &last, "server"))
	list, keys := n.certutil(t, "-L"), n.certutil(t, "-K")
	if strings.Contains(list, fileStem(o.root)) || strings.Contains(list, fileStem(peer)) || !strings.Contains(list, fileStem(next.root)) {
		t.Errorf("the database holds\n%s", list)
	}
	if !strings.Contains(list, "by hand") || !strings.Contains(keys, "by hand") || strings.Count(keys, "<") != 2 {
		t.Errorf("what was made by hand is gone: %s\n%s", list, keys)
	}
	if left, err := os.ReadDir(filepath.Dir(n.sources.Scratch)); err != nil || len(left) > 0 {
		t.Errorf("the scratch directory holds %v (%v)", left, err)
	}
}

// TestNSSDatabaseThatWasThere: a database of others is not taken over; it gets ours, and the old one back where the consumer
// refuses the new.
func TestNSSDatabaseThatWasThere(t *testing.T) {
	o, next := newOffice(t, keyfile.ECDSAP256), newOffice(t, keyfile.ECDSAP256)
	n := newNSS(t, "a secret of the store")
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	n.certutil(t, "-N")
	n.put(t, "/srv/root.pem", keyfile.EncodeCertificates(o.root), 0o644)
	n.certutil(t, "-A", "-n", "the root, by hand", "-t", ",,", "-a", "-i", filepath.Join(n.root, "srv/root.pem"))
	out := mustPlace(t, n.placer, n.set(t, o.material, "server"))
	if len(out.Kept) == 0 {
		t.Errorf("no copy is kept: %+v", out)
	}
	n.certutil(t, "-V", "-u", "V", "-n", "server", "-e")
	old := n.set(t, o.material, "server")
	was := [][]byte{n.get(t, "/srv/nssdb/cert9.db"), n.get(t, "/srv/nssdb/key4.db")}
	no := &consumer{probe: func() error { return errors.New("no") }}
	if out, err := n.placer.Place(t.Context(), n.set(t, next.material, "server"), &old, no); err == nil || !out.RolledBack {
		t.Fatalf("%+v %v", out, err)
	}
	if !bytes.Equal(was[0], n.get(t, "/srv/nssdb/cert9.db")) || !bytes.Equal(was[1], n.get(t, "/srv/nssdb/key4.db")) {
		t.Fatal("the old database did not come back")
	}
	mustPlace(t, n.placer, n.set(t, next.material, "server"))
	if list := n.certutil(t, "-L"); strings.Contains(list, "the root, by hand") || strings.Count(list, "server") != 1 {
		t.Errorf("the database holds\n%s", list)
	}
}

// TestNSSDatabaseRefuses names what stands in the way, and changes nothing.
func TestNSSDatabaseRefuses(t *testing.T) {
	o := newOffice(t, keyfile.ECDSAP256)
	for _, c := range []struct {
		what, says string
		prepare    func(n *nssScene)
	}{
		{"a wrong password", "the password is wrong", func(n *nssScene) {
			program(t, "certutil", "-N", "-d", "sql:"+n.dir, "-f", filepath.Join(n.root, "srv/other"))
		}},
		{"a nickname of others", "not ours", func(n *nssScene) {
			n.certutil(t, "-N")
			n.certutil(t, "-A", "-n", "server", "-t", ",,", "-a", "-i", filepath.Join(n.root, "srv/root.pem"))
		}},
		{"a program that writes", "cert9.db-journal is there", func(n *nssScene) {
			n.certutil(t, "-N")
			n.put(t, "/srv/nssdb/cert9.db-journal", []byte("hot"), 0o600)
		}},
		{"half a database", "key4.db is there without cert9.db", func(n *nssScene) { n.put(t, "/srv/nssdb/key4.db", []byte("x"), 0o600) }},
		{"no database", "cert9.db", func(n *nssScene) { n.put(t, "/srv/nssdb/cert9.db", []byte("hello"), 0o600) }},
	} {
		n := newNSS(t, "a secret of the store")
		if err := os.MkdirAll(n.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		n.put(t, "/srv/other", []byte("another secret\n"), 0o600)
		n.put(t, "/srv/root.pem", keyfile.EncodeCertificates(o.root), 0o644)
		c.prepare(n)
		before, err := os.ReadDir(n.dir)
		if err != nil {
			t.Fatal(err)
		}
		out, err := n.placer.Place(t.Context(), n.set(t, o.material, "server"), nil, nil)
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "/srv/nssdb") || len(out.Changed) > 0 {
			t.Errorf("%s: %+v %v", c.what, out, err)
		}
		if after, err := os.ReadDir(n.dir); err != nil || len(after) != len(before) {
			t.Errorf("%s: the directory holds %v now (%v)", c.what, after, err)
		}
		if _, err := os.Stat(n.sources.Scratch); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the scratch directory is left: %v", c.what, err)
		}
	}
}

// TestNSSNamesakes: of two certificates of one subject, the one that is ours goes, and the other stays with its nickname and
// its flags.
func TestNSSNamesakes(t *testing.T) {
	o, other := newOffice(t, keyfile.ECDSAP256), newOffice(t, keyfile.ECDSAP256) // roots of one subject
	n := newNSS(t, "a secret of the store")
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	n.certutil(t, "-N")
	n.put(t, "/srv/root.pem", keyfile.EncodeCertificates(other.root), 0o644)
	n.certutil(t, "-A", "-n", "other root", "-t", "C,,", "-a", "-i", filepath.Join(n.root, "srv/root.pem"))
	mustPlace(t, n.placer, n.set(t, o.material, "server"))
	later := *o.material
	later.Anchors = []*x509.Certificate{other.issuer} // any other CA
	mustPlace(t, n.placer, n.set(t, &later, "server"))
	has, err := readNSS(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range has {
		if bytes.Equal(e.der, o.root.Raw) {
			t.Error("the root that was ours is still there")
		}
	}
	for line := range strings.Lines(n.certutil(t, "-L")) {
		if strings.Contains(line, "other root") && strings.Contains(line, "C,,") {
			return
		}
	}
	t.Errorf("the other root is not as it was:\n%s", n.certutil(t, "-L"))
}
