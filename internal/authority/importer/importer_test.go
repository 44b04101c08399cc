package importer

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
)

// dir is a directory in which real programs are run.
type dir struct {
	t    *testing.T
	path string
}

func newDir(t *testing.T) dir { t.Helper(); return dir{t, t.TempDir()} }

func (d dir) file(name string) string { return filepath.Join(d.path, name) }

func (d dir) write(name, text string) {
	d.t.Helper()
	if err := os.MkdirAll(filepath.Dir(d.file(name)), 0o700); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.file(name), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d dir) read(name string) []byte {
	d.t.Helper()
	data, err := os.ReadFile(d.file(name))
	if err != nil {
		d.t.Fatal(err)
	}
	return data
}

// run starts a real program in the directory; a program that is missing fails the test.
func (d dir) run(name string, args ...string) {
	d.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = d.path
	if out, err := cmd.CombinedOutput(); err != nil {
		d.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

const openSSLConfig = `[ca]
default_ca = d
[d]
dir = .
database = $dir/index.txt
new_certs_dir = $dir/newcerts
certificate = $dir/cacert.pem
serial = $dir/serial
crlnumber = $dir/crlnumber
private_key = $dir/private/cakey.pem
default_md = sha256
default_days = 30
default_crl_days = 30
policy = p
unique_subject = no
[p]
commonName = supplied
organizationName = optional
`

// newOpenSSLCA makes a CA by `openssl ca` that issued five certificates: hosts 0 to 4, serials 1000 to 1004.
func newOpenSSLCA(t *testing.T) dir {
	t.Helper()
	d := newDir(t)
	d.write("c.cnf", openSSLConfig)
	d.write("index.txt", "")
	d.write("serial", "1000\n")
	d.write("crlnumber", "2a\n")
	d.write("newcerts/.keep", "")
	d.write("private/.keep", "")
	d.run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "private/cakey.pem", "-out", "cacert.pem", "-days", "90",
		"-subj", "/O=Example/CN=Old Root")
	for i, subject := range []string{"/O=Example/CN=host0", `/CN=host1 a\/b`, "/O=Übung, GmbH/CN=host2", "/CN=host3", "/CN=host4"} {
		d.run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "k", "-out", "r", "-utf8",
			"-subj", subject)
		d.run("openssl", "ca", "-config", "c.cnf", "-batch", "-in", "r", "-utf8", "-out", fmt.Sprintf("host%d.pem", i), "-notext")
	}
	return d
}

