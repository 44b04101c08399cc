package publish_test

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	xocsp "golang.org/x/crypto/ocsp"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// put writes a file into the office's directory.
func (o *office) put(name string, content ...[]byte) {
	o.t.Helper()
	var all []byte
	for _, c := range content {
		all = append(all, c...)
	}
	must(o.t, os.WriteFile(filepath.Join(o.dir, name), all, 0o600))
}

// list fetches a list in PEM, once it says of a certificate what it should.
func (o *office) list(path string, about *x509.Certificate, on bool) []byte {
	o.t.Helper()
	var text []byte
	o.until(fmt.Sprintf("%s has it: %v", path, on), func() bool {
		code, _, body := o.get(path, nil)
		if code != http.StatusOK {
			return false
		}
		der, err := crl.FromPEM(body)
		must(o.t, err)
		list, err := crl.Parse(der)
		must(o.t, err)
		_, found := list.Lookup(about.SerialNumber)
		text = body
		return found == on
	})
	return text
}

// says runs a program and wants it to say something; fails tells whether it should end badly.
func (o *office) says(want string, fails bool, name string, args ...string) {
	o.t.Helper()
	out, err := o.program(name, args...)
	if (err != nil) != fails || !strings.Contains(out, want) {
		o.t.Errorf("%s %s does not say %q: %v\n%s", name, strings.Join(args, " "), want, err, out)
	}
}

// TestOpenSSLAsksByGET has openssl write the requests and read the answers, which travel in a URL's path (RFC 6960 A.1.1).
func TestOpenSSLAsksByGET(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{})
	o.ready()
	o.issue("good")
	bad := o.issue("bad")
	o.revoke(bad, crl.Superseded)
	o.until("it is revoked", func() bool { return o.status(bad, crypto.SHA1) == xocsp.Revoked })
	about := []string{"-cert", "good.pem", "-cert", "bad.pem"}
	for _, how := range [][]string{{"-sha1", "-no_nonce"}, {"-sha256", "-no_nonce"}, {"-sha256", "-nonce"}} {
		_, err := o.program("openssl", append(append([]string{"ocsp", "-issuer", "issuer.pem"}, how[0]), append(about, how[1], "-reqout", "request.der")...)...)
		must(t, err)
		request, err := os.ReadFile(filepath.Join(o.dir, "request.der"))
		must(t, err)
		code, _, answer := o.get("/ocsp/"+url.PathEscape(base64.StdEncoding.EncodeToString(request)), nil)
		if code != http.StatusOK {
			t.Fatalf("GET: %d %s", code, answer)
		}
		o.put("answer.der", answer)
		args := append([]string{"ocsp", "-respin", "answer.der", "-reqin", "request.der", "-issuer", "issuer.pem", "-CAfile", "chain.pem", "-no_nonce", how[0]}, about...)
		out, err := o.program("openssl", args...)
		must(t, err)
		for _, want := range []string{"Response verify OK", "good.pem: good", "bad.pem: revoked", "Reason: superseded"} {
			if !strings.Contains(out, want) || strings.Contains(out, "WARNING") {
				t.Errorf("%v: openssl does not say %q:\n%s", how, want, out)
			}
		}
	}
}

// TestOpenSSLUsesPartitions: a list of another partition is no evidence (RFC 5280 §6.3.3 b).
func TestOpenSSLUsesPartitions(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{Partitions: 4})
	o.ready()
	good, bad := o.issue("good"), o.issue("bad")
	o.revoke(bad, crl.KeyCompromise)
	path := func(c *x509.Certificate) string {
		return strings.TrimSuffix(strings.TrimPrefix(c.CRLDistributionPoints[0], o.server.URL), ".crl") + ".pem"
	}
	o.put("good.crl", o.list(path(good), good, false))
	o.put("bad.crl", o.list(path(bad), bad, true))
	for n := range 4 {
		if other := fmt.Sprintf("/crl/one/%d.pem", n); other != path(bad) {
			o.put("other.crl", o.list(other, bad, false))
		}
	}
	verify := func(lists, leaf string) []string {
		return []string{"verify", "-crl_check", "-extended_crl", "-CRLfile", lists, "-CAfile", "root.pem", "-untrusted", "issuer.pem", leaf}
	}
	o.says("good.pem: OK", false, "openssl", verify("good.crl", "good.pem")...)
	o.says("certificate revoked", true, "openssl", verify("bad.crl", "bad.pem")...)
	o.says("ifferent CRL scope", true, "openssl", verify("other.crl", "bad.pem")...)
}

// TestGnuTLSVerifiesWithLists checks whole paths with certtool, without the lists and with them.
func TestGnuTLSVerifiesWithLists(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{})
	o.ready()
	good, bad := o.issue("good"), o.issue("bad")
	o.revoke(bad, crl.KeyCompromise)
	o.put("lists.pem", o.list("/crl/one.pem", bad, true), o.list("/crl/root.pem", bad, false))
	o.write("good.path", good, o.issuer.Certificate)
	o.write("bad.path", bad, o.issuer.Certificate)
	verify := []string{"--verify", "--load-ca-certificate", "root.pem", "--load-crl", "lists.pem", "--infile"}
	o.says("Chain verification output: Verified. The certificate is trusted.", false, "certtool", append(verify, "good.path")...)
	o.says("revoked", true, "certtool", append(verify, "bad.path")...)
	o.says("Chain verification output: Verified. The certificate is trusted.", false, "certtool", append(verify[:3:3], "--infile", "bad.path")...)
}

// TestNSSVerifiesWithLists imports the lists into a database of NSS, whose path checks then heed them.
func TestNSSVerifiesWithLists(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{})
	o.ready()
	o.issue("good")
	bad := o.issue("bad")
	store := "sql:" + filepath.Join(o.dir, "nss")
	must(t, os.Mkdir(filepath.Join(o.dir, "nss"), 0o700))
	must(t, second(o.program("certutil", "-N", "-d", store, "--empty-password")))
	for _, c := range [][2]string{{"root", "CT,C,C"}, {"issuer", ",,"}, {"good", ",,"}, {"bad", ",,"}} {
		must(t, second(o.program("certutil", "-A", "-d", store, "-n", c[0], "-t", c[1], "-i", c[0]+".pem")))
	}
	verify := func(name string) []string { return []string{"-V", "-d", store, "-e", "-u", "V", "-n", name} }
	o.says("certificate is valid", false, "certutil", verify("good")...)
	o.says("certificate is valid", false, "certutil", verify("bad")...)
	o.revoke(bad, crl.KeyCompromise)
	o.list("/crl/one.pem", bad, true)
	for _, name := range []string{"one", "root"} {
		_, _, der := o.get("/crl/"+name+".crl", nil)
		o.put(name+".crl", der)
		must(t, second(o.program("crlutil", "-I", "-d", store, "-t", "1", "-i", name+".crl")))
	}
	o.says("certificate is valid", false, "certutil", verify("good")...)
	o.says("revoked", true, "certutil", verify("bad")...)
}

func second[T any](_ T, err error) error { return err }
