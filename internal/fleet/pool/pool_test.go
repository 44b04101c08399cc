package pool_test

import (
	"crypto"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/authoritytest"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/setup"
)

var (
	admin   = access.Principal{ID: "alice", Name: "alice", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}
	auditor = access.Principal{ID: "adam", Name: "adam", Kind: access.KindOperator, Roles: []access.Role{access.Auditor}}
)

// authority is the services of one that has no pool.
func authority(t *testing.T, d *db.DB) *setup.Services {
	t.Helper()
	s, _ := authoritytest.New(t, d, authoritytest.Settings())
	return s
}

// signed is what the owner of a root makes of a pool's request.
type signed struct {
	root   *root.Root
	issuer *x509.Certificate
	list   []byte
}

// sign plays the owner of a root, whose key never meets the authority.
func sign(t *testing.T, p *pool.Pool, subject string, key crypto.Signer) signed {
	t.Helper()
	now := time.Now()
	name, err := cert.ParseName(subject)
	if err != nil {
		t.Fatal(err)
	}
	r, err := root.New(root.Options{Subject: name, PathLen: 1}, key, now)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := cert.ParseCSR(p.Issuer.CSR)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := r.SignIssuer(root.Options{Subject: csr.Subject}, csr.SPKI, cert.Issuer{}, now)
	if err != nil {
		t.Fatal(err)
	}
	list, err := r.SignCRL(big.NewInt(now.UnixMilli()), nil, now, 0)
	if err != nil {
		t.Fatal(err)
	}
	return signed{r, issuer, list}
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func add(t *testing.T, s *setup.Services, spec pool.Spec) *pool.Pool {
	t.Helper()
	p, err := s.Pools.Add(t.Context(), admin, "", spec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// issues has the pool's default issuer sign a leaf, and checks it against the pool's root.
func issues(t *testing.T, s *setup.Services, p *pool.Pool) *x509.Certificate {
	t.Helper()
	spki, err := cert.MarshalPublicKey(newKey(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	issued, err := s.CA.Issue(t.Context(), admin, ca.Order{Pool: p.Name, Profile: "server", PublicKey: spki, Names: []string{"dns:a.example"}})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := issued.Parsed()
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(leaf, p); err != nil {
		t.Errorf("a leaf of pool %s: %v", p.Name, err)
	}
	return leaf
}

func verify(leaf *x509.Certificate, p *pool.Pool) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(p.Root.Certificate)
	between.AddCert(p.Issuer.Certificate)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between})
	return err
}

// TestPoolsAreApart adds a pool in each of the three ways; no leaf of one verifies under the root of another.
func TestPoolsAreApart(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s := authority(t, d)
		online := add(t, s, pool.Spec{Name: "online", Online: true})
		elsewhere := add(t, s, pool.Spec{Name: "elsewhere", Organization: "Other"})
		if online.Pending() || !elsewhere.Pending() || elsewhere.Root != nil {
			t.Fatalf("online pending %t, elsewhere pending %t with root %v", online.Pending(), elsewhere.Pending(), elsewhere.Root)
		}
		made := sign(t, elsewhere, "CN=Their root", newKey(t))
		elsewhere, err := s.Pools.Complete(t.Context(), admin, "elsewhere", made.root.Certificate, made.issuer, made.list, once.Call{})
		if err != nil {
			t.Fatal(err)
		}
		here, key, err := s.Pools.AddOffline(t.Context(), admin, pool.Spec{Name: "here"})
		if err != nil {
			t.Fatal(err)
		}
		if here.Root.KeyID != "" || elsewhere.Root.KeyID != "" || online.Root.KeyID == "" {
			t.Error("the key of an offline root is in the store, or that of an online root is not")
		}
		if err := keyfile.CheckPair(key.Public(), here.Root.Certificate); err != nil {
			t.Error(err)
		}
		pools := []*pool.Pool{online, elsewhere, here}
		for _, p := range pools {
			if !p.Issuer.Default {
				t.Errorf("pool %s has no default issuer", p.Name)
			}
			leaf := issues(t, s, p)
			for _, other := range pools {
				if other != p && verify(leaf, other) == nil {
					t.Errorf("a leaf of pool %s verifies under the root of pool %s", p.Name, other.Name)
				}
			}
		}
		for _, p := range []*pool.Pool{elsewhere, here} {
			list, err := s.Revocation.Current(t.Context(), p.Root.ID, revocation.Complete)
			if err != nil || time.Until(list.NextUpdate) < 399*24*time.Hour {
				t.Errorf("the offline root of pool %s has CRL %+v, error %v", p.Name, list, err)
			}
		}
		listed, next, err := s.Pools.Pools(t.Context(), auditor, "", 2)
		if err != nil || len(listed) != 2 || next != listed[1].Name {
			t.Errorf("first page %v, next %q, error %v", listed, next, err)
		}
	})
}