// An OpenSSL CA is read as its own CRL states it: each certificate, date, reason and invalidity date.
func TestOpenSSLCA(t *testing.T) {
	t.Parallel()
	d := newOpenSSLCA(t)
	revoke := func(serial string, args ...string) {
		d.run("openssl", append([]string{"ca", "-config", "c.cnf", "-revoke", "newcerts/" + serial + ".pem"}, args...)...)
	}
	revoke("1000", "-crl_compromise", "20260101000000Z")
	revoke("1001", "-crl_hold", "holdInstructionReject")
	revoke("1002", "-crl_reason", "superseded")
	revoke("1003")
	d.run("openssl", "ca", "-config", "c.cnf", "-gencrl", "-out", "crl.pem")
	// A line without its certificate, and one that was marked as expired.
	index := string(d.read("index.txt")) + "E\t200101000000Z\t\t0AFE\tunknown\t/C=DE/O=A\\x09B/CN=old/path\n" +
		"R\t20510101000000Z\t201231235959Z,CAkeyTime,20200101000000Z\t0AFF\tunknown\t/CN=gone\n"
	d.write("index.txt", "# a comment\n"+index)

	c, err := Read(Source{CA: d.path}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if c.Certificate.Subject.CommonName != "Old Root" || len(c.Chain) != 0 || keyfile.CheckPair(c.Key, c.Certificate) != nil {
		t.Errorf("issuer %v, chain %v", c.Certificate.Subject, c.Chain)
	}
	if c.NextSerial.Cmp(big.NewInt(0x1005)) != 0 || c.CRLNumber.Cmp(big.NewInt(0x2a)) != 0 {
		t.Errorf("next serial %x, CRL number %x", c.NextSerial, c.CRLNumber)
	}
	if len(c.Issued) != 7 || c.Revoked() != 5 {
		t.Fatalf("%d issued, %d revoked", len(c.Issued), c.Revoked())
	}
	for i, want := range []struct {
		serial  int64
		subject string
		reason  crl.Reason
		invalid string
		der     bool
	}{
		{0x1000, "CN=host0,O=Example", crl.KeyCompromise, "2026-01-01", true}, {0x1001, "CN=host1 a/b", crl.CertificateHold, "", true},
		{0x1002, `CN=host2,O=Übung\, GmbH`, crl.Superseded, "", true}, {0x1003, "CN=host3", crl.Unspecified, "", true},
		{0x1004, "CN=host4", -1, "", true}, {0x0afe, `CN=old/path,O=A\09B,C=DE`, -1, "", false},
		{0x0aff, "CN=gone", crl.CACompromise, "2020-01-01", false},
	} {
		got := c.Issued[i]
		// openssl ca orders a subject by its policy, so the test compares what is in it.
		if got.Serial.Int64() != want.serial || !sameParts(got.Subject, want.subject) || (got.DER != nil) != want.der {
			t.Errorf("line %d: serial %x, subject %q", i, got.Serial, got.Subject)
		}
		switch r := got.Revocation; {
		case want.reason < 0 && r != nil, want.reason >= 0 && (r == nil || r.Reason != want.reason || r.RevokedAt.IsZero()):
			t.Errorf("serial %x: revocation %+v", got.Serial, r)
		case r != nil && !r.InvalidityDate.IsZero() != (want.invalid != ""),
			want.invalid != "" && r.InvalidityDate.Format(time.DateOnly) != want.invalid:
			t.Errorf("serial %x: invalidity date %v, want %q", got.Serial, r.InvalidityDate, want.invalid)
		}
	}
	if end := c.Issued[6].NotAfter; end.Year() != 2051 {
		t.Errorf("a GeneralizedTime was read as %v", end)
	}
	matchesCRL(t, c, d.read("crl.pem"))
}

func sameParts(a, b string) bool {
	x, y := strings.Split(a, ","), strings.Split(b, ",")
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// matchesCRL compares revocations with what openssl wrote into the CRL.
func matchesCRL(t *testing.T, c *CA, pem []byte) {
	t.Helper()
	der, err := crl.FromPEM(pem)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil || len(list.RevokedCertificateEntries) < 4 {
		t.Fatalf("the CRL has %d entries: %v", len(list.RevokedCertificateEntries), err)
	}
	for _, e := range list.RevokedCertificateEntries {
		i := slices.IndexFunc(c.Issued, func(i ca.Record) bool { return i.Serial.Cmp(e.SerialNumber) == 0 })
		if i < 0 || c.Issued[i].Revocation == nil || int(c.Issued[i].Revocation.Reason) != e.ReasonCode ||
			!c.Issued[i].Revocation.RevokedAt.Equal(e.RevocationTime) {
			t.Errorf("serial %x: the CRL has reason %d at %v, we %+v", e.SerialNumber, e.ReasonCode, e.RevocationTime, c.Issued[i].Revocation)
		}
	}
}

// What a CRL says counts even where the index is older, and without any index.
func TestCRLCounts(t *testing.T) {
	t.Parallel()
	d := newOpenSSLCA(t)
	before := d.read("index.txt")
	d.run("openssl", "ca", "-config", "c.cnf", "-revoke", "newcerts/1002.pem", "-crl_compromise", "20260101000000Z")
	d.run("openssl", "ca", "-config", "c.cnf", "-gencrl", "-out", "crl.pem")
	d.write("index.txt", string(before)) // restored from an old backup
	d.write("crlnumber", "05\n")

	c, err := Read(Source{CA: d.path}, time.Now())
	if err != nil || c.Revoked() != 1 || c.CRLNumber.Int64() != 0x2a || !warns(c, "serial 1002", "valid in the CA's records") {
		t.Errorf("the restored index: %v %+v", err, c)
	}
	c, err = Read(Source{CA: d.file("cacert.pem"), Key: d.file("private/cakey.pem"), CRL: d.file("crl.pem"), Issued: d.file("host0.pem")},
		time.Now())
	if err != nil || len(c.Issued) != 2 || c.Issued[1].Revocation == nil || c.Issued[1].Revocation.InvalidityDate.IsZero() ||
		!c.Issued[1].NotAfter.Equal(c.Certificate.NotAfter) || !warns(c, "known from a CRL only") {
		t.Errorf("files with a CRL: %v %+v", err, c)
	}
	other := newOpenSSLCA(t)
	other.run("openssl", "ca", "-config", "c.cnf", "-gencrl", "-out", "crl.pem")
	if _, err := Read(Source{CA: d.path, CRL: other.file("crl.pem")}, time.Now()); err == nil || !strings.Contains(err.Error(), "CA's key") {
		t.Errorf("another CA's CRL of the same name: %v", err)
	}
}

func warns(c *CA, parts ...string) bool {
	return c != nil && slices.ContainsFunc(c.Warnings, func(w string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(strings.ToLower(w), strings.ToLower(p)) })
	})
}

