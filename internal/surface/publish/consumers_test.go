package publish_test

import (
	"crypto"
	"net/http"
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

func TestOpenSSLAsks(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{})
	o.ready()
	o.issue("good")
	bad := o.issue("bad")
	o.revoke(bad, crl.KeyCompromise)
	o.until("it is revoked", func() bool { return o.status(bad, crypto.SHA1) == xocsp.Revoked })
	for _, hash := range []string{"-sha1", "-sha256"} {
		for _, nonce := range []string{"-nonce", "-no_nonce"} {
			out, err := o.program("openssl", "ocsp", "-issuer", "issuer.pem", "-CAfile", "chain.pem", hash, "-cert", "good.pem", "-cert", "bad.pem", nonce, "-url", o.server.URL+"/ocsp")
			must(t, err)
			for _, want := range []string{"Response verify OK", "good.pem: good", "bad.pem: revoked", "Reason: keyCompromise"} {
				if !strings.Contains(out, want) || strings.Contains(out, "WARNING") {
					t.Errorf("%s %s: openssl does not say %q:\n%s", hash, nonce, want, out)
				}
			}
		}
	}
	// With the lists of both issuers, the path is judged as RFC 5280 §6.3 says.
	lists := ""
	for _, name := range []string{"one", "root"} {
		o.until("the list has it", func() bool {
			_, _, text := o.get("/crl/"+name+".pem", nil)
			der, err := crl.FromPEM(text)
			must(t, err)
			list, err := crl.Parse(der)
			must(t, err)
			if _, ok := list.Lookup(bad.SerialNumber); ok || name == "root" {
				lists += string(text)
				return true
			}
			return false
		})
	}
	must(t, os.WriteFile(filepath.Join(o.dir, "lists.pem"), []byte(lists), 0o600))
	if out, err := o.program("openssl", "verify", "-crl_check_all", "-CRLfile", "lists.pem", "-CAfile", "root.pem", "-untrusted", "issuer.pem", "good.pem"); err != nil {
		t.Error(out)
	}
	if out, err := o.program("openssl", "verify", "-crl_check_all", "-CRLfile", "lists.pem", "-CAfile", "root.pem", "-untrusted", "issuer.pem", "bad.pem"); err == nil || !strings.Contains(out, "certificate revoked") {
		t.Errorf("openssl says of a revoked one: %v\n%s", err, out)
	}
}

func TestGnuTLSAsks(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{})
	o.ready()
	o.issue("good")
	bad := o.issue("bad")
	o.revoke(bad, crl.CessationOfOperation)
	o.until("it is revoked", func() bool { return o.status(bad, crypto.SHA1) == xocsp.Revoked })
	for name, want := range map[string]string{"good": "Certificate Status: good", "bad": "Certificate Status: revoked"} {
		out, err := o.program("ocsptool", "--ask="+o.server.URL+"/ocsp", "--nonce", "--load-issuer", "issuer.pem", "--load-cert", name+".pem", "--load-trust", "chain.pem")
		if !strings.Contains(out, want) || !strings.Contains(out, "Verifying OCSP Response: Success") {
			t.Errorf("ocsptool does not say %q: %v\n%s", want, err, out)
		}
	}
}

const javaChecker = `
import java.io.*;
import java.net.URI;
import java.security.cert.*;
import java.util.*;
public class Check {
  static X509Certificate load(String f) throws Exception {
    return (X509Certificate) CertificateFactory.getInstance("X.509").generateCertificate(new FileInputStream(f));
  }
  public static void main(String[] a) throws Exception {
    for (String how : new String[]{"ocsp", "crl"}) {
      for (String leaf : new String[]{"good.pem", "bad.pem"}) {
        CertPathValidator v = CertPathValidator.getInstance("PKIX");
        PKIXRevocationChecker c = (PKIXRevocationChecker) v.getRevocationChecker();
        c.setOptions(how.equals("ocsp") ? EnumSet.of(PKIXRevocationChecker.Option.NO_FALLBACK)
          : EnumSet.of(PKIXRevocationChecker.Option.NO_FALLBACK, PKIXRevocationChecker.Option.PREFER_CRLS));
        PKIXParameters p = new PKIXParameters(Set.of(new TrustAnchor(load("root.pem"), null)));
        p.addCertPathChecker(c);
        CertPath path = CertificateFactory.getInstance("X.509").generateCertPath(List.of(load(leaf), load("issuer.pem")));
        try { v.validate(path, p); System.out.println(how + " " + leaf + " valid"); }
        catch (CertPathValidatorException e) { System.out.println(how + " " + leaf + " " + e.getReason() + " " + e.getMessage()); }
      }
    }
  }
}`

