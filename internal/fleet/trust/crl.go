package trust

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// maxCRL bounds the CRL of a foreign anchor: it is read whole, and every agent fetches it.
const maxCRL = 8 << 20

// AddCRL brings in a CRL of a trust anchor, or an issuer below one, that is none of the authority's: complete, signed by it, in
// force, and not older than the one before. It may be in PEM or DER.
func (s *Service) AddCRL(ctx context.Context, by access.Principal, name, id string, input []byte, call once.Call) error {
	if err := by.May(access.ManagePools); err != nil {
		return err
	}
	if err := s.addCRL(ctx, by, name, id, input, call); err != nil {
		return fmt.Errorf("bring in a CRL for trust entry %.80s of pool %s: %w", id, name, err)
	}
	return nil
}

func (s *Service) addCRL(ctx context.Context, by access.Principal, name, id string, input []byte, call once.Call) error {
	if len(input) > maxCRL {
		return fault.New(fault.TooLarge, "a CRL of %d octets is over the limit of %d", len(input), maxCRL).At("/crl")
	}
	der, err := crl.FromPEM(input)
	if err != nil {
		return err
	}
	list, err := crl.Parse(der)
	if err != nil {
		return fault.New(fault.Invalid, "the CRL is not as RFC 5280 5 wants it: %w", err).At("/crl")
	}
	if err := s.ready(ctx, name); err != nil {
		return err
	}
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := once.Act(ctx, tx, call, now, func() (once.Done, error) {
			st, err := StateOf(ctx, tx, name)
			if err != nil {
				return once.Done{}, err
			}
			e, err := find(ctx, tx, st, name, id)
			if err != nil {
				return once.Done{}, err
			}
			if err := checkList(ctx, tx, e, nameOf(issuers, e.issuer), list, now); err != nil {
				return once.Done{}, err
			}
			_, err = tx.Exec(ctx, `INSERT INTO trust_crl (entry, number, next_update, der, created_at) VALUES ($1, $2, $3, $4, $5)
				ON CONFLICT (entry) DO UPDATE SET number = excluded.number, next_update = excluded.next_update, der = excluded.der, created_at = excluded.created_at`,
				e.id, list.Number.String(), db.Micros(list.NextUpdate), der, db.Micros(now))
			if err != nil {
				return once.Done{}, fmt.Errorf("write the CRL: %w", err)
			}
			if err := touch(ctx, tx, name, now); err != nil {
				return once.Done{}, err
			}
			return once.Done{}, s.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: by.Actor(), Action: "trust.crl", Object: e.id, Detail: map[string]any{
				"pool": name, "subject": e.certificate.Subject.String(), "crlNumber": list.Number.String(), "thisUpdate": stamp(list.ThisUpdate),
				"nextUpdate": stamp(list.NextUpdate), "entries": list.Count,
			}})
		})
		return err
	})
}

// checkList judges a CRL for an entry.
func checkList(ctx context.Context, tx *db.Tx, e *entry, ours string, list *crl.List, now time.Time) error {
	switch {
	case ours != "":
		return fault.New(fault.Conflict, "%q is issuer %q of the authority, which signs its CRLs itself", e.certificate.Subject, ours).
			WithHint("chancery crl issue --issuer %s", ours)
	case e.kind == client.TrustPinned:
		return fault.New(fault.Invalid, "%q is pinned and signs no CRL; an anchor or an issuer below one does", e.certificate.Subject)
	case list.BaseNumber != nil || list.IDP != nil:
		return fault.New(fault.Invalid, "the CRL is a delta or covers only a part (RFC 5280 5.2.4, 5.2.5); consumers are given complete ones").At("/crl")
	}
	if err := list.CheckIssuer(e.certificate); err != nil {
		return at(err, "/crl")
	}
	if err := list.CheckTimes(now); err != nil {
		return at(err, "/crl")
	}
	_, known, err := readCRL(ctx, tx, e.pool, e.id)
	if err != nil || known == nil {
		return err
	}
	before, err := crl.Parse(known)
	if err != nil {
		return fmt.Errorf("read the CRL of trust entry %s: %w", e.id, err)
	}
	if list.Number.Cmp(before.Number) < 0 || list.ThisUpdate.Before(before.ThisUpdate) {
		return fault.New(fault.Conflict, "the CRL has number %s of %s, and number %s of %s is here; a newer one would pass", list.Number, stamp(list.ThisUpdate),
			before.Number, stamp(before.ThisUpdate)).At("/crl")
	}
	return nil
}

// at says where in a request a refusal lies that does not say so.
func at(err error, pointer string) error {
	if refused, ok := errors.AsType[*fault.Error](err); ok && refused.Pointer == "" {
		return refused.At(pointer)
	}
	return err
}

