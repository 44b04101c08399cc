package keyfile

import (
	"bytes"
	"crypto"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chancery/internal/fault"
)

// run starts a real program and returns its standard output; a program that is missing fails the test.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	switch name { // Java lives for a second here: it need not compile well what runs once
	case "java":
		args = slices.Concat([]string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"}, args)
	case "keytool":
		args = slices.Concat([]string{"-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC"}, args)
	}
	cmd := exec.Command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes()
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func generate(t *testing.T, a Algorithm) crypto.Signer {
	t.Helper()
	key, err := Generate(a, 0)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func encode(t *testing.T, f func(crypto.Signer) ([]byte, error), key crypto.Signer) []byte {
	t.Helper()
	data, err := f(key)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestGenerate(t *testing.T) {
	for _, tc := range []struct {
		a    Algorithm
		bits int
		want Algorithm
	}{
		{"", 0, RSA3072}, {RSA, 2048, RSA2048}, {RSA2048, 2048, RSA2048}, {ECDSA, 0, ECDSAP256}, {ECDSA, 384, ECDSAP384},
		{ECDSAP521, 0, ECDSAP521}, {Ed25519, 0, Ed25519},
	} {
		key, err := Generate(tc.a, tc.bits)
		if err != nil {
			t.Fatalf("Generate(%q, %d): %v", tc.a, tc.bits, err)
		}
		if got := AlgorithmOf(key.Public()); got != tc.want {
			t.Errorf("Generate(%q, %d) made %s, want %s", tc.a, tc.bits, got, tc.want)
		}
	}
	for _, tc := range []struct {
		a    Algorithm
		bits int
	}{
		{RSA, 1024}, {RSA, 16384}, {RSA, 2047}, {RSA, -1}, {RSA2048, 4096}, {ECDSA, 224}, {Ed25519, 512}, {"dsa", 0},
		{"rsa-p256", 0}, {"ecdsa-256", 0}, {"ed25519-256", 0}, {"rsa-", 0},
	} {
		if _, err := Generate(tc.a, tc.bits); !fault.Is(err, fault.Invalid) {
			t.Errorf("Generate(%q, %d): %v", tc.a, tc.bits, err)
		}
	}
}

func TestParseAlgorithm(t *testing.T) {
	for text, want := range map[string]Algorithm{
		"RSA": RSA, "rsa:4096": RSA4096, "rsa2048": RSA2048, "RSA3072": RSA3072, "rsa4096": RSA4096, "rsa:3072": RSA3072, "p256": ECDSAP256,
		"p521": ECDSAP521, "P-256": ECDSAP256, "ecdsa-p384": ECDSAP384, "EC": ECDSA, "Ed25519": Ed25519,
	} {
		if got, err := ParseAlgorithm(text); err != nil || got != want {
			t.Errorf("ParseAlgorithm(%q) = %q, %v", text, got, err)
		}
	}
	for _, a := range Algorithms {
		if got, err := ParseAlgorithm(string(a)); err != nil || got != a {
			t.Errorf("ParseAlgorithm(%q) = %q, %v", a, got, err)
		}
	}
	for _, text := range []string{"dsa", "p224", "rsa-1024", "rsa1024", "rsa3072x", "rsa99999999999999999999", "ed448", "\x00"} {
		if a, err := ParseAlgorithm(text); err == nil {
			t.Errorf("ParseAlgorithm(%q) = %q", text, a)
		}
	}
}

// Each encoding is read by openssl and certtool as a valid key, and comes back from our own parser as the same key.
func TestEncodingsAreReadByOpenSSLAndCerttool(t *testing.T) {
	t.Parallel()
	password := []byte("correct horse")
	encrypted := func(k crypto.Signer) ([]byte, error) { return EncodeEncryptedPKCS8(k, password) }
	for _, tc := range []struct {
		name string
		a    Algorithm
		f    func(crypto.Signer) ([]byte, error)
	}{
		{"rsa pkcs8", RSA2048, EncodePKCS8}, {"rsa pkcs1", RSA2048, EncodePKCS1},
		{"p256 pkcs8", ECDSAP256, EncodePKCS8}, {"p256 sec1", ECDSAP256, EncodeSEC1}, {"p521 sec1", ECDSAP521, EncodeSEC1},
		{"p384 encrypted", ECDSAP384, encrypted}, {"ed25519", Ed25519, EncodePKCS8},
		{"traditional", Ed25519, EncodeTraditional},
	} {
		t.Run(tc.name, func(t *testing.T) {
			key := generate(t, tc.a)
			data := encode(t, tc.f, key)
			path := write(t, "k.pem", data)
			run(t, "openssl", "pkey", "-in", path, "-noout", "-passin", "pass:correct horse")
			run(t, "certtool", "-k", "--infile", path, "--password", "correct horse")
			got, err := ParsePrivateKey(data, password)
			if err != nil || !samePublic(got.Public(), key.Public()) {
				t.Fatalf("read back: %v", err)
			}
		})
	}
}

// Each form in which openssl and certtool write keys is read.
func TestForeignKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := func(name string) string { return filepath.Join(dir, name) }
	run(t, "openssl", "genrsa", "-traditional", "-out", p("pkcs1.pem"), "2048")
	run(t, "openssl", "ecparam", "-name", "secp384r1", "-genkey", "-out", p("params+sec1.pem"))
	run(t, "openssl", "genpkey", "-algorithm", "ed25519", "-out", p("ed.pem"))
	run(t, "openssl", "pkey", "-in", p("pkcs1.pem"), "-outform", "DER", "-out", p("pkcs8.der"))
	run(t, "openssl", "rsa", "-in", p("pkcs1.pem"), "-traditional", "-outform", "DER", "-out", p("pkcs1.der"))
	run(t, "openssl", "ec", "-in", p("params+sec1.pem"), "-outform", "DER", "-out", p("sec1.der"))
	pkcs8 := func(out string, args ...string) {
		run(t, "openssl", append([]string{"pkcs8", "-topk8", "-in", p("pkcs1.pem"), "-passout", "pass:pässword", "-out", p(out)},
			args...)...)
	}
	pkcs8("enc-default.pem")
	pkcs8("enc-scrypt.pem", "-scrypt")
	pkcs8("enc-aes128-sha512.pem", "-v2", "aes-128-cbc", "-v2prf", "hmacWithSHA512")
	pkcs8("enc-aes192-sha384.pem", "-v2", "aes-192-cbc", "-v2prf", "hmacWithSHA384")
	pkcs8("enc-des3.pem", "-v2", "des3", "-v2prf", "hmacWithSHA1")
	pkcs8("enc.der", "-outform", "DER", "-iter", "50000")
	run(t, "certtool", "--generate-privkey", "--key-type", "rsa", "--bits", "2048", "--outfile", p("certtool-rsa.pem"))
	run(t, "certtool", "--generate-privkey", "--key-type", "ecdsa", "--outfile", p("certtool-ec.pem"))
	run(t, "certtool", "--generate-privkey", "--key-type", "ed25519", "--outfile", p("certtool-ed.pem"))
	run(t, "certtool", "--generate-privkey", "--pkcs8", "--password", "pässword", "--outfile", p("certtool-enc.pem"))
	crlf := bytes.ReplaceAll(read(t, p("params+sec1.pem")), []byte("\n"), []byte("\r\n"))
	os.WriteFile(p("crlf+bom.pem"), append([]byte("\xef\xbb\xbf"), crlf...), 0o600)
	os.WriteFile(p("mac.pem"), bytes.ReplaceAll(read(t, p("ed.pem")), []byte("\n"), []byte("\r")), 0o600)
	os.WriteFile(p("twice.pem"), append(read(t, p("ed.pem")), read(t, p("ed.pem"))...), 0o600)

	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 18 {
		t.Fatalf("only %d files: %v", len(files), err)
	}
	for _, f := range files {
		key, err := ParsePrivateKey(read(t, p(f.Name())), []byte("pässword"))
		if err != nil {
			t.Errorf("%s: %v", f.Name(), err)
			continue
		}
		args := []string{"pkey", "-in", p(f.Name()), "-passin", "pass:pässword", "-pubout", "-outform", "DER"}
		if strings.HasSuffix(f.Name(), ".der") {
			args = append(args, "-inform", "DER")
		}
		if f.Name() != "mac.pem" && !bytes.Equal(run(t, "openssl", args...), publicDER(t, key)) {
			t.Errorf("%s: read as another key", f.Name())
		}
	}
}

func TestPrivateKeyRefusals(t *testing.T) {
	t.Parallel()
	key := generate(t, ECDSAP256)
	plain := encode(t, EncodePKCS8, key)
	sealed, err := EncodeEncryptedPKCS8(key, []byte("right"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	old := filepath.Join(dir, "old.pem")
	run(t, "openssl", "genrsa", "-traditional", "-aes128", "-passout", "pass:x", "-out", old, "2048")
	x25519 := run(t, "openssl", "genpkey", "-algorithm", "x25519")
	explicit := run(t, "openssl", "ecparam", "-name", "prime256v1", "-genkey", "-param_enc", "explicit")
	huge := encodePEM(labelPKCS8, make([]byte, maxKeyDER+1))
	keyFile, store := filepath.Join(dir, "key.pem"), filepath.Join(dir, "store.p12")
	if err := os.WriteFile(keyFile, plain, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "openssl", "pkcs12", "-export", "-nocerts", "-inkey", keyFile, "-passout", "pass:x", "-out", store)
	p12, err := os.ReadFile(store)
	if err != nil {
		t.Fatal(err)
	}

	for _, tc := range []struct {
		name     string
		data     []byte
		password []byte
		kind     fault.Kind
		want     string
	}{
		{"empty", []byte(" \n"), nil, fault.Invalid, "empty"},
		{"10 MB", bytes.Repeat([]byte("A"), 10<<20), nil, fault.TooLarge, "at most"},
		{"huge key", huge, nil, fault.TooLarge, "at most"},
		{"text", []byte("hello"), nil, fault.Invalid, "neither PEM nor"},
		{"PKCS#12", p12, nil, fault.Invalid, "is a PKCS#12 key store"},
		{"PKCS#12 in BER", []byte{0x30, 0x80, 2, 1, 3, 0x30, 0x80, 6, 9}, nil, fault.Invalid, "is a PKCS#12 key store"},
		{"JKS", []byte{0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2}, nil, fault.Invalid, "is a Java key store"},
		{"truncated", plain[:len(plain)-20], nil, fault.Invalid, "truncated"},
		{"truncated, then another", append(append([]byte{}, plain[:60]...), append([]byte("\n"), plain...)...), nil,
			fault.Invalid, "no END line"},
		{"stray END", []byte("-----END PRIVATE KEY-----\n" + string(plain)), nil, fault.Invalid, "no BEGIN line"},
		{"bad base64", bytes.Replace(plain, []byte("M"), []byte("*"), 1), nil, fault.Invalid, "base64"},
		{"two keys", append(append([]byte{}, plain...), encode(t, EncodePKCS8, generate(t, Ed25519))...), nil,
			fault.Invalid, "more than one"},
		{"no password", sealed, nil, fault.Invalid, "no password"},
		{"empty password", sealed, []byte{}, fault.Invalid, "does not open"},
		{"wrong password", sealed, []byte("wrong"), fault.Invalid, "does not open"},
		{"old encrypted PEM", read(t, old), []byte("x"), fault.Invalid, "Proc-Type"},
		{"key agreement", x25519, nil, fault.Invalid, "cannot sign"},
		{"explicit curve", explicit, nil, fault.Invalid, "not valid"},
		{"certificate only", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), nil, fault.Invalid,
			"no private key, only: CERTIFICATE"},
		{"UTF-16", []byte("\xff\xfe-\x00-\x00"), nil, fault.Invalid, "UTF-16"},
	} {
		_, err := ParsePrivateKey(tc.data, tc.password)
		if err == nil || fault.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if wrong := strings.Contains(tc.name, "password"); errors.Is(err, ErrPassword) != wrong {
			t.Errorf("%s: errors.Is ErrPassword is %v", tc.name, !wrong)
		}
	}
	_, err = ParsePrivateKey(read(t, old), nil)
	if e, ok := errors.AsType[*fault.Error](err); !ok || !strings.Contains(e.Hint, "openssl pkcs8 -topk8") {
		t.Errorf("the hint for old encrypted PEM is missing: %v", err)
	}
	if _, err := EncodeEncryptedPKCS8(key, nil); err == nil {
		t.Error("a key was encrypted with an empty password")
	}
	if _, err := EncodePKCS1(key); err == nil {
		t.Error("an EC key was encoded as PKCS#1")
	}
}