// TestSharedRootIsRefused shows two pools the same root, by its key and by its name.
func TestSharedRootIsRefused(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s := authority(t, d)
		key := newKey(t)
		first := sign(t, add(t, s, pool.Spec{Name: "first"}), "CN=Shared root", key)
		if _, err := s.Pools.Complete(t.Context(), admin, "first", first.root.Certificate, first.issuer, first.list, once.Call{}); err != nil {
			t.Fatal(err)
		}
		second := add(t, s, pool.Spec{Name: "second"})
		for name, made := range map[string]signed{
			"the same key":  sign(t, second, "CN=Another name", key),
			"the same name": sign(t, second, "CN=Shared root", newKey(t)),
		} {
			if _, err := s.Pools.Complete(t.Context(), admin, "second", made.root.Certificate, made.issuer, made.list, once.Call{}); !fault.Is(err, fault.Conflict) {
				t.Errorf("%s: error %v", name, err)
			}
		}
		p, err := s.Pools.Pool(t.Context(), "second")
		if err != nil || !p.Pending() || p.Root != nil {
			t.Errorf("after the refusals: %+v, error %v", p, err)
		}
	})
}

func TestCompleteRefuses(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s := authority(t, d)
		p := add(t, s, pool.Spec{Name: "a"})
		other := add(t, s, pool.Spec{Name: "b"})
		good, foreign := sign(t, p, "CN=Root A", newKey(t)), sign(t, other, "CN=Root B", newKey(t))
		for name, try := range map[string]func() error{
			"another root's issuer": func() error {
				_, err := s.Pools.Complete(t.Context(), admin, "a", good.root.Certificate, foreign.issuer, good.list, once.Call{})
				return err
			},
			"another root": func() error {
				_, err := s.Pools.Complete(t.Context(), admin, "a", foreign.root.Certificate, good.issuer, good.list, once.Call{})
				return err
			},
			"an issuer as root": func() error {
				_, err := s.Pools.Complete(t.Context(), admin, "a", good.issuer, good.issuer, good.list, once.Call{})
				return err
			},
			"no such pool": func() error {
				_, err := s.Pools.Complete(t.Context(), admin, "z", good.root.Certificate, good.issuer, good.list, once.Call{})
				return err
			},
			"an auditor": func() error {
				_, err := s.Pools.Complete(t.Context(), auditor, "a", good.root.Certificate, good.issuer, good.list, once.Call{})
				return err
			},
		} {
			if err := try(); err == nil || fault.KindOf(err) == fault.Internal {
				t.Errorf("%s: error %v", name, err)
			}
		}
		// A list that another root signed stops before the issuer is active; the right one then finishes.
		if _, err := s.Pools.Complete(t.Context(), admin, "a", good.root.Certificate, good.issuer, foreign.list, once.Call{}); err == nil {
			t.Error("another root's CRL was taken")
		}
		if p, err := s.Pools.Pool(t.Context(), "a"); err != nil || !p.Pending() {
			t.Errorf("the issuer is active without its root's CRL: %v", err)
		}
		if _, err := s.Pools.Complete(t.Context(), admin, "a", good.root.Certificate, good.issuer, good.list, once.Call{}); err != nil {
			t.Errorf("the right CRL: %v", err)
		}
		if _, err := s.Pools.Complete(t.Context(), admin, "a", good.root.Certificate, good.issuer, good.list, once.Call{}); !fault.Is(err, fault.Conflict) {
			t.Errorf("a pool that is complete: %v", err)
		}
	})
}

func TestAddRefusesAndRepeats(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s := authority(t, d)
		for _, name := range []string{"", "A", "a b", "-a", "a-", "a/b", "ünï", "a234567890123456789012345678901234567890123456789012345678901234567890"} {
			if _, err := s.Pools.Add(t.Context(), admin, "", pool.Spec{Name: name, Online: true}); !fault.Is(err, fault.Invalid) {
				t.Errorf("name %q: error %v", name, err)
			}
		}
		if _, err := s.Pools.Add(t.Context(), auditor, "", pool.Spec{Name: "x", Online: true}); !fault.Is(err, fault.Denied) {
			t.Errorf("an auditor: %v", err)
		}
		spec := pool.Spec{Name: "twice", Online: true}
		first, err := s.Pools.Add(t.Context(), admin, "key", spec)
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.Pools.Add(t.Context(), admin, "key", spec)
		if err != nil || again.Root.ID != first.Root.ID || again.Issuer.ID != first.Issuer.ID {
			t.Errorf("repeated with its key: %+v, error %v", again, err)
		}
		if _, err := s.Pools.Add(t.Context(), admin, "other key", spec); !fault.Is(err, fault.Conflict) {
			t.Errorf("the name again: %v", err)
		}
	})
}