// certtool's CA, by its files and as PKCS#12, with a CRL that certtool signed.
func TestCerttoolCA(t *testing.T) {
	t.Parallel()
	d := newDir(t)
	d.write("ca.info", "cn = Libvirt CA\nca\ncert_signing_key\ncrl_signing_key\nexpiration_days = 30\n")
	d.write("host.info", "cn = host1\norganization = libvirt.org\ntls_www_server\nsigning_key\nserial = 7\n")
	d.write("crl.info", "crl_next_update = 10\ncrl_number = 99\n")
	caFile, key := "certificate_authority_certificate.pem", "certificate_authority_key.pem"
	d.run("certtool", "--generate-privkey", "--bits", "3072", "--outfile", key)
	d.run("certtool", "--generate-self-signed", "--template", "ca.info", "--load-privkey", key, "--outfile", caFile)
	d.run("certtool", "--generate-privkey", "--outfile", "host.key")
	d.run("certtool", "--generate-certificate", "--template", "host.info", "--load-privkey", "host.key", "--load-ca-certificate", caFile,
		"--load-ca-privkey", key, "--outfile", "host.pem")
	d.run("certtool", "--generate-crl", "--load-ca-privkey", key, "--load-ca-certificate", caFile, "--load-certificate", "host.pem",
		"--template", "crl.info", "--outfile", "crl.pem")
	d.run("certtool", "--to-p12", "--load-certificate", caFile, "--load-privkey", key, "--p12-name", "root", "--password", "päss", "--outder",
		"--outfile", "ca.p12")
	for name, s := range map[string]Source{
		"files":   {CA: d.file(caFile), Key: d.file(key)},
		"PKCS#12": {CA: d.file("ca.p12"), Password: []byte("päss")},
	} {
		s.CRL, s.Issued = d.file("crl.pem"), d.file("host.pem")
		c, err := Read(s, time.Now())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(c.Issued) != 1 || c.Issued[0].Serial.Int64() != 7 || c.Revoked() != 1 || c.CRLNumber.Int64() != 99 || len(c.Warnings) != 0 ||
			c.Issued[0].Subject != "CN=host1,O=libvirt.org" && c.Issued[0].Subject != "O=libvirt.org,CN=host1" {
			t.Errorf("%s: %d issued, CRL number %v, warnings %q, subject %q", name, len(c.Issued), c.CRLNumber, c.Warnings, c.Issued[0].Subject)
		}
	}
	d.write("host.info", "cn = host2\nserial = 7\n")
	d.run("certtool", "--generate-certificate", "--template", "host.info", "--load-privkey", "host.key", "--load-ca-certificate", caFile,
		"--load-ca-privkey", key, "--outfile", "host2.pem")
	_, err := FromFiles(Files{Certificate: d.read(caFile), Key: d.read(key), Issued: [][]byte{d.read("host.pem"), d.read("host.pem"),
		d.read("host2.pem")}}, time.Now())
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "two different certificates") {
		t.Errorf("one serial twice: %v", err)
	}
	if _, err := Read(Source{CA: d.file("ca.p12"), Password: []byte("wrong")}, time.Now()); err == nil {
		t.Error("a wrong password passes")
	}
	if _, err := Read(Source{CA: d.file(caFile)}, time.Now()); err == nil || !strings.Contains(err.Error(), "key is needed") {
		t.Errorf("without the key: %v", err)
	}
}

