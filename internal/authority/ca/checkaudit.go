package ca

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"time"

	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// The events that CheckAudit holds the records against.
const (
	actionIssue   = "certificate.issue"
	actionRevoke  = "certificate.revoke"
	actionHold    = "certificate.hold"
	actionRelease = "certificate.release"
	actionPrune   = "certificate.prune"
	actionImport  = "certificate.import"
)

// AuditChecked says how much CheckAudit looked at.
type AuditChecked struct {
	Issued   int64 // certificates that the audit says were issued here, or brought
	Statuses int64 // certificates that were revoked, held or released
}

// told is what CheckAudit needs of an event's detail.
type told struct {
	Certificate int64     `json:"certificate"`
	SHA256      string    `json:"sha256"`
	NotAfter    time.Time `json:"notAfter"`
	Reason      string    `json:"reason"`
	EndedBefore time.Time `json:"endedBefore"`

	Brought []brought `json:"brought"` // by an import
}

// course is what the audit says of one certificate's state.
type course struct {
	serial  [20]byte // to name it with, should its row be gone
	reason  int8     // of the revocation
	last    byte     // the last event: 'r', 'h' or 'l' for a release
	revoked bool
	issued  bool  // how it began is in the audit too
	held    int32 // holds less releases
}

// auditChecker is a run of CheckAudit.
type auditChecker struct {
	checker
	courses map[int64]*course
	pruned  time.Time       // what ended before may be gone
	named   []int64         // the IDs of certificates that events name
	renewed map[string]told // what each issuer was renewed to last, by its ID: a renewal ends later than the one before
	seen    AuditChecked
}

// CheckAudit holds the records against the audit, which nobody can change unseen: each certificate that it says was issued or
// brought is here, with the octets that it names, unless it was pruned; none is here that it does not name; what was revoked,
// held or released last is in that state, for that reason, and a compromised key is blocked. So a revocation that was deleted
// shows, although the records that are left agree with each other.
//
// Of what was there before the events that the audit has pruned it says nothing, either way. It reads one state of the
// database as a stream; in memory are 8 octets for each certificate, and a note of some 60 for each that was ever revoked or
// held.
func (c *CA) CheckAudit(ctx context.Context) ([]Finding, AuditChecked, error) {
	k := &auditChecker{checker: checker{c: c}, courses: map[int64]*course{}, renewed: map[string]told{}}
	err := c.db.ReadSnapshot(ctx, func(tx *db.Tx) error {
		if err := k.readCourses(ctx, tx); err != nil {
			return err
		}
		for _, action := range []string{actionIssue, actionImport, "issuer."} {
			if err := k.issuances(ctx, tx, action); err != nil {
				return err
			}
		}
		if err := k.renewals(ctx, tx); err != nil {
			return err
		}
		if err := k.states(ctx, tx); err != nil {
			return err
		}
		return k.unnamed(ctx, tx)
	})
	if err != nil {
		return nil, k.seen, fmt.Errorf("hold certificates against the audit: %w", err)
	}
	return k.findings, k.seen, nil
}

// readCourses notes what became of each certificate. Its events are in the order of their times, and in that of the commits
// where one node wrote them; where two nodes did, a revocation counts whenever it was, since nothing ends it.
func (k *auditChecker) readCourses(ctx context.Context, tx *db.Tx) error {
	for e, err := range audit.Each(ctx, tx, audit.Filter{Action: "certificate."}) {
		if err != nil {
			return err
		}
		var kind byte
		switch e.Action {
		case actionRevoke:
			kind = 'r'
		case actionHold:
			kind = 'h'
		case actionRelease:
			kind = 'l'
		case actionPrune, actionImport:
		default:
			continue
		}
		d, ok := k.detail(e)
		if !ok {
			continue
		}
		switch {
		case kind != 0:
			k.note(e.Object, d, kind)
		case e.Action == actionImport:
			k.begin(d.Brought)
		case d.EndedBefore.After(k.pruned):
			k.pruned = d.EndedBefore
		}
	}
	k.seen.Statuses = int64(len(k.courses))
	return nil
}

func (k *auditChecker) detail(e audit.Event) (d told, ok bool) {
	raw, _ := e.Detail.(json.RawMessage)
	if err := json.Unmarshal(raw, &d); err != nil {
		k.tell(e.Object, "the audit event %s/%d (%s) cannot be read: %v", e.Node, e.Seq, e.Action, err)
		return d, false
	}
	return d, true
}

// begin notes those that were revoked or on hold when they came.
func (k *auditChecker) begin(certificates []brought) {
	for _, b := range certificates {
		switch b.Reason {
		case "":
		case crl.CertificateHold.String():
			k.note(b.Serial, told{Certificate: b.Certificate}, 'h')
		default:
			k.note(b.Serial, told{Certificate: b.Certificate, Reason: b.Reason}, 'r')
		}
	}
}

