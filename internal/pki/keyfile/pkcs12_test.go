package keyfile

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gopkcs12 "software.sslmate.com/src/go-pkcs12"

	"chancery/internal/fault"
)

const storePassword = "chängeit"

func encodeStore(t *testing.T, entries []Entry, password string) []byte {
	t.Helper()
	data, err := EncodePKCS12(entries, []byte(password))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// What we write, OpenSSL, certtool, NSS, Java and another Go library read: keys, certificates and friendlyNames.
func TestPKCS12IsReadByOthers(t *testing.T) {
	t.Parallel()
	p, second := newPath(t, RSA2048), newPath(t, ECDSAP256)
	entries := []Entry{
		{Alias: "host1", Key: p.key, Chain: p.chain(), CANames: []string{"Test CA", "Test Root"}},
		{Alias: "zweiter", Key: second.key, Chain: second.chain()[:2]},
	}
	file := write(t, "s.p12", encodeStore(t, entries, storePassword))

	dump := string(run(t, "openssl", "pkcs12", "-in", file, "-passin", "pass:"+storePassword, "-nodes", "-info"))
	for _, want := range []string{"friendlyName: host1", "friendlyName: zweiter", "friendlyName: Test CA", "friendlyName: Test Root"} {
		if !strings.Contains(dump, want) {
			t.Errorf("openssl does not show %q", want)
		}
	}
	if n := strings.Count(dump, "BEGIN CERTIFICATE"); n != 5 {
		t.Errorf("openssl shows %d certificates", n)
	}
	run(t, "certtool", "--p12-info", "--inder", "--infile", file, "--password", storePassword)
	db := newNSS(t)
	run(t, "pk12util", "-d", db, "-K", "", "-W", storePassword, "-i", file)
	listed := string(run(t, "certutil", "-K", "-d", db))
	if !strings.Contains(listed, "host1") || !strings.Contains(listed, "zweiter") {
		t.Errorf("certutil -K: %s", listed)
	}
	ascii := write(t, "a.p12", encodeStore(t, entries, "changeit"))
	listed = string(run(t, "keytool", "-list", "-v", "-keystore", ascii, "-storepass", "changeit"))
	if !strings.Contains(listed, "Alias name: host1") || !strings.Contains(listed, "Certificate chain length: 3") ||
		!strings.Contains(listed, "Alias name: zweiter") || !strings.Contains(listed, "contains 2 entries") {
		t.Errorf("keytool: %s", listed)
	}
	key, leaf, chain, err := gopkcs12.DecodeChain(encodeStore(t, entries[:1], storePassword), storePassword)
	if err != nil || !leaf.Equal(p.leaf) || len(chain) != 2 || !samePublic(p.key.Public(), key.(crypto.Signer).Public()) {
		t.Errorf("go-pkcs12: %v", err)
	}
}

func TestPKCS12TrustStoreIsReadByJava(t *testing.T) {
	t.Parallel()
	p := newPath(t, ECDSAP256)
	entries := []Entry{{Alias: "root", Chain: []*x509.Certificate{p.root}}, {Alias: "ca", Chain: []*x509.Certificate{p.ca}}}
	data := encodeStore(t, entries, "changeit")
	listed := string(run(t, "keytool", "-list", "-keystore", write(t, "t.p12", data), "-storepass", "changeit"))
	if strings.Count(listed, "trustedCertEntry") != 2 || !strings.Contains(listed, "root, ") {
		t.Errorf("keytool: %s", listed)
	}
	got, err := DecodePKCS12(data, []byte("changeit"))
	if err != nil || !SameEntries(got, entries) {
		t.Errorf("read back: %v %v", got, err)
	}
	certs, err := gopkcs12.DecodeTrustStore(data, "changeit")
	if err != nil || len(certs) != 2 {
		t.Errorf("go-pkcs12: %v", err)
	}
}

// Stores made by others, in the encryptions of twenty years, are read.
func TestForeignPKCS12(t *testing.T) {
	t.Parallel()
	p := newPath(t, RSA2048)
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	key, chain, leaf := write(t, "k", encode(t, EncodePKCS8, p.key)), write(t, "c", EncodeCertificates(p.ca, p.root)),
		write(t, "l", EncodeCertificates(p.leaf))
	export := func(out string, args ...string) {
		run(t, "openssl", append([]string{"pkcs12", "-export", "-inkey", key, "-in", leaf, "-certfile", chain, "-name", "host1",
			"-passout", "pass:" + storePassword, "-out", file(out)}, args...)...)
	}
	export("openssl3.p12")
	export("openssl-legacy-rc2.p12", "-legacy")
	export("openssl-descert.p12", "-legacy", "-descert")
	export("openssl-2des.p12", "-legacy", "-keypbe", "PBE-SHA1-2DES", "-certpbe", "PBE-SHA1-RC2-128")
	export("openssl-plain.p12", "-keypbe", "NONE", "-certpbe", "NONE")
	export("openssl-nomac.p12", "-nomac")
	export("openssl-sha512.p12", "-macalg", "sha512", "-iter", "5000")
	run(t, "certtool", "--to-p12", "--load-privkey", key, "--load-certificate",
		write(t, "all", EncodeCertificates(p.chain()...)), "--p12-name", "host1", "--password", storePassword, "--outder", "--outfile", file("certtool.p12"))
	db := newNSS(t)
	run(t, "pk12util", "-d", db, "-K", "", "-W", storePassword, "-i", file("openssl3.p12"))
	for out, args := range map[string][]string{"nss.p12": nil, "nss-des.p12": {"-c", "DES-EDE3-CBC", "-C", "NONE"}} {
		run(t, "pk12util", append([]string{"-d", db, "-K", "", "-W", storePassword, "-n", "host1", "-o", file(out)}, args...)...)
	}
	for out, encoder := range map[string]*gopkcs12.Encoder{"pbmac1.p12": gopkcs12.Modern2026, "go-rc2.p12": gopkcs12.LegacyRC2} {
		data, err := encoder.Encode(p.key, p.leaf, []*x509.Certificate{p.ca, p.root}, storePassword)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file(out), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 12 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		data := read(t, file(f.Name()))
		got, err := DecodePKCS12(data, []byte(storePassword))
		if err != nil || len(got) != 1 || !samePrivate(got[0].Key, p.key) || !sameCertificates(got[0].Chain, p.chain()) {
			t.Errorf("%s: %d entries, %v", f.Name(), len(got), err)
			continue
		}
		if got[0].Alias != "host1" && !slices.Contains([]string{"pbmac1.p12", "go-rc2.p12"}, f.Name()) {
			t.Errorf("%s: alias %q", f.Name(), got[0].Alias)
		}
		// Stores without a MAC tell a wrong password by other signs, and those of certtool and NSS derive for long.
		if slices.Contains([]string{"openssl-plain.p12", "openssl-nomac.p12", "certtool.p12", "nss.p12"}, f.Name()) {
			continue
		}
		for _, wrong := range [][]byte{nil, []byte("changeit")} {
			if _, err := DecodePKCS12(data, wrong); !errors.Is(err, ErrPassword) {
				t.Errorf("%s with password %q: %v", f.Name(), wrong, err)
			}
		}
	}
}

func TestPKCS12OfKeytool(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "java.p12")
	run(t, "keytool", "-genkeypair", "-alias", "java", "-keyalg", "EC", "-groupname", "secp256r1", "-dname", "CN=java", "-keystore",
		file, "-storepass", "changeit", "-storetype", "PKCS12")
	p := newPath(t, ECDSAP256)
	run(t, "keytool", "-importcert", "-noprompt", "-alias", "trusted", "-keystore", file, "-storepass", "changeit", "-file",
		write(t, "r", EncodeCertificates(p.root)))
	got, err := DecodeStore(read(t, file), []byte("changeit"))
	if err != nil || len(got) != 2 || got[0].Alias != "java" || got[0].Key == nil || got[1].Alias != "trusted" ||
		!got[1].Chain[0].Equal(p.root) {
		t.Fatalf("%v %v", got, err)
	}
}

