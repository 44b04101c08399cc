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
	byIssuer map[string]*loadedResponder
}

type loadedResponder struct {
	responder *ocsp.Responder // nil where there is none
	keyID     string
	looked    time.Time
}

// responderLook is how long a node uses a responder before it looks whether there is a newer one, and responderRetry how
// long it waits where there was none.
const (
	responderLook  = 30 * time.Second
	responderRetry = 100 * time.Millisecond
)

// responder returns the delegated responder of an issuer that is in force and lasts longest; nil where there is none.
func (s *Service) responder(ctx context.Context, issuer *ca.Issuer, now time.Time) (*ocsp.Responder, error) {
	s.responders.mu.Lock()
	known := s.responders.byIssuer[issuer.ID]
	s.responders.mu.Unlock()
	if known != nil {
		good := known.responder != nil && now.Before(known.responder.Certificate.NotAfter)
		if age := now.Sub(known.looked); good && age < responderLook || known.responder == nil && age < responderRetry {
			return known.responder, nil
		}
	}
	loaded, err := s.loadResponder(ctx, issuer, known, now)
	if err != nil {
		if known != nil && known.responder != nil && now.Before(known.responder.Certificate.NotAfter) {
			return known.responder, nil // the database is away; the key is here
		}
		return nil, err
	}
	s.responders.mu.Lock()
	s.responders.byIssuer[issuer.ID] = loaded
	s.responders.mu.Unlock()
	return loaded.responder, nil
}

func (s *Service) loadResponder(ctx context.Context, issuer *ca.Issuer, known *loadedResponder,
	now time.Time) (*loadedResponder, error) {
	var (
		keyID string
		der   []byte
	)
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT key_id, certificate FROM ocsp_responder WHERE issuer = $1 AND not_before <= $2 AND not_after > $2
			ORDER BY not_after DESC, id DESC LIMIT 1`, issuer.ID, db.Micros(now)).Scan(&keyID, &der)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return &loadedResponder{looked: now}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the OCSP responder of issuer %s: %w", issuer.Name, err)
	}
	if known != nil && known.responder != nil && known.keyID == keyID {
		return &loadedResponder{known.responder, keyID, now}, nil
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the OCSP responder of issuer %s: %w", issuer.Name, err)
	}
	signer, err := s.keys.Signer(ctx, keyID)
	if err != nil {
		return nil, fmt.Errorf("open the key of the OCSP responder of issuer %s: %w", issuer.Name, err)
	}
	responder, err := ocsp.NewResponder(issuer.Certificate, certificate, signer, ocsp.ByKey)
	if err != nil {
		return nil, fmt.Errorf("use the OCSP responder of issuer %s: %w", issuer.Name, err)
	}
	return &loadedResponder{responder, keyID, now}, nil
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
	certificate, err := s.ca.IssueResponder(ctx, issuer, spki, ends)
	if err != nil {
		return fmt.Errorf("issue the certificate of the OCSP responder of issuer %s: %w", issuer.Name, err)
	}
	sealed, err := s.keys.Seal(ctx, key, keys.OCSP, issuer.ID)
	if err != nil {
		return fmt.Errorf("seal the key of the OCSP responder of issuer %s: %w", issuer.Name, err)
	}
	actor := "system:" + s.audit.Node()
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := lease.Check(ctx, tx); err != nil {
			return err
		}
		if err := s.keys.Insert(ctx, tx, sealed, actor, now); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO ocsp_responder (id, issuer, key_id, certificate, not_before, not_after) VALUES ($1, $2, $3, $4, $5, $6)`,
			db.NewID(), issuer.ID, sealed.ID, certificate.Raw, db.Micros(certificate.NotBefore), db.Micros(certificate.NotAfter))
		if err != nil {
			return fmt.Errorf("store the OCSP responder of issuer %s: %w", issuer.Name, err)
		}
		return s.audit.Append(ctx, tx, audit.Event{
			Time: now, Actor: actor, Action: "ocsp.responder", Object: issuer.ID,
			Detail: map[string]any{"serial": certificate.SerialNumber.Text(16), "key": sealed.ID,
				"notAfter": certificate.NotAfter},
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
