package revocation

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/ocsp"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

// responders are the delegated responders as this node has loaded them.
type responders struct {
	mu       sync.Mutex
	byIssuer map[string]*loadedResponders
}

// loadedResponders are those of one issuer that have not ended, the newest first.
type loadedResponders struct {
	all    []loadedResponder
	looked time.Time
}

type loadedResponder struct {
	responder *ocsp.Responder
	keyID     string
}

const (
	// responderLook is how long a node uses the responders that it has loaded before it looks whether there is another one, and
	// responderRetry how long it waits where there was none.
	responderLook  = 30 * time.Second
	responderRetry = 100 * time.Millisecond

	// responderSettles is how long after its notBefore a new responder takes over: by then every node has it and its key, and all
	// change at the same moment. It is a sixth of its life where that is less.
	responderSettles = 20 * time.Minute
)

// responder returns the delegated responder of an issuer that signs in a period, nil where there is none. It is the same on every
// node: the newest that has settled when the period begins, or else the oldest.
func (s *Service) responder(ctx context.Context, issuer *ca.Issuer, of period, now time.Time) (*ocsp.Responder, error) {
	all, err := s.respondersOf(ctx, issuer, now)
	if err != nil {
		return nil, err
	}
	var chosen *ocsp.Responder
	for _, one := range all {
		c := one.responder.Certificate
		if now.Before(c.NotBefore) || !now.Before(c.NotAfter) {
			continue
		}
		chosen = one.responder
		if settled := c.NotBefore.Add(min(responderSettles, c.NotAfter.Sub(c.NotBefore)/6)); !of.start.Before(settled) {
			break
		}
	}
	return chosen, nil
}

// respondersOf returns the responders of an issuer that have not ended, the newest first.
func (s *Service) respondersOf(ctx context.Context, issuer *ca.Issuer, now time.Time) ([]loadedResponder, error) {
	s.responders.mu.Lock()
	known := s.responders.byIssuer[issuer.ID]
	s.responders.mu.Unlock()
	good := known != nil && known.good(now)
	if known != nil {
		if age := now.Sub(known.looked); age >= 0 && (good && age < responderLook || !good && age < responderRetry) {
			return known.all, nil
		}
	}
	loaded, err := s.loadResponders(ctx, issuer, known, now)
	if err != nil {
		if good {
			return known.all, nil // the database is away; the keys are here
		}
		return nil, err
	}
	s.responders.mu.Lock()
	s.responders.byIssuer[issuer.ID] = loaded
	s.responders.mu.Unlock()
	return loaded.all, nil
}

// good says whether one of them can sign.
func (l *loadedResponders) good(now time.Time) bool {
	return slices.ContainsFunc(l.all, func(one loadedResponder) bool {
		c := one.responder.Certificate
		return !now.Before(c.NotBefore) && now.Before(c.NotAfter)
	})
}

func (s *Service) loadResponders(ctx context.Context, issuer *ca.Issuer, known *loadedResponders, now time.Time) (*loadedResponders, error) {
	type row struct {
		keyID string
		der   []byte
	}
	var found []row
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		found = nil
		rows, err := tx.Query(ctx, `SELECT key_id, certificate FROM ocsp_responder WHERE issuer = $1 AND not_after > $2
			ORDER BY not_before DESC, id DESC`, issuer.ID, db.Micros(now))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r row
			if err := rows.Scan(&r.keyID, &r.der); err != nil {
				return err
			}
			found = append(found, r)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("read the OCSP responders of issuer %s: %w", issuer.Name, err)
	}
	loaded := &loadedResponders{looked: now}
	var failed error
	for _, r := range found {
		one, err := s.loadResponder(ctx, issuer, known, r.keyID, r.der)
		if err != nil { // its key may not be wrapped to this node yet; another one may do
			failed = err
			continue
		}
		loaded.all = append(loaded.all, loadedResponder{one, r.keyID})
	}
	if failed != nil {
		if !loaded.good(now) {
			return nil, failed
		}
		s.logger.WarnContext(ctx, "an OCSP responder is of no use here", "error", failed)
	}
	return loaded, nil
}

func (s *Service) loadResponder(ctx context.Context, issuer *ca.Issuer, known *loadedResponders, keyID string, der []byte) (*ocsp.Responder,
	error) {
	if known != nil {
		if i := slices.IndexFunc(known.all, func(one loadedResponder) bool { return one.keyID == keyID }); i >= 0 {
			return known.all[i].responder, nil
		}
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read an OCSP responder of issuer %s: %w", issuer.Name, err)
	}
	signer, err := s.keys.Signer(ctx, keyID)
	if err != nil {
		return nil, fmt.Errorf("open the key of the OCSP responder of issuer %s: %w", issuer.Name, err)
	}
	responder, err := ocsp.NewResponder(issuer.Certificate, certificate, signer, ocsp.ByKey)
	if err != nil {
		return nil, fmt.Errorf("use the OCSP responder of issuer %s: %w", issuer.Name, err)
	}
	return responder, nil
}

