package trust

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// Entries lists what the hosts of a pool trust, or are about to, or are about to no longer, by purpose; and the certificates
// that placements announced to those who pin them.
func (s *Service) Entries(ctx context.Context, by access.Principal, name string) ([]client.TrustEntry, error) {
	if err := by.May(access.ReadPools); err != nil {
		return nil, err
	}
	if err := s.ready(ctx, name); err != nil {
		return nil, err
	}
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	var out []client.TrustEntry
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		out = nil
		st, err := StateOf(ctx, tx, name)
		if err != nil {
			return err
		}
		entries, err := readEntries(ctx, tx, `pool = $1 AND pruned_at = 0`, name)
		if err != nil {
			return err
		}
		numbers, err := s.numbers(ctx, tx, name)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if st.has(e) {
				out = append(out, e.wire(st, nameOf(issuers, e.issuer), numbers(e)))
			}
		}
		waiting, err := s.announcements(ctx, tx, name)
		out = append(out, waiting...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list what pool %s trusts: %w", name, err)
	}
	slices.SortStableFunc(out, func(a, b client.TrustEntry) int {
		if a.Purpose == b.Purpose {
			return 0
		}
		if a.Purpose == client.TrustGeneral || b.Purpose != client.TrustGeneral && a.Purpose < b.Purpose {
			return -1
		}
		return 1
	})
	return out, nil
}

func nameOf(issuers []*ca.Issuer, id string) string {
	if i := slices.IndexFunc(issuers, func(i *ca.Issuer) bool { return i.ID == id }); i >= 0 && id != "" {
		return issuers[i].Name
	}
	return ""
}

// ready refuses pools that are not there or are of identities, and sees that the pool's issuers are in its trust.
func (s *Service) ready(ctx context.Context, name string) error {
	if name == pool.Identity {
		return fault.New(fault.Invalid, "the pool %q is of identities, which no consumer is to meet; it has no trust set", name).WithHint("chancery pool list")
	}
	if _, err := s.Pools.Pool(ctx, name); err != nil {
		return err
	}
	_, err := s.Present(ctx, name, time.Now())
	return err
}

// Find returns an entry of a pool by its ID or the fingerprint of its certificate.
func (s *Service) Find(ctx context.Context, name, idOrFingerprint string) (client.TrustEntry, error) {
	if err := s.ready(ctx, name); err != nil {
		return client.TrustEntry{}, err
	}
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return client.TrustEntry{}, err
	}
	var out client.TrustEntry
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		st, err := StateOf(ctx, tx, name)
		if err != nil {
			return err
		}
		e, err := find(ctx, tx, st, name, idOrFingerprint)
		if err != nil {
			return err
		}
		numbers, err := s.numbers(ctx, tx, name)
		if err != nil {
			return err
		}
		out = e.wire(st, nameOf(issuers, e.issuer), numbers(e))
		return nil
	})
	return out, err
}

// Add adds certificates to what the hosts of a pool trust, all at once or none, and returns their entries. What is trusted
// already stays as it is; where that is all of them it is a Conflict.
func (s *Service) Add(ctx context.Context, by access.Principal, name string, in client.AddTrustRequest, call once.Call) ([]client.TrustEntry, error) {
	if err := by.May(access.ManagePools); err != nil {
		return nil, err
	}
	added, err := s.add(ctx, by, name, in, call)
	if err != nil {
		return nil, fmt.Errorf("add to what pool %s trusts: %w", name, err)
	}
	return added, nil
}

func (s *Service) add(ctx context.Context, by access.Principal, name string, in client.AddTrustRequest, call once.Call) ([]client.TrustEntry, error) {
	if in.Purpose == "" {
		in.Purpose = client.TrustGeneral
	}
	if err := checkPurpose(in.Purpose); err != nil {
		return nil, err
	}
	if err := checkComment(in.Comment); err != nil {
		return nil, err
	}
	certificates, err := parseBundle(in.PEM)
	if err != nil {
		return nil, err
	}
	if err := s.ready(ctx, name); err != nil {
		return nil, err
	}
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	var ids []string
	err = s.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		ids, err = once.Act(ctx, tx, call, now, func() ([]string, error) {
			return s.addIn(ctx, tx, by, name, in, certificates, issuers, now)
		})
		if err != nil {
			return err
		}
		pinned, err := pinnedFor(ctx, tx, name, in.Purpose)
		if len(pinned) > MostPinned {
			return fault.New(fault.TooLarge, "%d certificates would be pinned for %s; at most %d pass", len(pinned), in.Purpose, MostPinned)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.Named(ctx, name, ids)
}

// Named are the entries of a pool with these IDs, in their order; those that were pruned meanwhile are left out.
func (s *Service) Named(ctx context.Context, name string, ids []string) ([]client.TrustEntry, error) {
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	out := []client.TrustEntry{}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		st, err := StateOf(ctx, tx, name)
		if err != nil {
			return err
		}
		all, err := readEntries(ctx, tx, `pool = $1 AND pruned_at = 0`, name)
		if err != nil {
			return err
		}
		numbers, err := s.numbers(ctx, tx, name)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if i := slices.IndexFunc(all, func(e *entry) bool { return e.id == id }); i >= 0 {
				out = append(out, all[i].wire(st, nameOf(issuers, all[i].issuer), numbers(all[i])))
			}
		}
		return nil
	})
	return out, err
}