// An empty password is two zero octets to some programs and nothing to others.
func TestPKCS12EmptyPassword(t *testing.T) {
	p := newPath(t, ECDSAP256)
	entries := []Entry{{Alias: "x", Key: p.key, Chain: p.chain()}}
	ours := encodeStore(t, entries, "")
	run(t, "openssl", "pkcs12", "-in", write(t, "s", ours), "-passin", "pass:", "-nodes")
	theirs := run(t, "openssl", "pkcs12", "-export", "-inkey", write(t, "k", encode(t, EncodePKCS8, p.key)), "-in",
		write(t, "c", EncodeCertificates(p.chain()...)), "-name", "x", "-passout", "pass:")
	for i, data := range [][]byte{ours, theirs} {
		if got, err := DecodePKCS12(data, []byte{}); err != nil || !SameEntries(got, entries) {
			t.Errorf("store %d: %v", i, err)
		}
	}
	open, err := gopkcs12.Passwordless.EncodeTrustStore([]*x509.Certificate{p.root}, "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodePKCS12(open, nil); err != nil || len(got) != 1 {
		t.Errorf("without encryption and password: %v", err)
	}
}

func TestPKCS12RoundTrip(t *testing.T) {
	p, q := newPath(t, ECDSAP256), newPath(t, Ed25519)
	shared := certify(t, q.leaf.Subject, q.key, p.ca, p.caKey) // the same key under the other path
	entries := []Entry{
		{Alias: "a ä 😀", Key: p.key, Chain: p.chain(), CANames: []string{"CA", "Root"}},
		{Alias: "b", Key: q.key, Chain: []*x509.Certificate{shared, p.ca, p.root}, CANames: []string{"CA", "Root"}},
		{Alias: "c", Chain: []*x509.Certificate{q.root}},
	}
	got, err := DecodePKCS12(encodeStore(t, entries, "x"), []byte("x"))
	if err != nil || !SameEntries(got, entries) || !slices.Equal(got[0].CANames, entries[0].CANames) {
		t.Fatalf("%v %v", got, err)
	}
	changed := slices.Clone(entries)
	changed[2].Chain = []*x509.Certificate{q.ca}
	if SameEntries(got, changed) || SameEntries(got, entries[:2]) || !SameEntries(got, []Entry{got[2], got[0], got[1]}) {
		t.Error("SameEntries does not tell contents")
	}
	for _, bad := range [][]Entry{nil, {{Alias: "x", Key: p.key}}, {{Chain: p.chain()}}, {{Key: q.key, Chain: p.chain()}}} {
		if _, err := EncodePKCS12(bad, []byte("x")); err == nil {
			t.Errorf("%v was encoded", bad)
		}
	}
}

