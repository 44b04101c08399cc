package keyfile

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The five pairs of Red Hat's guide to re-keying a CA, and the eight values that Dogtag's own codec is tested with.
func TestSignedKeyID(t *testing.T) {
	for id, signed := range map[string]string{
		"a7b0944b7b8397729a4c8c9af3a9c2b96f49c6f3":           "-584f6bb4847c688d65b373650c563d4690b6390d",
		"6006094af3e5d02aaa91426594ca66cb53e73ac0":           "6006094af3e5d02aaa91426594ca66cb53e73ac0",
		"d684da39bf4f2789a3fc9d42204596f4578ad2d9":           "-297b25c640b0d8765c0362bddfba690ba8752d27",
		"a8edd7c2b5c94f13144cacd99624578ae30b7e43":           "-5712283d4a36b0ecebb3532669dba8751cf481bd",
		"2fe35d9d46b373efabe9ef01b8436667a70df096":           "2fe35d9d46b373efabe9ef01b8436667a70df096",
		strings.Repeat("00", 20):                             "0",
		strings.Repeat("00", 8) + "18604db6c7a073ff08338650": "18604db6c7a073ff08338650",
		"446ed35d7e811e7f73d0d1f220afc60083deba74":           "446ed35d7e811e7f73d0d1f220afc60083deba74",
		"7f" + strings.Repeat("ff", 19):                      "7f" + strings.Repeat("ff", 19),
		strings.Repeat("ff", 20):                             "-1",
		"ffffffffffffffffceb42c026f8ac01c9782ca73":           "-314bd3fd90753fe3687d358d",
		"e91f694a9e7c753cd7aa533cf5f6195d26523ee0":           "-16e096b561838ac32855acc30a09e6a2d9adc120",
		"80" + strings.Repeat("00", 19):                      "-80" + strings.Repeat("00", 19),
	} {
		for _, text := range []string{id, signed, strings.ToUpper(signed), "0x" + id} {
			got, err := ParseKeyID(text)
			if err != nil || got.String() != id || got.Signed() != signed {
				t.Errorf("ParseKeyID(%q) = %s, %s, %v; want %s, %s", text, got, got.Signed(), err, id, signed)
			}
		}
	}
	for id, decimal := range map[string]string{
		strings.Repeat("00", 20): "0", strings.Repeat("ff", 20): "-1", "80" + strings.Repeat("00", 19): "-730750818665451459101842416358141509827966271488",
		"7f" + strings.Repeat("ff", 19): "730750818665451459101842416358141509827966271487",
		// as Java prints new BigInteger("-584f6bb4847c688d65b373650c563d4690b6390d", 16)
		"a7b0944b7b8397729a4c8c9af3a9c2b96f49c6f3": "-504162329144706602303324431938496139351561746701",
	} {
		got, err := ParseDecimalKeyID(decimal)
		if err != nil || got.String() != id || got.Decimal() != decimal {
			t.Errorf("ParseDecimalKeyID(%s) = %s, %s, %v; want %s", decimal, got, got.Decimal(), err, id)
		}
	}
	for _, text := range []string{"", "a7", "+1", "1_0", "730750818665451459101842416358141509827966271488", "-730750818665451459101842416358141509827966271489"} {
		if id, err := ParseDecimalKeyID(text); err == nil {
			t.Errorf("ParseDecimalKeyID(%q) = %s", text, id)
		}
	}
	for _, text := range []string{"", "-", "xyz", "--1", "+1", "-+1", "1_0", strings.Repeat("f", 41), strings.Repeat("f", 42), "garbage", strings.Repeat("9", 1<<20), "-8" + strings.Repeat("0", 38) + "1"} {
		if id, err := ParseKeyID(text); err == nil {
			t.Errorf("ParseKeyID(%q) = %s", text, id)
		}
	}
	if id, err := ParseKeyID("-0"); err != nil || id != (KeyID{}) {
		t.Errorf("-0: %s %v", id, err)
	}
}

// certutil -K prints the identifier that we compute, and openssl the one of RFC 5280.
func TestKeyIDsAgainstNSSAndOpenSSL(t *testing.T) {
	t.Parallel()
	for _, a := range []Algorithm{RSA2048, ECDSAP256, ECDSAP384} {
		p := newPath(t, a)
		db := newNSS(t)
		store, err := EncodePKCS12([]Entry{{Alias: "nick", Key: p.key, Chain: p.chain()}}, []byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		run(t, "pk12util", "-d", db, "-K", "", "-W", "secret", "-i", write(t, "s.p12", store))
		want, err := NSSKeyID(p.key.Public())
		if err != nil {
			t.Fatal(err)
		}
		listed := string(run(t, "certutil", "-K", "-d", db))
		if got := regexp.MustCompile(`[0-9a-f]{40}`).FindString(listed); got != want.String() {
			t.Errorf("%s: certutil -K says %q, we %s", a, listed, want)
		}
		if !strings.Contains(listed, "nick") {
			t.Errorf("the nickname is lost: %q", listed)
		}
		id, err := RFC5280KeyID(p.key.Public())
		if err != nil {
			t.Fatal(err)
		}
		conf := write(t, "ext", []byte("subjectKeyIdentifier=hash\n"))
		req := filepath.Join(t.TempDir(), "req")
		key := write(t, "k", encode(t, EncodePKCS8, p.key))
		run(t, "openssl", "req", "-new", "-key", key, "-subj", "/CN=x", "-out", req)
		cert := run(t, "openssl", "x509", "-req", "-in", req, "-signkey", key, "-extfile", conf)
		certs, err := ParseCertificates(cert)
		if err != nil || !bytes.Equal(certs[0].SubjectKeyId, id[:]) {
			t.Errorf("%s: openssl says %x, we %s", a, certs[0].SubjectKeyId, id)
		}
	}
}

func TestPublicKeyOf(t *testing.T) {
	p := newPath(t, ECDSAP256)
	key := encode(t, EncodePKCS8, p.key)
	keyPath := write(t, "k", key)
	files := [][]byte{
		key, EncodeCertificates(p.chain()...), p.leaf.Raw, publicDER(t, p.key),
		run(t, "openssl", "pkey", "-in", keyPath, "-pubout"), run(t, "openssl", "pkey", "-in", keyPath, "-outform", "DER"),
	}
	request := filepath.Join(t.TempDir(), "req")
	run(t, "openssl", "req", "-new", "-key", keyPath, "-subj", "/CN=x", "-out", request)
	pemRequest, err := os.ReadFile(request)
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, pemRequest, run(t, "openssl", "req", "-in", request, "-outform", "DER"))
	for i, data := range files {
		pub, err := PublicKeyOf(data, nil)
		if err != nil || !samePublic(pub, p.key.Public()) {
			t.Errorf("file %d: %v", i, err)
		}
	}
	for _, data := range []string{"", "x", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
		"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
		"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"} {
		if _, err := PublicKeyOf([]byte(data), nil); err == nil {
			t.Errorf("%q passes", data)
		}
	}
}

// newNSS makes an NSS database without a password.
func newNSS(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "nss")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "certutil", "-N", "-d", "sql:"+dir, "--empty-password")
	return "sql:" + dir
}
