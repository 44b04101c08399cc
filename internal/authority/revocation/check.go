package revocation

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/db"
)

// CheckRule names what a CheckFinding is about.
type CheckRule string

// The rules that Check holds the lists in force against.
const (
	Unreadable CheckRule = "unreadable" // the stored octets are no CRL
	Unsigned   CheckRule = "unsigned"   // a list is not signed by its issuer
	WrongRow   CheckRule = "wrong-row"  // a row does not say what its list says
	Backwards  CheckRule = "backwards"  // a CRLNumber is above the greatest that the issuer is known to have used
	Missing    CheckRule = "missing"    // a revoked certificate is not in the list that covers it
	Surplus    CheckRule = "surplus"    // a list has an entry for what was never revoked here
)

// CheckFinding is one rule that a list in force breaks.
type CheckFinding struct {
	Issuer  string // name
	Number  string
	Rule    CheckRule
	Message string
}

// Checked says how much Check looked at.
type Checked struct {
	Lists   int
	Entries int64
}

// Check holds the lists in force against their issuers and against the record of revocations, entry by entry. Deltas are
// checked by themselves only: what they leave out is in their base. It tells what it finds, and stops when tell returns
// false. A list and its entries are in memory while it is checked.
func (s *Service) Check(ctx context.Context, tell func(CheckFinding) bool) (Checked, error) {
	var done Checked
	issuers, err := s.ca.Issuers(ctx)
	if err != nil {
		return done, err
	}
	for _, issuer := range issuers {
		if issuer.Certificate == nil {
			continue
		}
		var lists []*List
		err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
			lists, err = readLists(ctx, tx, `issuer = $1 AND state = 'current' ORDER BY scope`, issuer.ID)
			return err
		})
		if err != nil {
			return done, err
		}
		for _, l := range lists {
			goOn, err := s.checkList(ctx, issuer, l, tell, &done)
			if err != nil || !goOn {
				return done, err
			}
		}
	}
	return done, nil
}

func (s *Service) checkList(ctx context.Context, issuer *ca.Issuer, l *List, tell func(CheckFinding) bool,
	done *Checked) (goOn bool, err error) {
	goOn = true
	wrong := func(rule CheckRule, format string, args ...any) {
		goOn = goOn && tell(CheckFinding{issuer.Name, l.Number.String(), rule, fmt.Sprintf(format, args...)})
	}
	done.Lists++
	var der bytes.Buffer
	if err := s.WriteTo(ctx, &der, l); err != nil {
		wrong(Unreadable, "%v", err)
		return goOn, nil
	}
	parsed, err := crl.Parse(der.Bytes())
	if err != nil {
		wrong(Unreadable, "%v", err)
		return goOn, nil
	}
	if err := parsed.CheckIssuer(issuer.Certificate); err != nil {
		wrong(Unsigned, "%v", err)
		return goOn, nil
	}
	if parsed.Number == nil || parsed.Number.Cmp(l.Number) != 0 || !parsed.NextUpdate.Equal(l.NextUpdate) {
		wrong(WrongRow, "the list has number %v and ends %v; its row says %v and %v", parsed.Number, parsed.NextUpdate,
			l.Number, l.NextUpdate)
	}
	if l.Scope == Delta {
		return goOn, nil
	}
	return goOn, s.checkEntries(ctx, issuer, l, parsed, wrong, done)
}

// checkEntries wants every certificate that was revoked when the list was made, and did not end before, to be in it as it
// stands in the record; and nothing else.
func (s *Service) checkEntries(ctx context.Context, issuer *ca.Issuer, l *List, parsed *crl.List, wrong func(CheckRule,
	string, ...any), done *Checked) error {
	listed := map[string]string{}
	for entry, err := range parsed.Entries() {
		if err != nil {
			wrong(Unreadable, "%v", err)
			return nil
		}
		encoded, err := crl.EncodeEntry(entry)
		if err != nil {
			wrong(Unreadable, "%v", err)
			return nil
		}
		listed[string(entry.Serial.Bytes())] = string(encoded)
		done.Entries++
	}
	err := s.db.ReadSnapshot(ctx, func(tx *db.Tx) error {
		last, err := lastNumber(ctx, tx, issuer.ID)
		if err != nil {
			return err
		}
		if last == nil || last.Cmp(l.Number) < 0 {
			wrong(Backwards, "the issuer is known to have used %v at most", last)
		}
		for changed, err := range ca.EachChange(ctx, tx, issuer, ca.Changes{Partition: l.Scope.partition()}) {
			if err != nil {
				return err
			}
			entry, err := crl.ParseEntry(changed.Entry)
			if err != nil {
				continue // told by the check of the inventory
			}
			key := string(entry.Serial.Bytes())
			have, there := listed[key]
			delete(listed, key)
			due := changed.Change <= l.change && changed.State != ca.Valid && !changed.NotAfter.Before(l.ThisUpdate)
			switch {
			case due && !there:
				wrong(Missing, "%s is %s and is not in the list", cert.FormatSerial(entry.Serial), changed.State)
			case due && have != string(changed.Entry):
				wrong(WrongRow, "%s stands in the list as %s, in the record as %s", cert.FormatSerial(entry.Serial),
					hex.EncodeToString([]byte(have)),
					hex.EncodeToString(changed.Entry))
			}
		}
		return nil
	})
	if issuer.KeyID == "" {
		return err // whoever signs it elsewhere may know of more
	}
	for serial := range listed {
		wrong(Surplus, "%x is in the list and was never revoked here", serial)
	}
	return err
}