// An intermediate comes with its path, from a bundle in any order.
func TestIntermediate(t *testing.T) {
	t.Parallel()
	d := newDir(t)
	d.write("ext", "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n")
	d.run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "root.key", "-out", "root.pem", "-sha1", "-subj", "/CN=Root")
	d.write("zero", "basicConstraints=critical,CA:TRUE,pathlen:0\n")
	d.run("openssl", "req", "-new", "-key", "root.key", "-out", "root.csr", "-subj", "/CN=Root")
	d.run("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout", "sub.key", "-out", "sub.csr", "-subj", "/CN=Sub")
	sign := func(hash, out string) {
		d.run("openssl", "x509", "-req", "-in", "sub.csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-extfile", "ext", "-"+hash,
			"-out", out)
	}
	sign("sha256", "sub.pem")
	sign("sha1", "weak.pem")
	both := append(d.read("root.pem"), d.read("sub.pem")...)
	c, err := FromFiles(Files{Certificate: both, Key: d.read("sub.key")}, time.Now())
	if err != nil || c.Certificate.Subject.CommonName != "Sub" || len(c.Chain) != 1 || len(c.Warnings) != 0 {
		t.Errorf("under a root that signed itself with SHA-1: %v %+v", err, c)
	}
	c, err = FromFiles(Files{Certificate: d.read("sub.pem"), Key: d.read("sub.key")}, time.Now())
	if err != nil || !warns(c, "without its root") {
		t.Errorf("without its root: %v", err)
	}
	d.run("openssl", "x509", "-req", "-in", "root.csr", "-signkey", "root.key", "-extfile", "zero", "-out", "root0.pem")
	_, err = FromFiles(Files{Certificate: d.read("sub.pem"), Chain: d.read("root0.pem"), Key: d.read("sub.key")}, time.Now())
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "allows 0 CAs below itself") {
		t.Errorf("under a root with pathlen:0: %v", err)
	}
	_, err = FromFiles(Files{Certificate: d.read("weak.pem"), Chain: d.read("root.pem"), Key: d.read("sub.key")}, time.Now())
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "SHA-1") {
		t.Errorf("signed with SHA-1: %v", err)
	}
}