// Whatever is cut off or flipped, the reader refuses and neither panics nor takes long.
func TestDamagedPKCS12(t *testing.T) {
	p := newPath(t, ECDSAP256)
	data := encodeStore(t, []Entry{{Alias: "x", Key: p.key, Chain: p.chain()[:1]}}, "x")
	for n := 0; n < len(data); n += 13 {
		if _, err := DecodePKCS12(data[:n], []byte("x")); err == nil || fault.KindOf(err) == fault.Internal {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	if _, err := DecodePKCS12(append(slices.Clone(data), 0), []byte("x")); err == nil {
		t.Error("a tail passes")
	}
	bomb := bytes.ReplaceAll(data, []byte{2, 2, 0x27, 0x10}, []byte{2, 2, 0x7f, 0xff})
	if bytes.Equal(bomb, data) {
		t.Fatal("the iteration count was not found")
	}
	if _, err := DecodePKCS12(bomb, []byte("x")); !errors.Is(err, ErrPassword) {
		t.Errorf("changed counts: %v", err)
	}
}

// An iteration bomb is refused before it burns.
func TestIterationBudget(t *testing.T) {
	left := newBudget()
	for range 3 {
		if err := left.spend(iterationBudget / 3); err != nil {
			t.Fatal(err)
		}
	}
	if err := left.spend(iterationBudget / 3); !fault.Is(err, fault.TooLarge) {
		t.Errorf("over the budget: %v", err)
	}
	for _, n := range []int{0, -1, iterationBudget + 1} {
		if err := newBudget().spend(n); err == nil {
			t.Errorf("%d iterations pass", n)
		}
	}
	key := write(t, "k", encode(t, EncodePKCS8, generate(t, ECDSAP256)))
	for _, args := range [][]string{
		{"-v2", "aes-256-cbc"}, {"-scrypt", "-scrypt_N", "16384", "-scrypt_r", "8", "-scrypt_p", "1"},
	} {
		der := run(t, "openssl", append([]string{"pkcs8", "-topk8", "-in", key, "-passout", "pass:x", "-outform", "DER"}, args...)...)
		bomb := bytes.Replace(der, []byte{2, 2, 8, 0}, []byte{2, 2, 0x7f, 0xff}, 1) // 2,048 to 32,767: another key
		bomb = bytes.Replace(bomb, []byte{2, 2, 0x40, 0}, []byte{2, 2, 0x7e, 0}, 1) // N no power of two
		if bytes.Equal(bomb, der) {
			t.Fatalf("%v: the count was not found", args)
		}
		if _, err := ParsePrivateKey(bomb, []byte("x")); err == nil {
			t.Errorf("%v: passes", args)
		}
	}
}

// The vectors of RFC 2268 section 5 whose effective length is that of the key, and one that openssl made. The foreign
// stores above use both lengths of key.
func TestRC2(t *testing.T) {
	for _, v := range [][3]string{
		{"ffffffffffffffff", "ffffffffffffffff", "278b27e42e2f0d49"},
		{"3000000000000000", "1000000000000001", "30649edf9be7d2c2"},
		{"88bca90e90875a7f0f9c384627bafdb2", "0000000000000000", "442b301d9a299764"},
	} {
		key, _ := hex.DecodeString(v[0])
		want, _ := hex.DecodeString(v[1])
		sealed, _ := hex.DecodeString(v[2])
		got := make([]byte, 8)
		if newRC2(key).Decrypt(got, sealed); !bytes.Equal(got, want) {
			t.Errorf("key %s: %x, want %s", v[0], got, v[1])
		}
	}
}
