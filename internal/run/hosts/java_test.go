package hosts_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
	"chancery/internal/run/consumer"
)

const javaStores = "/etc/chancery/placed/java/"

// javaClasses compiles the Java programs once.
var javaClasses = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(shared.bin, "java")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	return dir, consumer.CompileJava(context.Background(), dir)
})

// javaHost is a host with Java's stores.
type javaHost struct {
	*host
	classes     string
	keys, trust consumer.JavaStore
}

func (w *world) javaHost(t *testing.T, name, pool, format string, parameters ...string) *javaHost {
	t.Helper()
	classes, err := javaClasses()
	must(t, err)
	h := w.newHost(t, name, machine{pool: pool, directory: true})
	ending := map[string]string{"pkcs12": ".p12", "jks": ".jks"}[format]
	password := h.path(javaStores + "password")
	h.join(order("java", append([]string{"format=" + format}, parameters...)...))
	return &javaHost{host: h, classes: classes, keys: consumer.JavaStore{Path: h.path(javaStores + "keystore" + ending), PasswordFile: password},
		trust: consumer.JavaStore{Path: h.path(javaStores + "truststore" + ending), PasswordFile: password}}
}

// asks runs a Java client, and returns what it prints and whether it succeeded.
func (j *javaHost) asks(url string, trust consumer.JavaStore, keys *consumer.JavaStore) (string, bool) {
	j.t.Helper()
	out, err := j.command(consumer.JavaClient(j.classes, url, trust, keys)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err == nil
}

// keytool lists a store by Java's own tool.
func (j *javaHost) keytool(s consumer.JavaStore) string {
	j.t.Helper()
	return j.run(consumer.Keytool("-list", "-v", "-keystore", s.Path, "-storepass:file", s.PasswordFile)...)
}

// TestJava, scenario S17: a Java server and Java clients that have their stores from the recipe believe each other and
// nobody else, and a renewal is served by the same process.
func TestJava(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"pkcs12", "jks"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			w := theWorld(t)
			pool, other := w.pool(t), w.pool(t)
			free, err := consumer.FreeAddress()
			must(t, err)
			_, port, _ := strings.Cut(free, ":")
			c := w.javaHost(t, "client", pool.Name, format, "profile=client")
			rogue := w.javaHost(t, "rogue", other.Name, format, "profile=client", "alias=me")
			s := w.javaHost(t, "server", pool.Name, format, "stores=both")
			address := s.at + ":" + port
			orders := []client.PlacementOrder{order("java", "format="+format, "address="+address)}
			_, err = w.admin.ChangeHost(t.Context(), s.name, client.ChangeHostRequest{Placements: &orders})
			must(t, err)
			c.converge()
			rogue.converge()
			s.converge()
			if seen := s.observed("java"); seen.State != client.PlacementDown {
				t.Errorf("before it runs: %+v", seen)
			}
			run := s.start(consumer.JavaServer{Classes: s.classes, Host: s.at, Port: port, Keys: s.keys, Trust: s.trust}.Program())
			s.converge()
			first := s.observed("java")
			if first.State != client.PlacementServed || first.Served == "" {
				t.Fatalf("with a server that runs: %+v", first)
			}
			listed := s.keytool(s.keys)
			for _, want := range []string{"Alias name: tls", "PrivateKeyEntry", "Certificate chain length: 2"} {
				if !strings.Contains(listed, want) {
					t.Errorf("keytool does not show %q:\n%s", want, listed)
				}
			}
			if listed := c.keytool(c.trust); strings.Count(listed, "trustedCertEntry") != 1 || !strings.Contains(listed, "CN="+pool.Name) {
				t.Errorf("the trust store: %s", listed)
			}
			url := "https://" + address + "/"
			said, ok := c.asks(url, c.trust, &c.keys)
			if !ok || !strings.HasSuffix(said, " hello") {
				t.Errorf("a client of the pool: %s", said)
			}
			for what, try := range map[string]struct {
				trust consumer.JavaStore
				keys  *consumer.JavaStore
				says  string
			}{
				"without a certificate":         {c.trust, nil, ""}, // whichever comes first, the alert or the end of the connection
				"of another pool":               {c.trust, &rogue.keys, ""},
				"who trusts another pool":       {rogue.trust, &c.keys, "PKIX path building failed"},
				"who trusts Java's public CAs":  {consumer.JavaStore{Path: "/etc/ssl/certs/java/cacerts", PasswordFile: c.changeit()}, &c.keys, "PKIX path building failed"},
				"with the server's certificate": {c.trust, &s.keys, ""},
			} {
				if format == "jks" && !strings.Contains(what, "another pool") {
					continue // what Java makes of a path does not depend on the kind of its stores
				}
				if said, ok := c.asks(url, try.trust, try.keys); ok || !strings.Contains(said, try.says) {
					t.Errorf("a client %s: %t %s", what, ok, said)
				}
			}

			before := [2]uint64{s.inode(s.keys.Path), s.inode(s.trust.Path)}
			s.converge()
			if after := [2]uint64{s.inode(s.keys.Path), s.inode(s.trust.Path)}; after != before {
				t.Error("stores that hold the same were written anew")
			}
			w.chancery(t, "host", "set", s.name, "--dns", "shop-"+s.name)
			s.converge()
			second := s.observed("java")
			if second.State != client.PlacementServed || second.Serial == first.Serial || second.Served != second.Serial {
				t.Errorf("after the renewal: %+v", second)
			}
			if again, ok := c.asks(url, c.trust, &c.keys); !ok || again == said {
				t.Errorf("after the renewal a client gets %q, and before %q", again, said)
			}
			if s.inode(s.trust.Path) != before[1] {
				t.Error("the renewal of the key rewrote the trust store")
			}
			select {
			case <-run.Done():
				t.Errorf("the server ended: %s", run.Output())
			default:
			}
		})
	}
}

