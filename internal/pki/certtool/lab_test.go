package certtool

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"chancery/internal/pki/cert"
)

// lab is a directory with a CA and keys that certtool made or reads, and the certtool that is compared with.
type lab struct {
	dir    string
	ca     *x509.Certificate
	keys   map[string]crypto.PublicKey
	issuer *cert.Issuer
}

func newLab(t testing.TB) *lab {
	t.Helper()
	out, err := exec.Command("certtool", "--version").Output()
	if err != nil || !strings.HasPrefix(string(out), "certtool 3.7.") {
		t.Fatalf("these tests compare with certtool 3.7 of gnutls-bin, found %q (%v)", firstLine(string(out)), err)
	}
	l := &lab{dir: t.TempDir(), keys: map[string]crypto.PublicKey{}}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	for name, key := range map[string]crypto.Signer{"ec": ecKey, "p384": p384, "rsa": rsaKey, "ed": edKey, "ca": caKey} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		must(t, err)
		l.write(t, name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
		l.keys[name] = key.Public()
	}
	l.write(t, "ca.tmpl", "cn = Test CA\norganization = Lab\nca\ncert_signing_key\ncrl_signing_key\nserial = 1\nexpiration_days = -1\n"+
		"activation_date = 1970-01-02\n")
	if _, text, ok := l.run(t, "--generate-self-signed", "--template", "ca.tmpl", "--load-privkey", "ca.key", "--outfile", "ca.pem"); !ok {
		t.Fatalf("make a CA: %s", text)
	}
	l.ca = parsePEM(t, l.read(t, "ca.pem"))
	l.issuer = &cert.Issuer{Certificate: l.ca}
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

func (l *lab) write(t testing.TB, name, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(l.dir, name), []byte(text), 0o600))
}

func (l *lab) read(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(l.dir, name))
	must(t, err)
	return string(data)
}

// run starts certtool in the lab and returns its output, its talk, and whether it exited with 0.
func (l *lab) run(t testing.TB, args ...string) (stdout, stderr string, ok bool) {
	t.Helper()
	cmd := exec.Command("certtool", args...)
	cmd.Dir = l.dir
	cmd.Env = []string{"TZ=UTC0", "LC_ALL=C", "HOME=" + l.dir, "PATH=" + os.Getenv("PATH")}
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	err := cmd.Run()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatalf("run certtool: %v", err)
	}
	return out.String(), talk.String(), err == nil
}

// generate has certtool make a certificate; der is nil where it refuses.
func (l *lab) generate(t testing.TB, template, key string) (der []byte, talk string) {
	t.Helper()
	l.write(t, "t.tmpl", template)
	out, talk, ok := l.run(t, "--generate-certificate", "--template", "t.tmpl", "--load-privkey", key+".key",
		"--load-ca-certificate", "ca.pem", "--load-ca-privkey", "ca.key")
	if !ok {
		return nil, talk
	}
	return pemBlock(t, out), talk
}

func pemBlock(t testing.TB, text string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("no PEM in %q", text)
	}
	return block.Bytes
}

func parsePEM(t testing.TB, text string) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(pemBlock(t, text))
	must(t, err)
	return c
}

var warningLine = regexp.MustCompile(`(?m)^Warning: (skipping|multiple).*$`)

// warningsOf are certtool's warnings about options.
func warningsOf(talk string) []string {
	var list []string
	for _, line := range warningLine.FindAllString(talk, -1) {
		list = append(list, strings.TrimPrefix(line, "Warning: "))
	}
	return list
}

var escaped = regexp.MustCompile(`\\\\|\\(0[0-9A-F]|1[0-9A-F]|7F|[89A-F][0-9A-F])`)

// asCerttool undoes what visible does, since certtool prints octets that steer a terminal as they are.
func asCerttool(text string) string {
	return escaped.ReplaceAllStringFunc(text, func(match string) string {
		octet, err := hex.DecodeString(match[1:])
		if err != nil {
			return match // a backslash of the name
		}
		return string(octet)
	})
}
