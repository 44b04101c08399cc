package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"
	"time"

	"chancery/internal/authority/identity"
	"chancery/internal/authoritytest"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/setup"
)

// assemble makes the services of an authority with the pool of identities.
func assemble(t *testing.T, d *db.DB) *setup.Services {
	t.Helper()
	s, _ := authoritytest.New(t, d, authoritytest.Settings(), pool.Identity)
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func csr(t *testing.T, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{"node.test"},
	}, key)
	must(t, err)
	return der
}

func operator(t *testing.T, s *setup.Services, name string, role access.Role) access.Principal {
	t.Helper()
	p, err := s.Access.CreatePrincipal(t.Context(), access.System("n1"), access.Principal{Name: name, Kind: access.KindOperator, Roles: []access.Role{role}}, once.Call{})
	must(t, err)
	return p
}

func TestEnrol(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s, ctx := assemble(t, d), t.Context()
		ada, ben := operator(t, s, "ada", access.Admin), operator(t, s, "ben", access.Operator)
		request := csr(t, "ada")
		issued, err := s.Identity.Enrol(ctx, ben, ben, request, "k")
		must(t, err)
		leaf, err := x509.ParseCertificate(issued.DER)
		must(t, err)
		if leaf.Subject.CommonName != "ben" || len(leaf.DNSNames) != 0 || time.Until(leaf.NotAfter) > identity.OperatorLife {
			t.Fatalf("the names of the request were taken: %v %v, until %v", leaf.Subject, leaf.DNSNames, leaf.NotAfter)
		}
		if again, err := s.Identity.Enrol(ctx, ben, ben, request, "k"); err != nil || again.Serial.Cmp(issued.Serial) != 0 {
			t.Fatalf("a repeated call: %v, %v", again, err)
		}
		if _, err := s.Identity.Enrol(ctx, ben, ada, csr(t, ""), ""); !fault.Is(err, fault.Denied) {
			t.Fatalf("an operator enrolled an administrator: %v", err)
		}
		if _, err := s.Identity.Enrol(ctx, ada, ada, request, ""); !fault.Is(err, fault.Conflict) {
			t.Fatalf("one key for two: %v", err)
		}
		who, err := s.Access.AuthenticateCertificate(ctx, issued.Issuer.ID, leaf.RawSubjectPublicKeyInfo)
		if err != nil || who.ID != ben.ID {
			t.Fatalf("%+v, %v", who, err)
		}
		roots, err := s.Identity.Roots(ctx)
		must(t, err)
		above := x509.NewCertPool()
		for _, der := range identity.Path(issued)[1:] {
			c, err := x509.ParseCertificate(der)
			must(t, err)
			above.AddCert(c)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: above, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Fatal(err)
		}
		must(t, s.Identity.Good(ctx, issued.Issuer.ID, issued.Serial))
		off := true
		ben, err = s.Access.UpdatePrincipal(ctx, ada, ben.ID, access.Change{Disabled: &off}, once.Call{})
		must(t, err)
		if _, err := s.Identity.Enrol(ctx, ada, ben, csr(t, ""), ""); !fault.Is(err, fault.Conflict) {
			t.Fatalf("a disabled operator was enrolled: %v", err)
		}
	})
}

func TestServeNamesTheNode(t *testing.T) {
	s := assemble(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	issued, err := s.Identity.Serve(t.Context(), "n1", key.Public(), []string{"dns:pki.test", "ip:192.0.2.1"})
	must(t, err)
	leaf, err := x509.ParseCertificate(issued.DER)
	must(t, err)
	if leaf.VerifyHostname("pki.test") != nil || leaf.VerifyHostname("192.0.2.1") != nil || len(identity.Path(issued)) != 2 {
		t.Fatalf("%v %v", leaf.DNSNames, leaf.IPAddresses)
	}
	if _, err := s.Identity.IssuerOf(t.Context(), leaf); !fault.Is(err, fault.NotFound) {
		t.Fatalf("a leaf is taken for an issuer: %v", err)
	}
}
