package trust

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
)

// The states of a certificate that peers pin.
const (
	announced = "announced" // issued, and not placed until all who pin it hold it
	released  = "released"  // to be placed
	inPlace   = "placed"
)

// pinned is a row of trust_pinned.
type pinned struct {
	host, placement, serial, pool, purpose, fingerprint string
	certificate                                         *x509.Certificate
	notAfter                                            time.Time
	state                                               string
	created                                             time.Time
}

const pinnedColumns = `host, placement, serial, pool, purpose, fingerprint, certificate, not_after, state, created_at`

// A condition names a state as it is: since an index is of one state, SQLite would prepare a statement anew for each parameter.
func readPinned(ctx context.Context, tx *db.Tx, where string, args ...any) ([]*pinned, error) {
	rows, err := tx.Query(ctx, `SELECT `+pinnedColumns+` FROM trust_pinned WHERE `+where+` ORDER BY created_at, host, placement, serial`, args...)
	if err != nil {
		return nil, fmt.Errorf("read announced certificates: %w", err)
	}
	defer rows.Close()
	var all []*pinned
	for rows.Next() {
		var p pinned
		var der []byte
		var notAfter, created int64
		err := rows.Scan(&p.host, &p.placement, &p.serial, &p.pool, &p.purpose, &p.fingerprint, &der, &notAfter, &p.state, &created)
		if err != nil {
			return nil, fmt.Errorf("read announced certificates: %w", err)
		}
		if p.certificate, err = x509.ParseCertificate(slices.Clone(der)); err != nil {
			return nil, fmt.Errorf("read announced certificate %s: %w", p.serial, err)
		}
		p.notAfter, p.created = db.FromMicros(notAfter), db.FromMicros(created)
		all = append(all, &p)
	}
	return all, rows.Err()
}

// Placement is a placement of a host, as announcing concerns it.
type Placement struct {
	Host, Name string // the host's ID, and the placement's name
	Pool       string
	Purpose    string // under which its peers pin it
}

// maxAnnounced is how many certificates of one placement may wait: each re-key ends the ones before.
const maxAnnounced = 8

const (
	// MostPinned is how many certificates are pinned in a pool for one purpose: a report names as many that are held, and one that is
	// not named is never released.
	MostPinned = 1000
	// MostAnnouncing is how many placements announce for one: each has two pinned while it is re-keyed, and some are pinned by hand.
	MostAnnouncing = 400
)

// Full reports whether no more certificates can be pinned in a pool for a purpose.
func Full(ctx context.Context, tx *db.Tx, pool, purpose string) (bool, error) {
	all, err := pinnedFor(ctx, tx, pool, purpose)
	return len(all) >= MostPinned, err
}

// Announce takes what an agent announced for a placement, in the transaction of its report: leaves, in PEM. What it does not
// announce any more, and never placed, leaves. The caller has seen that the certificates are of this host.
func (s *Service) Announce(ctx context.Context, tx *db.Tx, at Placement, leaves []*x509.Certificate, now time.Time) error {
	there, err := readPinned(ctx, tx, `host = $1 AND placement = $2`, at.Host, at.Name)
	if err != nil {
		return err
	}
	var serials []string
	changed := false
	for _, c := range leaves {
		p := &pinned{
			host: at.Host, placement: at.Name, serial: cert.FormatSerial(c.SerialNumber), pool: at.Pool, purpose: at.Purpose,
			fingerprint: Fingerprint(c), certificate: c, notAfter: c.NotAfter, state: announced, created: now,
		}
		serials = append(serials, p.serial)
		if slices.ContainsFunc(there, func(other *pinned) bool { return other.serial == p.serial }) {
			continue
		}
		full, err := Full(ctx, tx, at.Pool, at.Purpose)
		if err != nil {
			return err
		}
		if full {
			s.Logger.WarnContext(ctx, "an announced certificate is not passed on, because too many are pinned", "pool", at.Pool, "purpose", at.Purpose, "serial", p.serial)
			continue
		}
		changed = true
		// Where nobody pins such certificates, nobody is waited for.
		lacking, err := s.lacking(ctx, tx, []*pinned{p}, 1)
		if err != nil {
			return err
		}
		if len(lacking[p]) == 0 {
			p.state = released
		}
		_, err = tx.Exec(ctx, `INSERT INTO trust_pinned (`+pinnedColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
			p.host, p.placement, p.serial, p.pool, p.purpose, p.fingerprint, c.Raw, db.Micros(p.notAfter), p.state, db.Micros(now))
		if err != nil {
			return fmt.Errorf("write announced certificate %s: %w", p.serial, err)
		}
	}
	for _, p := range there {
		if p.state != inPlace && !slices.Contains(serials, p.serial) {
			changed = true
			if err := p.remove(ctx, tx); err != nil {
				return err
			}
		}
	}
	if !changed {
		return nil
	}
	return touch(ctx, tx, at.Pool, now)
}