func (k *auditChecker) note(serial string, d told, kind byte) {
	c := k.courses[d.Certificate]
	if c == nil {
		c = &course{}
		if serial, err := cert.ParseSerial(serial); err == nil && serial.BitLen() <= 8*len(c.serial) {
			serial.FillBytes(c.serial[:])
		}
		k.courses[d.Certificate] = c
	}
	c.last = kind
	switch kind {
	case 'h':
		c.held++
	case 'l':
		c.held--
	case 'r':
		// A reason may become keyCompromise, and no other after that.
		if reason, err := crl.ParseReason(d.Reason); err == nil && !(c.revoked && crl.Reason(c.reason) == crl.KeyCompromise) {
			c.reason = int8(reason)
		}
		c.revoked = true
	}
}

// state is the one that a certificate must be in.
func (c *course) state() State {
	switch {
	case c.revoked:
		return Revoked
	case c.issued && c.held > 0, !c.issued && c.last == 'h':
		return Held
	}
	return Valid
}

func (c *course) wanted() (State, crl.Reason) {
	switch state := c.state(); state {
	case Revoked:
		return state, crl.Reason(c.reason)
	case Held:
		return state, crl.CertificateHold
	default:
		return state, 0
	}
}

// issuance is a certificate as an event names it.
type issuance struct {
	told
	serial string
}

// lookedUp is how many rows are looked up at once.
const lookedUp = 200

// issuances looks for each certificate that events of an action name.
func (k *auditChecker) issuances(ctx context.Context, tx *db.Tx, action string) error {
	part := make([]issuance, 0, lookedUp)
	for e, err := range audit.Each(ctx, tx, audit.Filter{Action: action}) {
		if err != nil {
			return err
		}
		d, ok := k.detail(e)
		if !ok {
			continue
		}
		if e.Action == actionRenew && d.NotAfter.After(k.renewed[e.Object].NotAfter) {
			k.renewed[e.Object] = d
		}
		switch {
		case action == actionImport:
			for _, b := range d.Brought {
				part = append(part, issuance{told{Certificate: b.Certificate, SHA256: b.SHA256, NotAfter: b.NotAfter}, b.Serial})
			}
		case d.Certificate == 0: // of an issuer whose certificate is not in an inventory here
		case action == actionIssue:
			part = append(part, issuance{d, e.Object})
		default:
			part = append(part, issuance{d, ""})
		}
		if len(part) >= lookedUp {
			if err := k.look(ctx, tx, part); err != nil {
				return err
			}
			part = part[:0]
		}
	}
	return k.look(ctx, tx, part)
}

// renewals holds the certificate of each issuer that was renewed against the one that the audit says it was renewed to last.
func (k *auditChecker) renewals(ctx context.Context, tx *db.Tx) error {
	if len(k.renewed) == 0 {
		return nil
	}
	all, err := readIssuers(ctx, tx, "")
	if err != nil {
		return err
	}
	for _, i := range all {
		if last := k.renewed[i.ID].SHA256; last != "" && i.Certificate != nil && digestOf(i.Certificate) != last {
			k.tell(i.Name, "replaced: the issuer's certificate has SHA-256 %.16s…, and the audit says that it was renewed to %.16s…", digestOf(i.Certificate), last)
		}
	}
	return nil
}

func (k *auditChecker) look(ctx context.Context, tx *db.Tx, part []issuance) error {
	ids := make([]any, len(part))
	for i, named := range part {
		ids[i] = named.Certificate
		k.named = append(k.named, named.Certificate)
	}
	rows, err := recordsByIDs(ctx, tx, ids)
	if err != nil {
		return err
	}
	for _, named := range part {
		k.seen.Issued++
		r := rows[named.Certificate]
		c := k.courses[named.Certificate]
		if c != nil {
			c.issued = true
		}
		if r == nil {
			if !named.NotAfter.Before(k.pruned) {
				k.tell(named.serial, "missing: the audit says that certificate %d was issued (SHA-256 %.16s…), and it is neither here nor pruned",
					named.Certificate, named.SHA256)
			}
			delete(k.courses, named.Certificate) // which says all
			continue
		}
		if got := r.digest(); got != named.SHA256 {
			k.tell(cert.FormatSerial(r.Serial), "replaced: the certificate has SHA-256 %.16s…, and the audit says that %.16s… was issued", got, named.SHA256)
		}
		if c == nil && r.State != Valid {
			k.tell(cert.FormatSerial(r.Serial), "state: the certificate is %s, and the audit does not say so", r.State)
		}
	}
	return nil
}