// changeit is a file with the password that Java's own trust store has.
func (j *javaHost) changeit() string {
	j.t.Helper()
	const file = "/etc/chancery/changeit"
	j.write(file, "changeit\n")
	return j.path(file)
}

// TestJavaTrustStoreWithPublicCAs merges the pool's root into a copy of Java's own trust store, takes it through a rotation, and
// names a wrong password.
func TestJavaTrustStoreWithPublicCAs(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"jks", "pkcs12"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			w := theWorld(t)
			pool := w.pool(t)
			const cacerts = "/etc/ssl/shop/cacerts"
			j := w.javaHost(t, "shop", pool.Name, format, "stores=truststore", "merge=true", "truststore="+cacerts, "truststore_password_file=/etc/ssl/shop/password")
			must(t, os.MkdirAll(filepath.Dir(j.path(cacerts)), 0o755))
			j.run(consumer.Keytool("-importkeystore", "-noprompt", "-srckeystore", "/etc/ssl/certs/java/cacerts", "-srcstorepass:file", j.changeit(),
				"-destkeystore", j.path(cacerts), "-deststoretype", format, "-deststorepass:file", j.changeit())...)
			store := consumer.JavaStore{Path: j.path(cacerts), PasswordFile: j.path("/etc/ssl/shop/password")}
			found := j.read(cacerts)
			j.refuses(cacerts) // without a password file one is made, which cannot be that of a store that is there
			j.write("/etc/ssl/shop/password", "wrong-one\n")
			j.refuses(cacerts)
			if seen := j.observed("java"); seen.State != client.PlacementFailed || !strings.Contains(seen.Message, "password") || !strings.Contains(seen.Message, "/etc/ssl/shop/password") {
				t.Errorf("with a wrong password: %+v", seen)
			}
			if string(j.read(cacerts)) != string(found) {
				t.Fatal("with a wrong password the store was changed")
			}
			j.write("/etc/ssl/shop/password", "changeit\n")
			count := func() int { return strings.Count(j.keytool(store), "trustedCertEntry") }
			public := count()
			if public < 100 {
				t.Fatalf("the store has %d public CAs, and this test is about a hundred and more", public)
			}
			j.converge()
			if n := count(); n != public+1 {
				t.Errorf("of %d certificates there are %d", public, n)
			}
			_, port, _ := strings.Cut(j.opensslServer(w.peerOf(t, pool, "server", "localhost")), ":")
			url := fmt.Sprintf("https://localhost:%s/", port)
			if said, ok := j.asks(url, store, nil); !ok {
				t.Errorf("Java does not believe a server of the pool: %s", said)
			}
			before := j.inode(cacerts)
			j.converge()
			if j.inode(cacerts) != before {
				t.Error("nothing is new, and the store was written")
			}
			foreign, err := root.New(root.Options{Subject: cert.CommonName("foreign root")}, ecKey(t), time.Now())
			must(t, err)
			added, err := w.admin.AddTrust(t.Context(), pool.Name, client.AddTrustRequest{PEM: string(keyfile.EncodeCertificates(foreign.Certificate))})
			must(t, err)
			j.converge()
			if n := count(); n != public+2 {
				t.Errorf("with two roots there are %d certificates, of %d", n, public)
			}
			must(t, w.admin.DropTrust(t.Context(), pool.Name, added[0].ID, client.DropTrustRequest{Because: "it was tried out"}))
			j.converge()
			if listed := j.keytool(store); strings.Count(listed, "trustedCertEntry") != public+1 || strings.Contains(listed, cert.FormatSerial(foreign.Certificate.SerialNumber)) {
				t.Errorf("after the rotation there are %d certificates, of %d", strings.Count(listed, "trustedCertEntry"), public)
			}
		})
	}
}
