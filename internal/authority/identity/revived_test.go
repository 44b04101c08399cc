package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/identity"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/setup"
)

// requestFor is a request that the key signed, so that one key can be enrolled twice.
func requestFor(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must(t, err)
	return der
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

func good(t *testing.T, s *setup.Services, c *ca.Certificate) error {
	t.Helper()
	return s.Identity.Good(t.Context(), c.Issuer.ID, c.Serial)
}

// TestRevokedIdentityIsNotRevivedByAnotherCertificateOfItsKey has an operator ask for the certificate that would bring an
// administrator's stolen key back, in each way that an order can be placed.
func TestRevokedIdentityIsNotRevivedByAnotherCertificateOfItsKey(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s, ctx := assemble(t, d), t.Context()
		ada, ben := operator(t, s, "ada", access.Admin), operator(t, s, "ben", access.Operator)
		spare := operator(t, s, "spare", access.Admin)
		request := requestFor(t, newKey(t))
		first, err := s.Identity.Enrol(ctx, ada, ada, request, "")
		must(t, err)
		second, err := s.Identity.Enrol(ctx, ada, ada, request, "")
		must(t, err)
		must(t, good(t, s, first))
		must(t, good(t, s, second))

		for _, by := range []access.Principal{ben, ada, access.System("n1")} {
			order := ca.Order{Pool: ca.IdentityPool, Profile: ca.IdentityProfile, CSR: request}
			if _, err := s.CA.Issue(ctx, by, order); !fault.Is(err, fault.Denied) {
				t.Errorf("an order for an identity by %s: %v", by.Actor(), err)
			}
			if _, _, err := s.CA.Submit(ctx, by, order); !fault.Is(err, fault.Denied) {
				t.Errorf("a request for an identity by %s: %v", by.Actor(), err)
			}
			if _, err := s.CA.Renew(ctx, by, ca.Ref{Serial: second.Serial}, ca.RenewOrder{}); !fault.Is(err, fault.Denied) {
				t.Errorf("a renewal of an identity by %s: %v", by.Actor(), err)
			}
		}

		must(t, reenable(t, s, spare, first))
		if _, err := s.CA.Revoke(ctx, spare, ca.Ref{Serial: first.Serial}, ca.RevokeOrder{Reason: crl.Superseded}); err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]*ca.Certificate{"revoked": first, "other": second} {
			if err := good(t, s, c); !fault.Is(err, fault.Conflict) {
				t.Errorf("the %s certificate of the key: %v", name, err)
			}
		}
		if _, err := s.Identity.Enrol(ctx, ada, ada, request, ""); !fault.Is(err, fault.Conflict) {
			t.Errorf("the key of a revoked identity was enrolled again: %v", err)
		}
		anew, err := s.Identity.Enrol(ctx, ada, ada, requestFor(t, newKey(t)), "")
		must(t, err)
		must(t, good(t, s, anew))
	})
}

// reenable holds and releases: what a hold ends comes back with the certificate, and not before.
func reenable(t *testing.T, s *setup.Services, by access.Principal, c *ca.Certificate) error {
	t.Helper()
	if _, err := s.CA.Hold(t.Context(), by, ca.Ref{Serial: c.Serial}, ""); err != nil {
		return err
	}
	if err := good(t, s, c); !fault.Is(err, fault.Conflict) {
		t.Errorf("a certificate on hold: %v", err)
	}
	if _, err := s.CA.Release(t.Context(), by, ca.Ref{Serial: c.Serial}, ""); err != nil {
		return err
	}
	return good(t, s, c)
}

// TestIdentityThatWasReplacedTwiceProvesNobody renews one key: the newest certificate and the one before it are good.
func TestIdentityThatWasReplacedTwiceProvesNobody(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s, ctx := assemble(t, d), t.Context()
		ada := operator(t, s, "ada", access.Admin)
		request := requestFor(t, newKey(t))
		var issued []*ca.Certificate
		for range 3 {
			c, err := s.Identity.Enrol(ctx, ada, ada, request, "")
			must(t, err)
			issued = append(issued, c)
		}
		if err := good(t, s, issued[0]); !fault.Is(err, fault.Conflict) {
			t.Errorf("the one before the last two: %v", err)
		}
		must(t, good(t, s, issued[1]))
		must(t, good(t, s, issued[2]))
	})
}

// TestNodeCertificateIsNobodysIdentity shows what the identity issuer signed for a node.
func TestNodeCertificateIsNobodysIdentity(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s := assemble(t, d)
		issued, err := s.Identity.Serve(t.Context(), "n1", newKey(t).Public(), []string{"dns:n1.test"})
		must(t, err)
		if err := good(t, s, issued); !fault.Is(err, fault.Denied) {
			t.Errorf("a node's TLS certificate: %v", err)
		}
		if len(identity.Path(issued)) != 2 {
			t.Error("no path")
		}
	})
}

// TestOfficerCannotEndANode revokes what a node serves with. What callers are known by, an officer revokes.
func TestOfficerCannotEndANode(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s, ctx := assemble(t, d), t.Context()
		olga, ada := operator(t, s, "olga", access.Officer), operator(t, s, "ada", access.Admin)
		n1, err := s.Access.CreatePrincipal(ctx, access.System("n1"), access.Principal{Name: "n1", Kind: access.KindNode, Roles: []access.Role{access.Auditor}}, once.Call{})
		must(t, err)
		served, err := s.Identity.Serve(ctx, "n1", newKey(t).Public(), []string{"dns:n1.test"})
		must(t, err)
		node, err := s.Identity.Enrol(ctx, ada, n1, requestFor(t, newKey(t)), "")
		must(t, err)
		own, err := s.Identity.Enrol(ctx, ada, ada, requestFor(t, newKey(t)), "")
		must(t, err)
		for name, c := range map[string]*ca.Certificate{"TLS certificate": served, "identity": node} {
			ref, order := ca.Ref{Serial: c.Serial}, ca.RevokeOrder{Reason: crl.KeyCompromise}
			if _, err := s.CA.Revoke(ctx, olga, ref, order); !fault.Is(err, fault.Denied) {
				t.Errorf("an officer revoked a node's %s: %v", name, err)
			}
			_, err := s.CA.Revoke(ctx, ada, ref, order)
			must(t, err)
		}
		_, err = s.CA.Revoke(ctx, olga, ca.Ref{Serial: own.Serial}, ca.RevokeOrder{Reason: crl.KeyCompromise})
		must(t, err)
	})
}

// TestStolenTokenGetsNoLastingIdentity enrols by tokens.
func TestStolenTokenGetsNoLastingIdentity(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s, ctx := assemble(t, d), t.Context()
		shown := func(p access.Principal) access.Principal {
			t.Helper()
			_, text, err := s.Access.CreateToken(ctx, access.System("n1"), access.TokenOrder{Principal: p.ID, Life: time.Hour})
			must(t, err)
			by, err := s.Access.Authenticate(ctx, text)
			must(t, err)
			return by
		}
		ben := shown(operator(t, s, "ben", access.Operator))
		if _, err := s.Identity.Enrol(ctx, ben, ben, requestFor(t, newKey(t)), ""); !fault.Is(err, fault.Denied) {
			t.Errorf("an operator's token: %v", err)
		}
		ada := shown(operator(t, s, "ada", access.Admin))
		_, err := s.Identity.Enrol(ctx, ada, ben, requestFor(t, newKey(t)), "")
		must(t, err)
	})
}
