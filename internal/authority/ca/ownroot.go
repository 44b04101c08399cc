package ca

import (
	"context"
	"crypto/x509"
	"slices"

	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// path returns the issuer's certificate and those above it; of a pending one, none.
func (i *Issuer) path() []*x509.Certificate {
	if i.Certificate == nil {
		return nil
	}
	return append([]*x509.Certificate{i.Certificate}, i.Chain...)
}

// shares returns a certificate of the path whose key stands in the other issuer's path too. It is keys that are compared:
// what chains to one certificate of a key chains to every other one of it.
func (i *Issuer) shares(other *Issuer) *x509.Certificate {
	for _, c := range i.path() {
		same := func(o *x509.Certificate) bool {
			return string(o.RawSubjectPublicKeyInfo) == string(c.RawSubjectPublicKeyInfo)
		}
		if slices.ContainsFunc(other.path(), same) {
			return c
		}
	}
	return nil
}

// poolAbove returns the pool that an issuer belongs to by what is above it: that of the issuers it shares its path with.
// Where it shares it with none, it is DefaultPool.
func (s *issuerSet) poolAbove(i *Issuer) string {
	for _, other := range s.all {
		if i.shares(other) != nil {
			return other.Pool
		}
	}
	return DefaultPool
}

// ownRoot refuses an issuer whose path another pool has a part in. Many consumers let in whoever chains to their root, so that
// by a root which two pools share the hosts of one would be let in by the other's.
func ownRoot(ctx context.Context, tx *db.Tx, i *Issuer) error {
	all, err := readIssuers(ctx, tx, "")
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.ID == i.ID || other.Pool == i.Pool {
			continue
		}
		if shared := i.shares(other); shared != nil {
			return fault.New(fault.Conflict, "issuer %q would be of pool %q, but the key of %q is that of issuer %q of pool %q or of what is above it, "+
				"and pools share no root, since consumers let in whoever chains to theirs; pool %q would pass", i.Name, i.Pool, shared.Subject,
				other.Name, other.Pool, other.Pool)
		}
	}
	return nil
}
