package pool

import (
	"context"
	"crypto"
	"fmt"
	"slices"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
)

// Revived is what a pool that had ended goes on with.
type Revived struct {
	Pool   string
	Issuer *ca.Issuer
	Root   *ca.Issuer // a new one; nil where the old one goes on
}

// OfflineKeys are the keys of roots that are kept off this machine, while one of them is needed.
type OfflineKeys interface {
	// Make makes a key for the root of that name, and has it where it lasts before it returns: what is committed of it then is of use. For
	// the same name it gives the same key.
	Make(root string) (crypto.Signer, error)
	// Find finds the key of a root, nil where it is not at hand.
	Find(root *ca.Issuer) (crypto.Signer, error)
}

// Revive gives a pool whose issuer has ended another: under its root, where that has not ended, and else under a new root of the same
// kind. It returns nil where the issuer has not ended. Names are new ones (many consumers take the first of two equal names), and
// nothing of the old ones is removed: their CRLs were the last.
//
// The issuer comes last, after its root and that root's first CRL, so a call that was cut short is one whose issuer has ended still: the
// next one finds the root that was made, and goes on with it.
func (s *Service) Revive(ctx context.Context, by access.Principal, name string, offline OfflineKeys, now time.Time) (*Revived, error) {
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
		return nil, ended(name, all[at], "and its root is an outside one").
			WithHint("chancery issuer issue makes a request for that root, and chancery issuer import brings its answer in")
	}
	root := all[above]
	spec := Spec{Name: name, Organization: p.Organization, Online: root.KeyID != ""}
	done := &Revived{Pool: name}
	var key crypto.Signer
	if now.Before(root.Certificate.NotAfter) {
		if key, err = keyOf(offline, root); err == nil && key == nil && !spec.Online {
			err = ended(name, all[at], "and the key of its root is offline").WithHint("bring the file with the root's key here, and name it by --root-file")
		}
	} else {
		key, err = s.reviveRoot(ctx, by, &spec, all, offline, now, done)
		root = done.Root
	}
	if err != nil {
		return nil, fmt.Errorf("revive pool %s: %w", name, err)
	}
	issuer := ca.IssuerSpec{Name: freeName(all, name), Pool: name, Default: true, Parent: root.ID, ParentKey: key}
	issuer.Subject = spec.subject(issuer.Name + " issuer")
	if done.Issuer, _, err = s.ca.CreateIssuer(ctx, by, issuer); err != nil {
		return nil, fmt.Errorf("revive pool %s: %w", name, err)
	}
	return done, nil
}

func ended(pool string, issuer *ca.Issuer, why string) *fault.Error {
	return fault.New(fault.Conflict, "the issuer of pool %s ended on %s, %s", pool, issuer.Certificate.NotAfter.UTC().Format(time.DateOnly), why)
}

// keyOf is the key of a root that is kept offline; nil for one that signs here.
func keyOf(offline OfflineKeys, root *ca.Issuer) (crypto.Signer, error) {
	if root.KeyID != "" {
		return nil, nil
	}
	key, err := offline.Find(root)
	if err != nil || key == nil {
		return nil, err
	}
	return key, keyfile.CheckPair(key.Public(), root.Certificate)
}

// reviveRoot makes done.Root, with its first CRL, or takes the one that a call before made, and gives its key where that is offline.
func (s *Service) reviveRoot(ctx context.Context, by access.Principal, spec *Spec, all []*ca.Issuer, offline OfflineKeys, now time.Time,
	done *Revived) (key crypto.Signer, err error) {
	for _, i := range all {
		bears := slices.ContainsFunc(all, func(below *ca.Issuer) bool { return below.Parent == i.ID && below.ID != i.ID })
		if i.Pool != spec.Name || i.Parent != "" || i.Certificate == nil || !now.Before(i.Certificate.NotAfter) || bears || (i.KeyID != "") != spec.Online {
			continue
		}
		if key, err = keyOf(offline, i); err != nil {
			return nil, err
		}
		if key != nil || spec.Online {
			done.Root = i
			break
		}
	}
	if done.Root == nil {
		r := spec.root("")
		r.Name = freeName(all, RootName(spec.Name))
		r.Subject, r.Offline = spec.subject(r.Name), !spec.Online
		if r.Offline {
			if key, err = offline.Make(r.Name); err != nil {
				return nil, err
			}
			r.Key = key
		}
		if done.Root, _, err = s.ca.CreateIssuer(ctx, by, r); err != nil {
			return nil, err
		}
	}
	if key == nil {
		return nil, nil
	}
	if _, err := s.revocation.Current(ctx, done.Root.ID, revocation.Complete); err == nil {
		return key, nil // a call before came as far as that
	} else if !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	return key, s.signFirstCRL(ctx, by, done.Root, key)
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