// TestJavaAsks lets Java's PKIX validator fetch, over both ways, what the certificates name: the OCSP responder, and the
// CRLs, which for this issuer are partitioned.
func TestJavaAsks(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{Partitions: 3})
	o.ready()
	good, bad := o.issue("good"), o.issue("bad")
	o.revoke(bad, crl.AffiliationChanged)
	o.until("it is revoked", func() bool { return o.status(bad, crypto.SHA1) == xocsp.Revoked })
	for _, c := range []string{good.CRLDistributionPoints[0], bad.CRLDistributionPoints[0]} {
		o.until("the partition has what is revoked", func() bool {
			code, _, der := o.get(strings.TrimPrefix(c, o.server.URL), nil)
			if code != http.StatusOK {
				return false
			}
			list, err := crl.Parse(der)
			must(t, err)
			_, ok := list.Lookup(bad.SerialNumber)
			return ok || c != bad.CRLDistributionPoints[0]
		})
	}
	must(t, os.WriteFile(filepath.Join(o.dir, "Check.java"), []byte(javaChecker), 0o600))
	out, err := o.program("java", "-Dcom.sun.security.enableCRLDP=true", "Check.java")
	must(t, err)
	for _, want := range []string{"ocsp good.pem valid", "ocsp bad.pem REVOKED", "crl good.pem valid", "crl bad.pem REVOKED"} {
		if !strings.Contains(out, want) {
			t.Errorf("Java does not say %q:\n%s", want, out)
		}
	}
}

// TestOpenSSLCombinesDelta: a relying party that has an old complete list and the newest delta knows of a revocation.
func TestOpenSSLCombinesDelta(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{Delta: true})
	o.ready()
	o.issue("good")
	bad := o.issue("bad")
	_, _, base := o.get("/crl/one.pem", nil)
	o.revoke(bad, crl.Superseded)
	var delta []byte
	o.until("the delta has the revocation", func() bool {
		var code int
		if code, _, delta = o.get("/crl/one/delta.pem", nil); code != http.StatusOK {
			return false
		}
		der, err := crl.FromPEM(delta)
		must(t, err)
		list, err := crl.Parse(der)
		must(t, err)
		_, ok := list.Lookup(bad.SerialNumber)
		return ok
	})
	must(t, os.WriteFile(filepath.Join(o.dir, "base.pem"), base, 0o600))
	must(t, os.WriteFile(filepath.Join(o.dir, "both.pem"), append(base, delta...), 0o600))
	verify := func(c string, args ...string) (string, error) {
		return o.program("openssl", append(append([]string{"verify", "-crl_check", "-CAfile", "root.pem", "-untrusted", "issuer.pem"}, args...), c)...)
	}
	if out, err := verify("bad.pem", "-CRLfile", "base.pem"); err != nil {
		t.Fatalf("the old list alone knows of the revocation; the test would prove nothing:\n%s", out)
	}
	if out, err := verify("bad.pem", "-CRLfile", "both.pem", "-extended_crl", "-use_deltas"); err == nil || !strings.Contains(out, "certificate revoked") {
		t.Errorf("with the delta: %v\n%s", err, out)
	}
	if out, err := verify("good.pem", "-CRLfile", "both.pem", "-extended_crl", "-use_deltas"); err != nil {
		t.Errorf("another certificate, with the delta:\n%s", out)
	}
}
