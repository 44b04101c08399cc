package keyfile

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
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

// trustManager says how many issuers Java's own trust manager trusts, of each store with each password; "-" is none.
const trustManager = `
import java.io.*; import java.security.*; import javax.net.ssl.*;
public class Trusted {
	public static void main(String[] args) throws Exception {
		for (int i = 0; i < args.length; i += 2) {
			int n = 0;
			KeyStore store = KeyStore.getInstance("PKCS12");
			try (InputStream in = new FileInputStream(args[i])) {
				store.load(in, args[i + 1].equals("-") ? null : args[i + 1].toCharArray());
				TrustManagerFactory made = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
				made.init(store);
				n = ((X509TrustManager) made.getTrustManagers()[0]).getAcceptedIssuers().length;
			} catch (IOException refused) {
				n = -1;
			}
			System.out.println(n);
		}
	}
}`

// TestRetrustKeepsTheForm: what Java reads of a store, without a password, with the one of its key and with another, is what it
// read before and what was added; whether it has a MAC and whether its certificates are encrypted.
func TestRetrustKeepsTheForm(t *testing.T) {
	t.Parallel()
	source, p, own := write(t, "Trusted.java", []byte(trustManager)), newPath(t, ECDSAP256), newPath(t, ECDSAP256)
	pem := write(t, "own.pem", EncodeCertificates(own.root))
	const noMAC, noEncryption = "-J-Dkeystore.pkcs12.macAlgorithm=NONE", "-J-Dkeystore.pkcs12.certProtectionAlgorithm=NONE"
	cases := []struct {
		name     string
		options  []string
		password string         // that the store is changed with
		trusts   map[string]int // besides what is added: by Java's password; -1 is a refusal, and 0 nothing whatever is in it
	}{
		{"neither", []string{noMAC, noEncryption}, "totally-wrong", map[string]int{"-": 1, "changeit": 1, "another": 1}},
		{"neither, and a key", []string{noMAC, noEncryption}, "changeit", map[string]int{"-": 2, "changeit": 2}},
		{"MAC", []string{noEncryption}, "changeit", map[string]int{"-": 1, "changeit": 1, "another": -1}},
		{"encryption", []string{noMAC}, "changeit", map[string]int{"-": 0, "changeit": 1, "another": -1}},
	}
	files := make([]string, len(cases))
	keytool := func(i int, words ...string) string {
		return string(run(t, "keytool", slices.Concat(words, []string{"-keystore", files[i], "-storepass", "changeit"}, cases[i].options)...))
	}
	judge := func(when string, more int) {
		t.Helper()
		words := []string{source}
		var passwords []string
		for i, c := range cases {
			for _, password := range slices.Sorted(maps.Keys(c.trusts)) {
				words, passwords = append(words, files[i], password), append(passwords, password)
			}
		}
		counts := strings.Fields(string(run(t, "java", words...)))
		if len(counts) != len(passwords) || len(counts) < 10 {
			t.Fatalf("%s: Java looked at %d stores: %v", when, len(counts), counts)
		}
		for _, c := range cases {
			for _, password := range slices.Sorted(maps.Keys(c.trusts)) {
				want := c.trusts[password]
				if want > 0 {
					want += more
				}
				if counts[0] != fmt.Sprint(want) {
					t.Errorf("%s: %s: with password %q Java trusts %s, not %d", when, c.name, password, counts[0], want)
				}
				counts = counts[1:]
			}
		}
	}
	change := func(drop func(Trusted) bool, more ...Entry) {
		t.Helper()
		for i, c := range cases {
			data, err := Retrust(read(t, files[i]), []byte(c.password), drop, more)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			files[i] = write(t, "changed.p12", data)
		}
	}
	for i, c := range cases {
		files[i] = filepath.Join(t.TempDir(), "store.p12")
		keytool(i, "-importcert", "-noprompt", "-alias", "own", "-file", pem, "-storetype", "PKCS12")
		if strings.HasSuffix(c.name, "key") {
			keytool(i, "-genkeypair", "-alias", "mine", "-keyalg", "EC", "-dname", "CN=mine")
		}
	}
	judge("as keytool made it", 0)
	change(func(Trusted) bool { return false }, Entry{Alias: "pool", Chain: []*x509.Certificate{p.root}})
	judge("with one more", 1)
	keytool(1, "-certreq", "-alias", "mine") // signs with the key
	if _, err := Retrust(read(t, files[0]), nil, func(Trusted) bool { return false }, nil); err != nil {
		t.Errorf("a store with neither, without a password: %v", err)
	}
	if _, err := Retrust(read(t, files[3]), []byte("another"), func(Trusted) bool { return false }, nil); err == nil {
		t.Error("a wrong password opened what is encrypted")
	}
	change(func(t Trusted) bool { return bytes.Equal(t.DER, p.root.Raw) })
	judge("without it again", 0)
	if listed := keytool(0, "-list"); strings.Count(listed, "trustedCertEntry") != 1 {
		t.Errorf("keytool lists %s", listed)
	}
}