// addIn adds in a transaction.
func (s *Service) addIn(ctx context.Context, tx *db.Tx, by access.Principal, name string, in client.AddTrustRequest, certificates []*x509.Certificate,
	issuers []*ca.Issuer, now time.Time) ([]string, error) {
	st, err := unclaimed(ctx, tx, name)
	if err != nil {
		return nil, err
	}
	all, err := readEntries(ctx, tx, `pool = $1 AND pruned_at = 0`, name)
	if err != nil {
		return nil, err
	}
	j := &judge{pool: name, purpose: in.Purpose, issuers: issuers, now: now, among: certificates}
	for _, e := range all {
		if e.purpose == in.Purpose && st.has(e) {
			j.there = append(j.there, e)
		}
	}
	var add []*entry
	var known string
	var wrong []error
	for _, c := range certificates {
		if err := ca.CheckKey(ctx, tx, c.RawSubjectPublicKeyInfo); err != nil {
			if refusal, ok := errors.AsType[*fault.Error](err); ok {
				err = refusal.WithHint("chancery pool trust add POOL F, with a certificate of another key")
			}
			return nil, fmt.Errorf("%q: %w", c.Subject, err)
		}
		kind := client.TrustPinned
		if in.Pinned {
			err = j.pinned(c)
		} else {
			kind, err = j.authority(c)
		}
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		e := newEntry(name, in.Purpose, kind, "", c, in.Comment, now)
		for _, i := range issuers {
			if i.Pool == name && i.Certificate != nil && i.Certificate.Equal(c) {
				e.issuer = i.ID
			}
		}
		if there := slices.IndexFunc(j.there, e.same); there >= 0 {
			known = fmt.Sprintf("%q is trusted already, as entry %s", c.Subject, j.there[there].id)
			if of := nameOf(issuers, e.issuer); of != "" {
				known = fmt.Sprintf("%q is issuer %q of this pool, which is trusted since it came to be (entry %s)", c.Subject, of, j.there[there].id)
			}
			continue
		}
		add = append(add, e)
	}
	if err := together(wrong, len(certificates)); err != nil {
		return nil, err
	}
	if len(add) == 0 {
		return nil, fault.New(fault.Conflict, "%s", known).At("/pem").WithHint("chancery pool trust list %s", name)
	}
	if n := len(j.there) + len(add); n > maxEntries {
		return nil, fault.New(fault.TooLarge, "pool %q would trust %d certificates for purpose %s; at most %d pass", name, n, in.Purpose, maxEntries).At("/pem")
	}
	version, err := stage(ctx, tx, name, st, all, add, func(*entry) bool { return false }, now)
	if err != nil {
		return nil, err
	}
	if err := s.Adopt(ctx, tx, name, version); err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range add {
		ids = append(ids, e.id)
		err := s.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: by.Actor(), Action: "trust.add", Object: e.id, Detail: map[string]any{
			"pool": name, "purpose": e.purpose, "kind": e.kind, "subject": e.certificate.Subject.String(), "fingerprint": e.fingerprint, "version": version,
			"comment": e.comment,
		}})
		if err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// together is one refusal for several: a bundle is mended at once, and not once for each certificate.
func together(wrong []error, of int) error {
	if len(wrong) < 2 {
		return errors.Join(wrong...)
	}
	var texts []string
	for _, err := range wrong[:min(len(wrong), 2*maxNamed)] {
		texts = append(texts, err.Error())
	}
	text := strings.Join(texts, "; ")
	if len(wrong) > len(texts) {
		text += "; and more"
	}
	return fault.New(fault.KindOf(wrong[0]), "of %d certificates, %d are refused, and nothing is added: %s", of, len(wrong), text).At("/pem")
}

// unclaimed is the state of a pool on which no rollout works.
func unclaimed(ctx context.Context, tx *db.Tx, name string) (State, error) {
	st, _, err := readState(ctx, tx, name)
	if err == nil && st.Rollout != "" {
		err = claimed(name, st)
	}
	return st, err
}

// Drop takes an entry out of what the hosts of a pool trust. Where hosts present certificates under it, or there are good ones
// that nothing replaced, it is refused, and they are named, unless a reason is given why that is meant.
func (s *Service) Drop(ctx context.Context, by access.Principal, name, id string, in client.DropTrustRequest, call once.Call) error {
	if err := by.May(access.ManagePools); err != nil {
		return err
	}
	if err := s.drop(ctx, by, name, id, strings.TrimSpace(in.Because), call); err != nil {
		return fmt.Errorf("take trust entry %.80s out of pool %s: %w", id, name, err)
	}
	return nil
}

