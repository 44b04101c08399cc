package revocation

import (
	"context"
	"fmt"
	"math/big"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// maxUpload bounds an uploaded list. It is read whole, and the list of an offline root is short.
const maxUpload = 8 << 20

func offline(issuer *ca.Issuer) error {
	return fault.New(fault.Conflict, "the key of issuer %s is not in the store, so its CRL is signed where the key is",
		issuer.Name).
		WithHint("chancery crl issue --issuer %s --key-file F", issuer.Name)
}

// Draft is what a list that is signed elsewhere has to say.
type Draft struct {
	Issuer     *ca.Issuer
	Number     *big.Int
	ThisUpdate time.Time
	NextUpdate time.Time
	Entries    []byte // encoded, one behind the other
}

// Spec is the draft in the form that crl.Write takes.
func (d *Draft) Spec() *crl.Spec {
	return &crl.Spec{Issuer: d.Issuer.Certificate, ThisUpdate: d.ThisUpdate, NextUpdate: d.NextUpdate, Number: d.Number}
}

// Draft says what the next complete list of an issuer with an offline key has to say, for the program that has the key.
func (s *Service) Draft(ctx context.Context, by access.Principal, nameOrID string) (*Draft, error) {
	if err := by.May(access.IssueCRL); err != nil {
		return nil, err
	}
	issuer, err := s.ca.Issuer(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	if issuer.Certificate == nil {
		return nil, fault.New(fault.Conflict, "issuer %s waits for its certificate", issuer.Name)
	}
	set, err := s.settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	d := &Draft{Issuer: issuer, ThisUpdate: now, NextUpdate: now.Add(set.CRL.OfflineValidity.Std())}
	err = s.db.ReadSnapshot(ctx, func(tx *db.Tx) error {
		last, err := lastNumber(ctx, tx, issuer.ID)
		if err != nil {
			return err
		}
		d.Number = nextNumber(last, now)
		src, err := wholeSource(ctx, tx, issuer, allPartitions(issuer))
		if err != nil {
			return err
		}
		if src.octets > maxUpload/2 {
			return fault.New(fault.TooLarge, "the entries of issuer %s are %d octets, over the %d of a list that is signed "+
				"elsewhere", issuer.Name, src.octets, maxUpload/2)
		}
		d.Entries = d.Entries[:0]
		for entry, err := range src.entries(ctx, tx, issuer) {
			if err != nil {
				return err
			}
			d.Entries = append(d.Entries, entry...)
		}
		return nil
	})
	return d, err
}

// Upload publishes a complete list that was signed elsewhere, in PEM or DER. It must be the issuer's, in force, newer than
// all before it, and must not leave out what is revoked here. Its CRLNumber is the answer that is kept for a repeated call.
func (s *Service) Upload(ctx context.Context, by access.Principal, nameOrID string, input []byte, call once.Call) (*List, error) {
	now := time.Now()
	if err := by.May(access.IssueCRL); err != nil {
		return nil, err
	}
	issuer, err := s.ca.Issuer(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	if len(input) > maxUpload {
		return nil, fault.New(fault.TooLarge, "a CRL of %d octets is over the limit of %d", len(input), maxUpload)
	}
	der, err := crl.FromPEM(input)
	if err != nil {
		return nil, err
	}
	parsed, err := crl.Parse(der)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the CRL is not as RFC 5280 §5 wants it: %w", err)
	}
	if issuer.Certificate == nil {
		return nil, fault.New(fault.Conflict, "issuer %s waits for its certificate", issuer.Name)
	}
	if err := parsed.CheckIssuer(issuer.Certificate); err != nil {
		return nil, err
	}
	if err := parsed.CheckTimes(now); err != nil {
		return nil, err
	}
	if parsed.BaseNumber != nil || parsed.IDP != nil {
		return nil, fault.New(fault.Invalid, "the CRL is a delta or covers only a part; a complete one is needed")
	}
	l := &List{
		ID: db.NewID(), Issuer: issuer.ID, Scope: Complete, Current: true, Number: parsed.Number,
		ThisUpdate: parsed.ThisUpdate, NextUpdate: parsed.NextUpdate, Entries: int64(parsed.Count), Size: int64(len(der)),
		scheduled: db.Micros(parsed.ThisUpdate),
	}
	l.head, l.tail = frameOf(parsed)
	w := &chunkWriter{ctx: ctx, s: s, list: l, buffer: parsed.RawTBS}
	w.fence = func(ctx context.Context, tx *db.Tx) error { return l.coverRecords(ctx, tx, issuer, parsed) }
	var number string
	err = s.db.Tx(ctx, func(tx *db.Tx) (err error) {
		number, err = once.Act(ctx, tx, call, now, func() (string, error) {
			return l.Number.String(), s.publishOne(ctx, tx, by.Actor(), now, w)
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	if number != l.Number.String() {
		return nil, fmt.Errorf("the answer that was kept names CRL %s, and %v was uploaded", number, l.Number)
	}
	return l, nil
}

// frameOf cuts a list into what stands before and after its TBSCertList.
func frameOf(parsed *crl.List) (head, tail []byte) {
	size := len(parsed.Raw)
	for n := 2; n <= 6; n++ { // tag and length
		if size >= n+len(parsed.RawTBS) && string(parsed.Raw[n:n+len(parsed.RawTBS)]) == string(parsed.RawTBS) {
			return parsed.Raw[:n], parsed.Raw[n+len(parsed.RawTBS):]
		}
	}
	return nil, nil // not reached: Parse found it there
}

// coverRecords holds an uploaded list against the records, in the transaction that publishes it.
func (l *List) coverRecords(ctx context.Context, tx *db.Tx, issuer *ca.Issuer, parsed *crl.List) error {
	if err := raiseNumber(ctx, tx, issuer.ID, l.Number); err != nil {
		return err
	}
	changes, err := ca.LastChanges(ctx, tx)
	if err != nil {
		return err
	}
	l.change = changes[issuer.ID]
	listed := make(map[string]bool, parsed.Count)
	for e, err := range parsed.Entries() {
		if err != nil {
			return err
		}
		listed[string(e.Serial.Bytes())] = true
	}
	revoked := ca.Changes{Partition: -1, States: []ca.State{ca.Revoked, ca.Held}, NotBefore: l.ThisUpdate}
	for changed, err := range ca.EachChange(ctx, tx, issuer, revoked) {
		if err != nil {
			return err
		}
		e, err := crl.ParseEntry(changed.Entry)
		if err != nil {
			return fmt.Errorf("read the stored entry of change %d: %w", changed.Change, err)
		}
		if !listed[string(e.Serial.Bytes())] {
			return fault.New(fault.Conflict, "the CRL leaves out serial %x, which is revoked", e.Serial).
				WithHint("chancery crl issue --issuer %s --key-file F", issuer.Name)
		}
	}
	return nil
}