func (p *pinned) remove(ctx context.Context, tx *db.Tx) error {
	_, err := tx.Exec(ctx, `DELETE FROM trust_pinned WHERE host = $1 AND placement = $2 AND serial = $3`, p.host, p.placement, p.serial)
	if err != nil {
		return fmt.Errorf("remove announced certificate %s: %w", p.serial, err)
	}
	return nil
}

// Placed notes that a host has placed a certificate that was announced: those before it leave.
func (s *Service) Placed(ctx context.Context, tx *db.Tx, at Placement, serial string, now time.Time) error {
	there, err := readPinned(ctx, tx, `host = $1 AND placement = $2`, at.Host, at.Name)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(there, func(p *pinned) bool { return p.serial == serial && p.state != inPlace })
	if i < 0 {
		return nil
	}
	_, err = tx.Exec(ctx, `UPDATE trust_pinned SET state = $1 WHERE host = $2 AND placement = $3 AND serial = $4`, inPlace, at.Host, at.Name, serial)
	if err != nil {
		return fmt.Errorf("note that certificate %s is placed: %w", serial, err)
	}
	for _, p := range there {
		if p.serial != serial && p.created.Before(there[i].created) {
			if err := p.remove(ctx, tx); err != nil {
				return err
			}
		}
	}
	return touch(ctx, tx, at.Pool, now)
}

// Released are the serials of a host's announced certificates that may be placed, by placement.
func Released(ctx context.Context, tx *db.Tx, host string) (map[string][]string, error) {
	rows, err := tx.Query(ctx, `SELECT placement, serial FROM trust_pinned WHERE host = $1 AND state <> $2 ORDER BY placement, created_at, serial`, host, announced)
	if err != nil {
		return nil, fmt.Errorf("read released certificates: %w", err)
	}
	defer rows.Close()
	all := map[string][]string{}
	for rows.Next() {
		var placement, serial string
		if err := rows.Scan(&placement, &serial); err != nil {
			return nil, fmt.Errorf("read released certificates: %w", err)
		}
		all[placement] = append(all[placement], serial)
	}
	return all, rows.Err()
}

// Withdraw removes what a host announced: for all placements but those kept.
func (s *Service) Withdraw(ctx context.Context, tx *db.Tx, host string, keep []string, now time.Time) error {
	there, err := readPinned(ctx, tx, `host = $1`, host)
	if err != nil {
		return err
	}
	pools := map[string]bool{}
	for _, p := range there {
		if slices.Contains(keep, p.placement) {
			continue
		}
		pools[p.pool] = true
		if err := p.remove(ctx, tx); err != nil {
			return err
		}
	}
	for pool := range pools {
		if err := touch(ctx, tx, pool, now); err != nil {
			return err
		}
	}
	return nil
}

// lacking are, of each of some certificates, the placements that pin its purpose and do not hold it, up to limit. What placements
// hold is read once for all certificates of a purpose.
func (s *Service) lacking(ctx context.Context, tx *db.Tx, those []*pinned, limit int) (map[*pinned][]Presented, error) {
	type group struct{ pool, purpose string }
	groups := map[group][]*pinned{}
	for _, p := range those {
		of := group{p.pool, p.purpose}
		groups[of] = append(groups[of], p)
	}
	all := map[*pinned][]Presented{}
	for of, members := range groups {
		others, err := pinnedFor(ctx, tx, of.pool, of.purpose)
		if err != nil {
			return nil, err
		}
		in := Pinning{Pool: of.pool, Purpose: of.purpose, Others: others, Own: map[string]Own{}}
		for _, p := range members {
			in.Own[p.fingerprint] = Own{p.host, p.placement}
			in.Fingerprints = append(in.Fingerprints, p.fingerprint)
		}
		found, err := s.Lacking(ctx, tx, in, limit)
		if err != nil {
			return nil, err
		}
		for _, p := range members {
			all[p] = found[p.fingerprint]
		}
	}
	return all, nil
}

