package keys

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// ErrPair is in the chain of an error that says that a key is not the one of its certificate.
var ErrPair = errors.New("the key and the certificate are no pair")

// ErrMissing is in the chain of an error that says that the key of a certificate is not in the store.
var ErrMissing = errors.New("the key is missing")

// SignerFor is Signer for a key that a certificate speaks of. What it signs is verified with the certificate's key, so one of
// another pair, left by a re-key that half happened or planted by who writes to the database, is refused before anything is signed.
// Comparing costs a microsecond.
func (s *Store) SignerFor(ctx context.Context, id string, certificate *x509.Certificate) (crypto.Signer, error) {
	signer, err := s.Signer(ctx, id)
	if fault.Is(err, fault.NotFound) { // whoever asks for a certificate of an issuer that is there did not ask for what is not
		return nil, fault.New(fault.Conflict, "on node %s the key of %q is not in the store; a Certificate System says of this: CA private key is null!: %w",
			s.self, certificate.Subject, ErrMissing).WithHint("chancery doctor and chancery verify; then bring the key back from a backup with the " +
			"recovery key, or make a successor: chancery rollout start rotate-issuer")
	}
	if err != nil {
		return nil, err
	}
	own, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if ok && own.Equal(certificate.PublicKey) {
		return signer, nil
	}
	return nil, fault.New(fault.Conflict, "on node %s the key of %q is not the one in its certificate: the key has the identifier %s, the certificate's "+
		"has %s (CKA_ID, as certutil -K prints it); a Certificate System that was re-keyed says of this: CA private key is null!: %w",
		s.self, certificate.Subject, nssID(signer.Public()), nssID(certificate.PublicKey), ErrPair).
		WithHint("chancery verify says whether the store was changed; bring the right key back from a backup, or make a successor: chancery rollout start rotate-issuer")
}

func nssID(public crypto.PublicKey) string {
	id, err := keyfile.NSSKeyID(public)
	if err != nil {
		return "of no form that NSS knows"
	}
	return id.String()
}