// keepResponder sees to it that an issuer has a responder with a third of its life left. The key is made here, sealed to
// the nodes that answer OCSP requests, and never is the issuer's own (law 6).
func (s *Service) keepResponder(ctx context.Context, lease db.Lease, issuer *ca.Issuer, now time.Time) error {
	var notBefore, notAfter int64
	err := s.db.ReadSnapshot(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT not_before, not_after FROM ocsp_responder WHERE issuer = $1 ORDER BY not_after DESC LIMIT 1`, issuer.ID).
			Scan(&notBefore, &notAfter)
	})
	switch {
	case err == nil:
		renewAt := db.FromMicros(notAfter - (notAfter-notBefore)/3)
		if now.Before(renewAt) || db.FromMicros(notAfter).Equal(issuer.Certificate.NotAfter) &&
			now.Before(db.FromMicros(notAfter)) {
			return nil // also where it cannot last longer, because the issuer does not
		}
	case !errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("read the OCSP responders of issuer %s: %w", issuer.Name, err)
	}
	return s.makeResponder(ctx, lease, issuer, now)
}

func (s *Service) makeResponder(ctx context.Context, lease db.Lease, issuer *ca.Issuer, now time.Time) error {
	set, err := s.settings.Get(ctx)
	if err != nil {
		return err
	}
	key, err := responderKey(issuer.Certificate.PublicKey)
	if err != nil {
		return fmt.Errorf("make a key for the OCSP responder of issuer %s: %w", issuer.Name, err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	ends := now.Add(set.OCSP.ResponderValidity.Std())
	if ends.After(issuer.Certificate.NotAfter) {
		ends = issuer.Certificate.NotAfter
	}
	sealed, err := s.keys.Seal(ctx, key, keys.OCSP, issuer.ID)
	if err != nil {
		return fmt.Errorf("seal the key of the OCSP responder of issuer %s: %w", issuer.Name, err)
	}
	actor := "system:" + s.audit.Node()
	// One transaction, so that whoever lost the lease meanwhile leaves no certificate behind whose key is stored nowhere.
	certificate, err := s.ca.IssueResponder(ctx, issuer, spki, ends, func(ctx context.Context, tx *db.Tx, issued *ca.Certificate) error {
		if err := lease.Check(ctx, tx); err != nil {
			return err
		}
		if err := s.keys.Insert(ctx, tx, sealed, actor, now); err != nil {
			return err
		}
		certificate, err := issued.Parsed()
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO ocsp_responder (id, issuer, key_id, certificate, not_before, not_after) VALUES ($1, $2, $3, $4, $5, $6)`,
			db.NewID(), issuer.ID, sealed.ID, certificate.Raw, db.Micros(certificate.NotBefore), db.Micros(certificate.NotAfter))
		if err != nil {
			return fmt.Errorf("store the OCSP responder of issuer %s: %w", issuer.Name, err)
		}
		return s.audit.Append(ctx, tx, audit.Event{
			Time: now, Actor: actor, Action: "ocsp.responder", Object: issuer.ID,
			Detail: map[string]any{"serial": certificate.SerialNumber.Text(16), "key": sealed.ID, "notAfter": certificate.NotAfter},
		})
	})
	if err == nil {
		s.logger.InfoContext(ctx, "OCSP responder renewed", "issuer", issuer.Name, "serial",
			certificate.SerialNumber.Text(16), "notAfter", certificate.NotAfter)
	}
	return err
}

// responderKey makes a key that whoever can check the issuer's signatures can check too: RSA under RSA, otherwise P-256,
// which signs thousands of answers a second.
func responderKey(issuer crypto.PublicKey) (crypto.Signer, error) {
	if _, ok := issuer.(*rsa.PublicKey); ok {
		return rsa.GenerateKey(rand.Reader, 2048)
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// dropResponders removes responders that ended, with their keys.
func (s *Service) dropResponders(ctx context.Context, lease db.Lease, now time.Time) error {
	var gone []string
	actor := "system:" + s.audit.Node()
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		gone = gone[:0]
		if err := lease.Check(ctx, tx); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT key_id FROM ocsp_responder WHERE not_after < $1 ORDER BY id LIMIT 100`,
			db.Micros(now))
		if err != nil {
			return fmt.Errorf("read OCSP responders that ended: %w", err)
		}
		defer rows.Close()
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				return fmt.Errorf("read OCSP responders that ended: %w", err)
			}
			gone = append(gone, id)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return fmt.Errorf("read OCSP responders that ended: %w", err)
		}
		for _, id := range gone {
			if _, err := tx.Exec(ctx, `DELETE FROM ocsp_responder WHERE key_id = $1`, id); err != nil {
				return fmt.Errorf("remove an OCSP responder: %w", err)
			}
			if err := s.keys.Delete(ctx, tx, id, actor, now); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		return nil
	})
	if err == nil {
		s.keys.Forget(gone...)
	}
	return err
}
