package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync"
	"testing"

	"chancery/internal/authority/profile"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/settings"
)

// TestTwoNodes has two nodes on one database issue and revoke at once: a key gives one certificate wherever it is
// repeated, one of two revocations of a certificate passes, and changes are numbered without gaps.
func TestTwoNodes(t *testing.T) {
	url := pkitest.URL(t, db.Postgres)
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: url}))
	d := pkitest.Open(t, db.Options{URL: url})
	log := must[*audit.Log](t)(audit.New(d, "n2"))
	other := New(Options{DB: d, Keys: a.keys, Profiles: profile.New(d, log), Settings: settings.New(d, log), Audit: log})
	ctx := context.Background()
	const certificates = 60
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		issued  = map[string]map[int64]bool{}
		passed  = map[int64]int{}
		refused = 0
	)
	for _, node := range []*CA{a.CA, other} {
		must[*Certificate](t)(node.Issue(ctx, admin(), Order{Profile: "server", PublicKey: fixedKey, Names: []string{"dns:own.example.com"}}))
		for g := range 8 {
			wg.Go(func() {
				for i := g; i < certificates; i += 8 {
					key := fmt.Sprintf("key%d", i)
					c, err := node.Issue(ctx, admin(), Order{IdempotencyKey: key, Profile: "server", PublicKey: fixedKey, Names: []string{"dns:" + key + ".example.com"}})
					if err != nil {
						t.Errorf("issue %s: %v", key, err)
						return
					}
					_, err = node.Revoke(ctx, admin(), Ref{Serial: c.Serial}, RevokeOrder{Reason: crl.Superseded})
					mu.Lock()
					if issued[key] == nil {
						issued[key] = map[int64]bool{}
					}
					issued[key][c.ID] = true
					switch {
					case err == nil:
						passed[c.ID]++
					case fault.Is(err, fault.Conflict):
						refused++
					default:
						t.Errorf("revoke %s: %v", key, err)
					}
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	if len(issued) != certificates || refused != certificates {
		t.Errorf("%d keys, %d revocations refused", len(issued), refused)
	}
	for key, ids := range issued {
		if len(ids) != 1 {
			t.Errorf("%s gave %d certificates", key, len(ids))
		}
		for id := range ids {
			if passed[id] != 1 {
				t.Errorf("%s was revoked %d times", key, passed[id])
			}
		}
	}
	if n := a.count(`SELECT COUNT(DISTINCT change) FROM revocation WHERE change BETWEEN 1 AND $1`, int64(certificates)); n != certificates {
		t.Errorf("%d change numbers", n)
	}
	findings, done, err := a.audit.Verify(ctx, audit.Evidence{})
	if err != nil || len(findings) > 0 || done.Chains != 2 {
		t.Errorf("audit: %v in %+v, %v", findings, done, err)
	}
	if findings, _, err := other.Check(ctx, 1); err != nil || len(findings) > 0 {
		t.Errorf("records: %v, %v", findings, err)
	}
}

// TestIssuerOfAnotherNodeIsChanged: a node that looked at the issuers a moment ago knows, when one is to be changed, those that another
// node has made since.
func TestIssuerOfAnotherNodeIsChanged(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newStores(t, d), context.Background()
		log := must[*audit.Log](t)(audit.New(d, "n2"))
		other := New(Options{DB: d, Keys: a.keys, Profiles: profile.New(d, log), Settings: settings.New(d, log), Audit: log})
		must[[]*Issuer](t)(other.Issuers(ctx))
		_, _, again := importedSub(t, a)
		i := must[*Issuer](t)(other.RenewIssuer(ctx, admin(), RenewSpec{Issuer: "oldsub", Answer: []*x509.Certificate{again(3 * year)}}))
		if i.Name != "oldsub" {
			t.Errorf("renewed is %s", i.Name)
		}
	})
}