// unnamed finds the certificates that no event names: somebody put them there who can write to the database.
func (k *auditChecker) unnamed(ctx context.Context, tx *db.Tx) error {
	since, err := audit.PrunedBefore(ctx, tx)
	if err != nil {
		return err
	}
	slices.Sort(k.named)
	after := int64(0)
	if !since.IsZero() {
		after = firstID(since)
	}
	for after >= 0 && len(k.findings) < maxFindings {
		if after, err = k.unnamedPage(ctx, tx, after); err != nil {
			return fmt.Errorf("look for certificates that the audit does not name: %w", err)
		}
	}
	return nil
}

// unnamedPage looks at the certificates after an ID, and returns the last it saw, -1 at the end.
func (k *auditChecker) unnamedPage(ctx context.Context, tx *db.Tx, after int64) (int64, error) {
	rows, err := tx.Query(ctx, `SELECT id, serial, subject FROM certificate WHERE id > $1 ORDER BY id LIMIT $2`, after, int64(maxPage))
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		var serial []byte
		var subject string
		if err := rows.Scan(&after, &serial, &subject); err != nil {
			return 0, err
		}
		if _, found := slices.BinarySearch(k.named, after); !found {
			k.tell(cert.FormatSerial(new(big.Int).SetBytes(serial)), "unnamed: a certificate for %q is here, and the audit says neither that it was "+
				"issued nor that it was brought", subject)
		}
	}
	if n < maxPage {
		after = -1
	}
	return after, rows.Err()
}

// recordsByIDs reads some certificates.
func recordsByIDs(ctx context.Context, tx *db.Tx, ids []any) (map[int64]*record, error) {
	found := map[int64]*record{}
	if len(ids) == 0 {
		return found, nil
	}
	rows, err := tx.Query(ctx, `SELECT `+certificateColumns+certificateFrom+` WHERE c.id IN (`+values(len(ids), "?")+`)`, ids...)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	all, err := collect(rows)
	for _, r := range all {
		found[r.ID] = r
	}
	return found, err
}

// states compares the state of each certificate that has events of it.
func (k *auditChecker) states(ctx context.Context, tx *db.Tx) error {
	ids := make([]any, 0, lookedUp)
	for id := range k.courses {
		if ids = append(ids, id); len(ids) == lookedUp {
			if err := k.compare(ctx, tx, ids); err != nil {
				return err
			}
			ids = ids[:0]
		}
	}
	return k.compare(ctx, tx, ids)
}

func (k *auditChecker) compare(ctx context.Context, tx *db.Tx, ids []any) error {
	rows, err := recordsByIDs(ctx, tx, ids)
	if err != nil {
		return err
	}
	for _, id := range ids {
		c, r := k.courses[id.(int64)], rows[id.(int64)]
		state, reason := c.wanted()
		if r == nil {
			// Without its issuance nobody knows when it ended; after a pruning it may have been removed.
			if k.pruned.IsZero() {
				k.tell(c.name(), "missing: the audit says that the certificate is %s, and it is not here", state)
			}
			continue
		}
		serial := cert.FormatSerial(r.Serial)
		switch {
		case r.State != state:
			k.tell(serial, "state: the certificate is %s, and the audit says that it is %s", r.State, state)
		case state != Valid && r.Revocation.Reason != reason:
			k.tell(serial, "reason: the certificate is %s for %s, and the audit says %s", state, r.Revocation.Reason, reason)
		}
		if c.revoked && crl.Reason(c.reason) == crl.KeyCompromise && len(r.DER) > 0 {
			var n int64
			sum := sha256.Sum256(r.PublicKey())
			err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM compromised_key WHERE spki = $1`, sum[:]).Scan(&n)
			if err != nil {
				return fmt.Errorf("look for the key among compromised ones: %w", err)
			}
			if n == 0 {
				k.tell(serial, "unblocked: the certificate was revoked for keyCompromise, and its key is not among the blocked ones")
			}
		}
	}
	return nil
}

func (c *course) name() string { return cert.FormatSerial(new(big.Int).SetBytes(c.serial[:])) }

// entered adds to the detail of an issuer's event which certificate of it entered the inventory, as an issuance says it.
func (c *Certificate) entered(detail map[string]any) map[string]any {
	if c != nil {
		detail["certificate"], detail["sha256"], detail["notAfter"] = c.ID, c.digest(), utc(c.NotAfter)
	}
	return detail
}

// digest is the SHA-256 by which the audit names a certificate; of its subject, where only the record of it is left.
func (c *Certificate) digest() string {
	octets := c.DER
	if len(octets) == 0 {
		octets = []byte(c.Subject)
	}
	sum := sha256.Sum256(octets)
	return hex.EncodeToString(sum[:])
}