// pinnedFor are the fingerprints of all that is pinned for a purpose.
func pinnedFor(ctx context.Context, tx *db.Tx, pool, purpose string) ([]string, error) {
	rows, err := tx.Query(ctx, `SELECT fingerprint FROM trust_pinned WHERE pool = $1 AND purpose = $2
		UNION SELECT fingerprint FROM trust_entry WHERE pool = $3 AND purpose = $4 AND kind = $5 AND pruned_at = 0`,
		pool, purpose, pool, purpose, client.TrustPinned)
	if err != nil {
		return nil, fmt.Errorf("read what is pinned for %s: %w", purpose, err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var one string
		if err := rows.Scan(&one); err != nil {
			return nil, fmt.Errorf("read what is pinned for %s: %w", purpose, err)
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// Waits says, of each of a host's certificates that wait for others, who does not hold it yet: by placement.
func (s *Service) Waits(ctx context.Context, tx *db.Tx, host string) (map[string]string, error) {
	waiting, err := readPinned(ctx, tx, `host = $1 AND state = '`+announced+`'`, host)
	if err != nil {
		return nil, err
	}
	lacking, err := s.lacking(ctx, tx, waiting, maxNamed+1)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, p := range waiting {
		all[p.placement] = fmt.Sprintf("certificate %s waits until all who pin it hold it: %s", p.serial, naming(lacking[p]))
	}
	return all, nil
}

// maxNamed is how many are named in one sentence.
const maxNamed = 5

// naming names the first placements of some.
func naming(those []Presented) string {
	var names []string
	for _, p := range those[:min(len(those), maxNamed)] {
		names = append(names, p.Host+" ("+p.Placement+")")
	}
	text := strings.Join(names, ", ")
	switch {
	case len(those) > maxNamed:
		text += " and others"
	case len(those) == 0:
		text = "nobody is left, and it is released in a moment"
	}
	return text
}

// Release releases announced certificates that all hold who pin them. Who holds what is read beforehand, so that a large pool
// does not keep the store from others; who begins to pin since begins with all that is announced.
func (s *Service) Release(ctx context.Context, now time.Time) error {
	var ready []*pinned
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		ready = nil
		waiting, err := s.news(ctx, tx, now)
		if err != nil || len(waiting) == 0 {
			return err
		}
		lacking, err := s.lacking(ctx, tx, waiting, 1)
		for _, p := range waiting {
			if len(lacking[p]) == 0 {
				ready = append(ready, p)
			}
		}
		return err
	})
	if err != nil || len(ready) == 0 {
		return err
	}
	return s.DB.Tx(ctx, func(tx *db.Tx) error {
		pools := map[string]bool{}
		for _, p := range ready {
			n, err := tx.Exec(ctx, `UPDATE trust_pinned SET state = $1 WHERE host = $2 AND placement = $3 AND serial = $4 AND state = $5`,
				released, p.host, p.placement, p.serial, announced)
			if err != nil {
				return fmt.Errorf("release certificate %s: %w", p.serial, err)
			}
			if n == 0 {
				continue // another node was faster, or it left
			}
			pools[p.pool] = true
			err = s.Audit.Append(ctx, tx, audit.Event{Time: now, Actor: s.actor(), Action: "trust.release", Object: p.serial, Detail: map[string]any{
				"pool": p.pool, "purpose": p.purpose, "placement": p.placement, "fingerprint": p.fingerprint,
			}})
			if err != nil {
				return err
			}
		}
		for pool := range pools {
			if err := touch(ctx, tx, pool, now); err != nil {
				return err
			}
		}
		return nil
	})
}

// lookAgain is after how long Release looks who holds what though nothing is seen to have changed: a rollout may leave a host out, and
// a certificate may have ended.
const lookAgain = 15 * time.Second

// looked is when Release last looked at a pool, and what it went by.
type looked struct {
	at      time.Time
	touched int64
	waiting int
}

// news are the certificates that wait in pools in which something changed since the last look: what all hosts of a pool hold is much
// to read each second while one of them is away.
func (s *Service) news(ctx context.Context, tx *db.Tx, now time.Time) ([]*pinned, error) {
	counts := map[string]int{}
	rows, err := tx.Query(ctx, `SELECT pool, COUNT(*) FROM trust_pinned WHERE state = 'announced' GROUP BY pool`)
	if err != nil {
		return nil, fmt.Errorf("count announced certificates: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var pool string
		var n int
		if err := rows.Scan(&pool, &n); err != nil {
			return nil, fmt.Errorf("count announced certificates: %w", err)
		}
		counts[pool] = n
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("count announced certificates: %w", err)
	}
	var all []*pinned
	for pool, n := range counts {
		touched, err := s.Touched(ctx, tx, pool)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		last := s.looked[pool]
		same := last.touched == touched && last.waiting == n && now.Sub(last.at) >= 0 && now.Sub(last.at) < lookAgain
		if !same {
			s.looked[pool] = looked{now, touched, n}
		}
		s.mu.Unlock()
		if same {
			continue
		}
		waiting, err := readPinned(ctx, tx, `pool = $1 AND state = '`+announced+`'`, pool)
		if err != nil {
			return nil, err
		}
		all = append(all, waiting...)
	}
	return all, nil
}

// ParseAnnounced reads the leaves that an agent announced.
func ParseAnnounced(texts []string) ([]*x509.Certificate, error) {
	if len(texts) > maxAnnounced {
		return nil, fault.New(fault.TooLarge, "%d certificates are announced for one placement; at most %d pass", len(texts), maxAnnounced).At("/observations")
	}
	var all []*x509.Certificate
	for _, text := range texts {
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" || strings.TrimSpace(string(rest)) != "" {
			return nil, fault.New(fault.Invalid, "what is announced is not one certificate in PEM").At("/observations")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fault.New(fault.Invalid, "what is announced is not a certificate: %w", err).At("/observations")
		}
		all = append(all, c)
	}
	return all, nil
}
