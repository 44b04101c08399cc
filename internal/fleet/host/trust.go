package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/pki/cert"
	"chancery/internal/store/db"
)

// maxSubjects bounds the revoked subjects in a trust set.
const maxSubjects = 1000

// trusts keeps the trust set of each pool, as it was when its issuers or their CRLs last changed.
type trusts struct {
	mu       sync.Mutex        // guards what follows, and lets one at a time make a set
	byPool   map[string]*trust // by the pool's name
	followed time.Time         // when Follow last looked for changes
}

// trust is what the hosts of a pool trust.
type trust struct {
	signature string // of what it was made from
	set       client.TrustSet
	hash      [sha256.Size]byte // of set
}

// followedRecently is how long ago Follow may have looked for a kept set to be handed out without a look.
const followedRecently = 2 * time.Second

// trustOf returns a pool's trust set.
func (s *Service) trustOf(ctx context.Context, of string, now time.Time) (*trust, error) {
	s.trusts.mu.Lock()
	defer s.trusts.mu.Unlock()
	known := s.trusts.byPool[of]
	// What Follow saw after the caller began is newer than he asks for, unless a clock went back.
	if age := now.Sub(s.trusts.followed); known != nil && age > -time.Minute && age < followedRecently {
		return known, nil
	}
	issuers, err := s.issuersOf(ctx, of)
	if err != nil {
		return nil, err
	}
	var numbers map[string]revocation.Numbered
	err = s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		numbers, err = revocation.CurrentNumbers(ctx, tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	if signature := sign(issuers, numbers); known == nil || known.signature != signature {
		if known, err = s.makeTrust(ctx, issuers, numbers, signature, now); err != nil {
			return nil, fmt.Errorf("make the trust set of pool %s: %w", of, err)
		}
		s.trusts.byPool[of] = known
	}
	return known, nil
}

// sign says from what a trust set is made: when it is the same, so is the set.
func sign(issuers []*ca.Issuer, numbers map[string]revocation.Numbered) string {
	var b bytes.Buffer
	for _, i := range issuers {
		sum := sha256.Sum256(i.Certificate.Raw)
		fmt.Fprintf(&b, "%s %x %s %t %s\n", i.Name, sum, i.State, i.Default, numbers[i.ID].Number)
	}
	return b.String()
}

// issuersOf are the issuers of a pool that have a certificate, by name.
func (s *Service) issuersOf(ctx context.Context, of string) ([]*ca.Issuer, error) {
	all, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(i *ca.Issuer) bool { return i.Pool != of || i.Certificate == nil })
	sort.Slice(all, func(a, b int) bool { return all[a].Name < all[b].Name })
	return all, nil
}

func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, c.RawSubject) }

// anchors are the roots above a pool's issuers: that of the default issuer first. A retired issuer's root stays, since there
// are certificates under it.
func anchors(issuers []*ca.Issuer) []*x509.Certificate {
	var roots []*x509.Certificate
	take := func(i *ca.Issuer) {
		for _, c := range append([]*x509.Certificate{i.Certificate}, i.Chain...) {
			if selfIssued(c) && !slices.ContainsFunc(roots, c.Equal) {
				roots = append(roots, c)
			}
		}
	}
	for _, i := range issuers {
		if i.Default {
			take(i)
		}
	}
	for _, i := range issuers {
		take(i)
	}
	return roots
}

func (s *Service) makeTrust(ctx context.Context, issuers []*ca.Issuer, numbers map[string]revocation.Numbered, signature string,
	now time.Time) (*trust, error) {
	t := &trust{signature: signature}
	var there []*x509.Certificate
	for _, i := range issuers {
		n := numbers[i.ID]
		t.set.Issuers = append(t.set.Issuers, client.TrustIssuer{
			Name: i.Name, PEM: encode("CERTIFICATE", i.Certificate.Raw), CRLNumber: n.Number, NextUpdate: n.NextUpdate,
		})
		there = append(there, i.Certificate)
	}
	for _, i := range issuers {
		for _, c := range i.Chain { // of an outside root, whose CRLs are not ours
			if !slices.ContainsFunc(there, c.Equal) {
				there = append(there, c)
				t.set.Issuers = append(t.set.Issuers, client.TrustIssuer{PEM: encode("CERTIFICATE", c.Raw)})
			}
		}
	}
	for i, root := range anchors(issuers) {
		t.set.Anchors = append(t.set.Anchors, encode("CERTIFICATE", root.Raw))
		if name, err := cert.ParseNameDER(root.RawSubject); err == nil && i == 0 {
			if cn := name.Attributes(cert.OIDCommonName); len(cn) > 0 {
				t.set.Authority = cn[len(cn)-1]
			}
		}
	}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		t.set.RevokedSubjects = nil
		for _, i := range issuers {
			left := maxSubjects - len(t.set.RevokedSubjects)
			if left == 0 {
				break
			}
			subjects, err := ca.RevokedSubjects(ctx, tx, i, now, left)
			if err != nil {
				return err
			}
			t.set.RevokedSubjects = append(t.set.RevokedSubjects, subjects...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(t.set)
	if err != nil {
		return nil, err
	}
	t.hash = sha256.Sum256(text)
	return t, nil
}