func (s *Service) drop(ctx context.Context, by access.Principal, name, id, because string, call once.Call) error {
	if err := s.ready(ctx, name); err != nil {
		return err
	}
	if len(because) > 500 {
		return fault.New(fault.Invalid, "a reason of %d octets is given; at most 500 pass", len(because)).At("/because")
	}
	all, err := s.CA.Issuers(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := once.Act(ctx, tx, call, now, func() (once.Done, error) {
			st, err := unclaimed(ctx, tx, name)
			if err != nil {
				return once.Done{}, err
			}
			e, err := find(ctx, tx, st, name, id)
			if err != nil {
				return once.Done{}, err
			}
			if !e.in(st.Version) {
				return once.Done{}, fault.New(fault.Conflict, "%q has left: %s, which hosts have, is without it", e.certificate.Subject, client.TrustVersion(st.Version)).
					WithHint("chancery pool trust list %s", name)
			}
			entries, err := readEntries(ctx, tx, `pool = $1 AND pruned_at = 0`, name)
			if err != nil {
				return once.Done{}, err
			}
			u := &use{pool: name, entry: e, issuers: all, entries: entries}
			held, err := s.held(ctx, tx, u, st, now)
			if err != nil {
				return once.Done{}, err
			}
			if len(held) > 0 && because == "" {
				return once.Done{}, fault.New(fault.Conflict, "%q is in use: %s", e.certificate.Subject, strings.Join(held, "; ")).
					WithHint("chancery rollout start rotates away from it without breaking a connection; --because TEXT drops it all the same")
			}
			version, err := stage(ctx, tx, name, st, entries, nil, func(other *entry) bool { return other.id == e.id }, now)
			if err != nil {
				return once.Done{}, err
			}
			if err := s.Adopt(ctx, tx, name, version); err != nil {
				return once.Done{}, err
			}
			detail := map[string]any{
				"pool": name, "purpose": e.purpose, "kind": e.kind, "subject": e.certificate.Subject.String(), "fingerprint": e.fingerprint, "version": version,
			}
			if because != "" {
				detail["because"], detail["inUse"] = because, held
			}
			return once.Done{}, s.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: by.Actor(), Action: "trust.drop", Object: e.id, Detail: detail})
		})
		return err
	})
}

// use is what may rely on an entry.
type use struct {
	pool    string
	entry   *entry
	issuers []*ca.Issuer // of all pools
	entries []*entry     // of the pool
}

// below are the issuers of ours whose path goes through the entry, and the fingerprints of all issuers whose does.
func (u *use) below() (ours []*ca.Issuer, fingerprints []string) {
	take := func(c *x509.Certificate) {
		if one := Fingerprint(c); !slices.Contains(fingerprints, one) {
			fingerprints = append(fingerprints, one)
		}
	}
	take(u.entry.certificate)
	for _, i := range u.issuers {
		if i.Pool == u.pool && slices.ContainsFunc(above(i), u.entry.certificate.Equal) {
			ours = append(ours, i)
			take(i.Certificate)
		}
	}
	under := []*x509.Certificate{u.entry.certificate}
	for i := 0; i < len(under); i++ { // of foreign ones the path is found by their signatures
		for _, e := range u.entries {
			if e.kind == client.TrustIntermediate && !slices.ContainsFunc(under, e.certificate.Equal) && signedBy(e.certificate, under[i]) {
				under = append(under, e.certificate)
				take(e.certificate)
			}
		}
	}
	return ours, fingerprints
}

// held says what relies on an entry: for general purposes the hosts' own certificates and what else was issued under it.
func (s *Service) held(ctx context.Context, tx *db.Tx, u *use, st State, now time.Time) ([]string, error) {
	if u.entry.kind == client.TrustPinned || u.elsewhere(st) {
		return nil, nil
	}
	ours, fingerprints := u.below()
	if u.entry.purpose != client.TrustGeneral {
		return nil, nil // the hosts' own certificates are met by the consumers of the general set
	}
	var held []string
	presented, err := s.Presenting(ctx, tx, u.pool, fingerprints, maxNamed+1)
	if err != nil {
		return nil, err
	}
	if len(presented) > 0 {
		held = append(held, "certificates under it are presented by "+naming(presented))
	}
	for _, i := range ours {
		good, more, err := ca.Unreplaced(ctx, tx, i, now, maxNamed)
		if err != nil {
			return nil, err
		}
		if len(good) > 0 {
			var names []string
			for _, c := range good {
				names = append(names, fmt.Sprintf("%s (%s, until %s)", cert.FormatSerial(c.Serial), c.Subject, stamp(c.NotAfter)))
			}
			text := fmt.Sprintf("certificates of issuer %q are good and nothing replaced them: %s", i.Name, strings.Join(names, ", "))
			if more {
				text += " and others"
			}
			held = append(held, text)
		}
		if i.State == ca.IssuerActive && i.Default {
			held = append(held, fmt.Sprintf("issuer %q is the default of the pool, and nobody would trust what it issues from now on", i.Name))
		}
	}
	return held, nil
}

// elsewhere reports whether the same certificate stays in the purpose by another entry.
func (u *use) elsewhere(st State) bool {
	return slices.ContainsFunc(u.entries, func(e *entry) bool { return e.id != u.entry.id && e.in(st.Version) && e.same(u.entry) })
}
