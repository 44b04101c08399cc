package keyfile

import (
	"bytes"
	"crypto/x509"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/fault"
)

// publicCAs is the trust store of the machine's Java.
const publicCAs = "/etc/ssl/certs/java/cacerts"

// TestRetrust adds certificates to a store of keytool's with all public CAs and a key, and takes them out again. Java reads
// what comes of it, and opens the key.
func TestRetrust(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"JKS", "PKCS12"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			password := []byte("changeit")
			file := filepath.Join(t.TempDir(), "store")
			run(t, "keytool", "-importkeystore", "-noprompt", "-srckeystore", publicCAs, "-srcstorepass", "changeit", "-destkeystore", file,
				"-deststoretype", kind, "-deststorepass", "changeit")
			run(t, "keytool", "-genkeypair", "-alias", "mine", "-keyalg", "EC", "-dname", "CN=mine", "-keystore", file, "-storepass", "changeit")
			data := read(t, file)
			before, err := TrustedIn(data, password)
			if err != nil || len(before) < 100 {
				t.Fatalf("the store of %s holds %d trusted certificates (%v), and this test is about a hundred and more", publicCAs, len(before), err)
			}
			a, b := newPath(t, ECDSAP256), newPath(t, ECDSAP256)
			more := []Entry{
				{Alias: "pool", Chain: []*x509.Certificate{a.root}}, {Alias: before[0].Alias, Chain: []*x509.Certificate{b.root}},
			}
			with, err := Retrust(data, password, func(Trusted) bool { return false }, more)
			if err != nil {
				t.Fatal(err)
			}
			after, err := TrustedIn(with, password)
			if err != nil || len(after) != len(before)+2 {
				t.Fatalf("%d trusted certificates are %d with two more (%v)", len(before), len(after), err)
			}
			for i, one := range before {
				if one.Alias != after[i].Alias || !bytes.Equal(one.DER, after[i].DER) {
					t.Errorf("%s is not as it was", one.Alias)
				}
			}
			if name := after[len(after)-1].Alias; name != before[0].Alias+"-2" {
				t.Errorf("an alias that was taken became %q", name)
			}
			put := write(t, "with", with)
			listed := string(run(t, "keytool", "-list", "-keystore", put, "-storepass", "changeit"))
			if n := strings.Count(listed, "trustedCertEntry"); n != len(after) || strings.Count(listed, "PrivateKeyEntry") != 1 {
				t.Errorf("keytool finds %d trusted entries of %d, and keys: %d", n, len(after), strings.Count(listed, "PrivateKeyEntry"))
			}
			run(t, "keytool", "-certreq", "-alias", "mine", "-keystore", put, "-storepass", "changeit") // signs with the key
			ours := func(c Trusted) bool { return bytes.Equal(c.DER, a.root.Raw) || bytes.Equal(c.DER, b.root.Raw) }
			again, err := Retrust(with, password, ours, nil)
			if err != nil {
				t.Fatal(err)
			}
			if kind == "JKS" && !bytes.Equal(again, data) {
				t.Error("what is left is not what was there")
			}
			if left, err := TrustedIn(again, password); err != nil || len(left) != len(before) {
				t.Errorf("%d trusted certificates are left of %d (%v)", len(left), len(before), err)
			}
			for what, call := range map[string]func([]byte) error{
				"list":   func(p []byte) error { _, err := TrustedIn(data, p); return err },
				"change": func(p []byte) error { _, err := Retrust(data, p, ours, more); return err },
			} {
				if err := call([]byte("wrong")); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "password") {
					t.Errorf("%s with a wrong password: %v", what, err)
				}
			}
		})
	}
}

// TestRetrustKeepsWhatItDoesNotRead: a certificate that Go refuses (here: none at all) stays where it is.
func TestRetrustKeepsWhatItDoesNotRead(t *testing.T) {
	t.Parallel()
	p := newPath(t, ECDSAP256)
	odd := *p.root
	odd.Raw = []byte("no certificate")
	for _, kind := range []string{"JKS", "PKCS12"} {
		entries := []Entry{{Alias: "odd", Chain: []*x509.Certificate{&odd}}}
		data, err := EncodeJKS(entries, []byte("secret"), nil)
		if kind == "PKCS12" {
			data, err = EncodePKCS12(entries, []byte("secret"))
		}
		if err != nil {
			t.Fatal(err)
		}
		if data, err = Retrust(data, []byte("secret"), func(Trusted) bool { return false }, []Entry{{Alias: "ca", Chain: []*x509.Certificate{p.ca}}}); err != nil {
			t.Fatal(err)
		}
		got, err := TrustedIn(data, []byte("secret"))
		if err != nil || len(got) != 2 || string(got[0].DER) != "no certificate" || !bytes.Equal(got[1].DER, p.ca.Raw) {
			t.Errorf("%s: %v (%v)", kind, got, err)
		}
		if _, err := Retrust(data, []byte("secret"), func(Trusted) bool { return false }, []Entry{{Alias: "key", Key: p.key, Chain: p.chain()}}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: a key was added: %v", kind, err)
		}
	}
}
