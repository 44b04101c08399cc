package certtool

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unicode"
)

// foreign are certificates that no template makes: openssl makes them, and both programs print them.
var foreign = []struct {
	name, key, subject, extensions string
	args                           []string
}{
	{name: "issuer and serial in the AKI", extensions: "authorityKeyIdentifier=keyid:always,issuer:always\nsubjectKeyIdentifier=hash\n"},
	{name: "path length", extensions: "authorityKeyIdentifier=issuer:always\nbasicConstraints=CA:TRUE,pathlen:0\n"},
	{name: "alternative names", extensions: "issuerAltName=DNS:x,email:a@b,URI:u,IP:1.2.3.4,RID:1.2.3,dirName:d,otherName:1.2.3;UTF8:x\n" +
		"subjectAltName=RID:1.2.3,dirName:d,DNS:xn--bcher-kva.example,email:x@xn--bcher-kva.example\n[d]\nCN=a\nO=b\n"},
	{name: "policies", extensions: "certificatePolicies=1.2.3,@p\npolicyConstraints=requireExplicitPolicy:3\npolicyMappings=1.2.3:1.2.4\n" +
		"inhibitAnyPolicy=2\n[p]\npolicyIdentifier=2.5.29.32.0\nCPS.1=http://a\nCPS.2=http://b\nuserNotice.1=@n\n[n]\nexplicitText=UTF8:hi\n"},
	{name: "distribution points", extensions: "crlDistributionPoints=a,b\nfreshestCRL=URI:http://f\n[a]\nfullname=URI:http://x,DNS:y\n" +
		"reasons=keyCompromise,CACompromise\n[b]\nfullname=URI:http://z\nCRLissuer=dirName:r\n[r]\nCN=a\n"},
	{name: "netscape and no-check", extensions: "nsCertType=server\nnsComment=hello\nnoCheck=ignored\ntlsfeature=status_request\n"},
	{name: "information access", extensions: "authorityInfoAccess=caIssuers;dirName:d,OCSP;DNS:x,1.2.3;URI:z,OCSP;email:a@b\n" +
		"subjectInfoAccess=caRepository;URI:http://x\n[d]\nCN=a\n"},
	{name: "purposes", extensions: "extendedKeyUsage=critical,anyExtendedKeyUsage,msSGC,1.3.6.1.5.5.7.3.5,ipsecIKE,1.3.6.1.4.1.311.20.2.2,serverAuth\n" +
		"keyUsage=encipherOnly,decipherOnly,keyAgreement\n"},
	{name: "name constraints", extensions: "nameConstraints=permitted;DNS:x,excluded;IP:1.2.3.0/255.255.255.0,excluded;URI:.x,permitted;email:a@b\n"},
	{name: "a name of many kinds", subject: "/CN=a#b,c+d\"e<f>g;h\\\\i/O= lead/OU=trail /L=#x/serialNumber=1/dnQualifier=q+CN=two/1.2.3.4=foo/street=ü/GN=g/SN=s"},
	{name: "no name", subject: "/"},
	{name: "serial with the high bit", args: []string{"-set_serial", "0x8000000000"}},
	{name: "serial 0", args: []string{"-set_serial", "0"}},
	{name: "P-521", key: "EC -pkeyopt ec_paramgen_curve:P-521"}, {name: "P-224", key: "EC -pkeyopt ec_paramgen_curve:P-224"},
	{name: "RSA 1024", key: "RSA -pkeyopt rsa_keygen_bits:1024"}, {name: "RSA 1800", key: "RSA -pkeyopt rsa_keygen_bits:1800"},
	{name: "RSA 3072", key: "RSA -pkeyopt rsa_keygen_bits:3072"}, {name: "RSA exponent 3", key: "RSA -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_keygen_pubexp:3"},
	{name: "Ed25519", key: "ED25519"}, {name: "Ed448", key: "ED448"},
	{name: "SHA-1", args: []string{"-sha1"}}, {name: "SHA-512", args: []string{"-sha512"}}, {name: "SHA-384", args: []string{"-sha384"}},
	{name: "far future", args: []string{"-days", "36500"}},
}

func (l *lab) openssl(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Dir = l.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestPrintsForeignCertificates(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	if len(foreign) < 20 {
		t.Fatalf("only %d certificates", len(foreign))
	}
	for _, c := range foreign {
		t.Run(c.name, func(t *testing.T) {
			key := "ec.key"
			if c.key != "" {
				key = "foreign.key"
				l.openssl(t, append([]string{"genpkey", "-out", key, "-algorithm"}, strings.Fields(c.key)...)...)
			}
			if c.subject == "" {
				c.subject = "/CN=x"
			}
			l.write(t, "ext.cnf", c.extensions)
			l.openssl(t, "req", "-new", "-key", key, "-subj", c.subject, "-utf8", "-multivalue-rdn", "-out", "f.csr")
			l.openssl(t, append([]string{"x509", "-req", "-in", "f.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-extfile", "ext.cnf", "-out", "f.pem"}, c.args...)...)
			text := l.read(t, "f.pem")
			want, talk, ok := l.run(t, "--certificate-info", "--infile", "f.pem")
			if !ok {
				t.Fatalf("certtool cannot print: %s", talk)
			}
			var b bytes.Buffer
			must(t, Print(&b, pemBlock(t, text)))
			if asCerttool(b.String()) != want {
				t.Errorf("the printed certificate differs at:\n%s", firstDifference(asCerttool(b.String()), want))
			}
		})
	}
}

func TestPrintRefusesWhatIsNoCertificate(t *testing.T) {
	for _, der := range [][]byte{nil, {0x30, 0}, []byte("garbage"), bytes.Repeat([]byte{0x30, 0x80}, 100)} {
		var b bytes.Buffer
		if Print(&b, der) == nil || PrintUnsigned(&b, der) == nil || PrintCRL(&b, der) == nil || b.Len() > 0 {
			t.Errorf("%x is printed as %q", der, b.String())
		}
	}
}

// TestPrintedSubjectSteersATerminal prints certificates whose names would clear the screen, set its title, turn the direction of
// text or add a line of their own.
func TestPrintedSubjectSteersATerminal(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	for hostile, want := range map[string]string{
		"a\x1b[2J": `a\1B[2J`, "a\x07b": `a\07b`, "a\u009b2J": `a\C2\9B2J`, "a\u202eb": `a\E2\80\AEb`, "a\u2066b": `a\E2\81\A6b`,
		"a\nSubject: CN=b": `a\0ASubject: CN=b`, "a\rb": `a\0Db`, "a\x7fb": `a\7Fb`, "Grüße": "Grüße",
	} {
		now := time.Now()
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: hostile}, NotBefore: now, NotAfter: now.Add(time.Hour),
			URIs: []*url.URL{{Scheme: "urn", Opaque: "x\x1b[31m"}},
		}, &x509.Certificate{Subject: pkix.Name{Organization: []string{hostile}}}, key.Public(), key)
		must(t, err)
		for name, print := range map[string]func(io.Writer, []byte) error{"Print": Print, "PrintUnsigned": PrintUnsigned} {
			var b bytes.Buffer
			must(t, print(&b, der))
			if !strings.Contains(b.String(), "Subject: CN="+want+"\n") || !strings.Contains(b.String(), `urn:x\1B[31m`) {
				t.Errorf("%s of %q: want %s in\n%q", name, hostile, want, b.String())
			}
			for _, r := range b.String() {
				if unicode.IsControl(r) && r != '\n' && r != '\t' || unicode.Is(unicode.Bidi_Control, r) {
					t.Errorf("%s of %q lets %U through", name, hostile, r)
				}
			}
		}
	}
}