// readCRL returns the CRL of an entry of a pool, nil where there is none; found says whether there is the entry.
func readCRL(ctx context.Context, tx *db.Tx, pool, id string) (found bool, der []byte, err error) {
	err = tx.QueryRow(ctx, `SELECT COALESCE(c.der, $1) FROM trust_entry e LEFT JOIN trust_crl c ON c.entry = e.id WHERE e.id = $2 AND e.pool = $3`,
		[]byte{}, id, pool).Scan(&der)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil, nil
	}
	if err != nil {
		return false, nil, fmt.Errorf("read the CRL of trust entry %s: %w", id, err)
	}
	if len(der) == 0 {
		return true, nil, nil
	}
	return true, slices.Clone(der), nil
}

// CRL returns the newest CRL of an entry of a pool, for the agents of its hosts.
func (s *Service) CRL(ctx context.Context, pool, id string) (der []byte, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		_, der, err = readCRL(ctx, tx, pool, id)
		return err
	})
	if err == nil && der == nil {
		err = fault.New(fault.NotFound, "pool %q has no trust entry %.80q with a CRL", pool, id)
	}
	return der, err
}

// numbers finds the CRLs of a pool's entries: those brought in, and those of our own issuers.
func (s *Service) numbers(ctx context.Context, tx *db.Tx, pool string) (func(*entry) numbered, error) {
	foreign, err := readNumbers(ctx, tx, pool)
	if err != nil {
		return nil, err
	}
	ours, err := revocation.CurrentNumbers(ctx, tx)
	if err != nil {
		return nil, err
	}
	return func(e *entry) numbered {
		if e.issuer != "" {
			return numbered{ours[e.issuer].Number, ours[e.issuer].NextUpdate}
		}
		return foreign[e.id]
	}, nil
}

// EndingSoon is how long before its end what is trusted is worth a warning.
const EndingSoon = 30 * 24 * time.Hour

// Ending is something of a pool's trust that ends soon.
type Ending struct {
	Pool, Entry, Kind, Subject string
	Issuer                     string // the name of the issuer of ours that it is; empty where it is none
	Ends                       time.Time
	CRL                        bool // its CRL ends, and not the certificate
}

func (e Ending) String() string {
	what := map[string]string{client.TrustAnchor: "trust anchor", client.TrustIntermediate: "issuer", client.TrustPinned: "pinned certificate"}[e.Kind]
	if e.CRL {
		what = "CRL of the " + what
	}
	return fmt.Sprintf("the %s %q of pool %s ends on %s", what, e.Subject, e.Pool, e.Ends.Format(time.DateOnly))
}

// Ending are the entries that end before a time, and the CRLs that were brought in and do, the soonest first: up to limit.
func (s *Service) Ending(ctx context.Context, before time.Time, limit int) ([]Ending, error) {
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	var all []Ending
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		all = nil
		states, err := ReadStates(ctx, tx)
		if err != nil {
			return err
		}
		entries, err := readEntries(ctx, tx, `pruned_at = 0 AND not_after < $1`, db.Micros(before))
		if err != nil {
			return err
		}
		lists, err := readEntries(ctx, tx, `pruned_at = 0 AND id IN (SELECT entry FROM trust_crl WHERE next_update < $1)`, db.Micros(before))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if st := states[e.pool]; st.has(e) && !e.renewed(issuers) {
				all = append(all, ending(e, issuers))
			}
		}
		for _, e := range lists {
			numbers, err := readNumbers(ctx, tx, e.pool)
			if err != nil {
				return err
			}
			if st := states[e.pool]; st.has(e) {
				one := ending(e, issuers)
				one.CRL, one.Ends = true, numbers[e.id].nextUpdate
				all = append(all, one)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("see what of the pools' trust ends: %w", err)
	}
	slices.SortStableFunc(all, func(a, b Ending) int { return a.Ends.Compare(b.Ends) })
	return all[:min(len(all), limit)], nil
}

// renewed reports whether the entry is of a certificate that an issuer of ours had before the one that it has now.
func (e *entry) renewed(issuers []*ca.Issuer) bool {
	return slices.ContainsFunc(issuers, func(i *ca.Issuer) bool {
		return i.ID == e.issuer && i.Certificate != nil && i.Certificate.NotAfter.After(e.notAfter)
	})
}

func ending(e *entry, issuers []*ca.Issuer) Ending {
	return Ending{Pool: e.pool, Entry: e.id, Kind: e.kind, Subject: e.certificate.Subject.String(), Issuer: nameOf(issuers, e.issuer), Ends: e.notAfter}
}
