package ca

import (
	"context"
	"encoding/pem"
	"strings"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// TestProofsAreOfTheOwnPool: a host gets a twin of what its own pool's issuers signed, and a control of those issuers; of
// another pool's it gets neither, whatever whoever runs the proof would grant it. Where it has no pool there is no bound.
func TestProofsAreOfTheOwnPool(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		_, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "db-root", Subject: "CN=DB root", Pool: "db", PathLen: new(1)})
		check(t, err)
		other, _, err := a.CreateIssuer(ctx, admin(), IssuerSpec{Name: "db", Subject: "CN=DB", Parent: "db-root", Pool: "db", Default: true})
		check(t, err)
		h, pool := host("h1.example.com"), []string(nil)
		a.known(h)
		a.entitlements = func(_ context.Context, by access.Principal) (map[string][]string, error) {
			return map[string][]string{"host.names": {by.Name}, hostPool: pool}, nil
		}
		revoked := map[string]Ref{}
		for _, issuer := range []*Issuer{a.issuer, other} {
			c := must[*Certificate](t)(a.Issue(ctx, admin(), Order{Issuer: issuer.ID, Profile: "server", CSR: csr(t, newKey(t), "dns:old.example.com")}))
			ref := Ref{Issuer: issuer.ID, Serial: c.Serial}
			must[*Certificate](t)(a.Revoke(ctx, admin(), ref, RevokeOrder{Reason: crl.KeyCompromise}))
			revoked[issuer.ID] = ref
		}
		asked := 0
		grants := func(context.Context, *db.Tx, *Certificate) error { asked++; return nil }
		bare := func() []byte {
			der := must[[]byte](t)(cert.CreateCSR(&cert.CSRTemplate{}, newKey(t)))
			return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
		}
		proofs := map[string]func(issuer *Issuer) (*Certificate, error){
			"twin": func(issuer *Issuer) (*Certificate, error) {
				return a.IssueTwin(ctx, h, revoked[issuer.ID], bare(), grants)
			},
			"control": func(issuer *Issuer) (*Certificate, error) {
				return a.IssueControl(ctx, h, issuer.ID, bare(), grants)
			},
		}
		for _, c := range []struct {
			pools       []string
			own, theirs *Issuer
		}{{[]string{a.issuer.Pool}, a.issuer, other}, {[]string{"db"}, other, a.issuer}} {
			pool = c.pools
			for what, prove := range proofs {
				before, count := asked, a.count(`SELECT COUNT(*) FROM certificate`)
				_, err := prove(c.theirs)
				if refusedAs(t, err, fault.Denied); !strings.Contains(err.Error(), `issuer "`+c.theirs.Name+`" is of pool "`+c.theirs.Pool+`"`) {
					t.Errorf("a %s of %s for a host of %v: %v", what, c.theirs.Name, c.pools, err)
				}
				if asked != before || a.count(`SELECT COUNT(*) FROM certificate`) != count {
					t.Errorf("a %s of %s for a host of %v was refused, and recorded or granted all the same", what, c.theirs.Name, c.pools)
				}
				if got, err := prove(c.own); err != nil || got.Issuer.ID != c.own.ID || asked == before {
					t.Errorf("a %s of %s for a host of %v: %v", what, c.own.Name, c.pools, err)
				}
			}
		}
		pool = nil
		for what, prove := range proofs {
			if _, err := prove(other); err != nil {
				t.Errorf("a %s for a host that has no pool: %v", what, err)
			}
		}
	})
}