func TestRefusedCAs(t *testing.T) {
	t.Parallel()
	d := newDir(t)
	selfSigned := func(name, bits string, args ...string) {
		d.run("openssl", append([]string{"req", "-x509", "-newkey", "rsa:" + bits, "-nodes", "-keyout", name + ".key", "-out", name + ".pem",
			"-subj", "/CN=" + name}, args...)...)
	}
	selfSigned("good", "2048")
	selfSigned("leaf", "2048", "-addext", "basicConstraints=critical,CA:FALSE")
	selfSigned("usage", "2048", "-addext", "keyUsage=digitalSignature,cRLSign")
	selfSigned("nocrl", "2048", "-addext", "keyUsage=keyCertSign")
	selfSigned("small", "1024")
	for _, tc := range []struct {
		name, certificate, key string
		now                    time.Time
		want                   string
	}{
		{"another key", "good", "leaf", time.Now(), "does not belong"},
		{"not a CA", "leaf", "leaf", time.Now(), "CA:TRUE"},
		{"keyUsage", "usage", "usage", time.Now(), "keyCertSign"},
		{"RSA 1024", "small", "small", time.Now(), "2048"},
		{"expired", "good", "good", time.Now().AddDate(1, 0, 0), "expired at"},
		{"not yet valid", "good", "good", time.Now().AddDate(-1, 0, 0), "not valid before"},
		{"two reasons", "leaf", "leaf", time.Now().AddDate(1, 0, 0), "; it expired"},
	} {
		_, err := FromFiles(Files{Certificate: d.read(tc.certificate + ".pem"), Key: d.read(tc.key + ".key")}, tc.now)
		if err == nil || fault.KindOf(err) == fault.Internal || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	c, err := FromFiles(Files{Certificate: d.read("nocrl.pem"), Key: d.read("nocrl.key")}, time.Now())
	if err != nil || !warns(c, "cRLSign") {
		t.Errorf("without cRLSign: %v", err)
	}
	d.run("openssl", "pkcs12", "-export", "-in", "leaf.pem", "-inkey", "leaf.key", "-passout", "pass:x", "-out", "leaf.p12")
	if _, err := FromPKCS12(PKCS12{Store: d.read("leaf.p12"), Password: []byte("x")}, time.Now()); err == nil ||
		!strings.Contains(err.Error(), "no private key with a CA") {
		t.Errorf("a leaf's key store: %v", err)
	}
}

func TestDamagedDirectories(t *testing.T) {
	t.Parallel()
	d := newOpenSSLCA(t)
	foreign := newOpenSSLCA(t)
	good := string(d.read("index.txt"))
	for _, tc := range []struct {
		name   string
		damage func()
		want   string
	}{
		{"a foreign certificate in newcerts", func() { d.write("newcerts/1001.pem", string(foreign.read("newcerts/1001.pem"))) }, "was not signed by"},
		{"another serial in newcerts", func() { d.write("newcerts/1001.pem", string(d.read("newcerts/1000.pem"))) }, "has serial 1000"},
		{"a duplicate serial", func() { d.write("index.txt", good+good) }, "line 6: serial 1000 is on line 1 as well"},
		{"the serial file", func() { d.write("serial", "xyz") }, `serial holds "xyz"`},
		{"the crlnumber file", func() { d.write("crlnumber", "-1") }, `crlnumber holds "-1"`},
		{"the CRL", func() { d.write("crl.pem", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n") }, "CRL is not valid"},
		{"no index", func() { os.Remove(d.file("index.txt")) }, "no index.txt"},
		{"no key", func() { os.Remove(d.file("private/cakey.pem")) }, "no CA key"},
	} {
		saved := map[string][]byte{}
		for _, name := range []string{"newcerts/1001.pem", "index.txt", "serial", "crlnumber", "private/cakey.pem"} {
			saved[name] = d.read(name)
		}
		tc.damage()
		_, err := Read(Source{CA: d.path}, time.Now())
		if err == nil || fault.KindOf(err) == fault.Internal || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
		os.Remove(d.file("crl.pem"))
		for name, data := range saved {
			d.write(name, string(data))
		}
	}
	d.write("newcerts/1001.pem", "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n")
	os.Remove(d.file("newcerts/1002.pem"))
	os.Rename(d.file("private/cakey.pem"), d.file("moved.key"))
	c, err := Read(Source{CA: d.path, Key: d.file("moved.key")}, time.Now())
	if err != nil || len(c.Issued) != 5 || c.Issued[1].DER != nil || c.Issued[2].DER != nil || !warns(c, "cannot be read") ||
		!warns(c, "2 of 5") {
		t.Errorf("a certificate unreadable, one gone, the key elsewhere: %v %+v", err, c)
	}
	if c != nil && !bytes.Contains([]byte(c.Issued[2].Subject), []byte("host2")) {
		t.Errorf("the subject of a record is %q", c.Issued[2].Subject)
	}
}
