package pool

import (
	"context"
	"crypto"
	"fmt"
	"slices"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
)

// Revived is what a pool that had ended goes on with.
type Revived struct {
	Pool   string
	Issuer *ca.Issuer
	Root   *ca.Issuer    // a new one; nil where the old one goes on
	Key    crypto.Signer // of a new root that is kept offline as the old one was: the caller is the only one who has it
}

// Revive gives a pool whose issuer has ended another: under its root, where that has not ended, with the one of rootKeys that is its own where that is offline; and
// else under a new root of the same kind. It returns nil where the issuer has not ended. Names are new ones (many consumers take the
// first of two equal names), and nothing of the old ones is removed: their CRLs were the last.
func (s *Service) Revive(ctx context.Context, by access.Principal, name string, rootKeys []crypto.Signer, now time.Time) (*Revived, error) {
	p, err := s.Pool(ctx, name)
	if err != nil {
		return nil, err
	}
	all, err := s.ca.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(all, func(i *ca.Issuer) bool { return i.Pool == name && i.Default && i.Certificate != nil })
	if at < 0 || now.Before(all[at].Certificate.NotAfter) {
		return nil, nil
	}
	above := slices.IndexFunc(all, func(i *ca.Issuer) bool { return i.ID == all[at].Parent })
	if above < 0 {
		return nil, fault.New(fault.Conflict, "the issuer of pool %s ended on %s, and its root is an outside one", name,
			all[at].Certificate.NotAfter.UTC().Format(time.DateOnly)).
			WithHint("chancery issuer issue makes a request for that root, and chancery issuer import brings its answer in")
	}
	root := all[above]
	spec := Spec{Name: name, Organization: p.Organization, Online: root.KeyID != ""}
	done := &Revived{Pool: name}
	issuer := ca.IssuerSpec{Name: freeName(all, name), Pool: name, Default: true}
	issuer.Subject = spec.subject(issuer.Name + " issuer")
	switch {
	case !now.Before(root.Certificate.NotAfter):
		r := spec.root("")
		r.Name = freeName(all, RootName(name))
		r.Subject, r.Offline = spec.subject(r.Name), !spec.Online
		if done.Root, done.Key, err = s.ca.CreateIssuer(ctx, by, r); err != nil {
			return nil, fmt.Errorf("revive pool %s: %w", name, err)
		}
		root, issuer.ParentKey = done.Root, done.Key
	case !spec.Online:
		own := slices.IndexFunc(rootKeys, func(k crypto.Signer) bool { return keyfile.CheckPair(k.Public(), root.Certificate) == nil })
		if own >= 0 {
			issuer.ParentKey = rootKeys[own]
			break
		}
		return nil, fault.New(fault.Conflict, "the issuer of pool %s ended on %s, and the key of its root is offline", name,
			all[at].Certificate.NotAfter.UTC().Format(time.DateOnly)).
			WithHint("bring the file with the root's key here, and name it by --root-file")
	}
	issuer.Parent = root.ID
	if done.Issuer, _, err = s.ca.CreateIssuer(ctx, by, issuer); err != nil {
		return nil, fmt.Errorf("revive pool %s: %w", name, err)
	}
	if done.Root != nil && done.Key != nil {
		err = s.signFirstCRL(ctx, by, done.Root, done.Key)
	}
	return done, err
}

// freeName is the first of name-2, name-3 … that no issuer has.
func freeName(all []*ca.Issuer, name string) string {
	for n := 2; ; n++ {
		free := fmt.Sprintf("%s-%d", name, n)
		if !slices.ContainsFunc(all, func(i *ca.Issuer) bool { return i.Name == free }) {
			return free
		}
	}
}
