package backup

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"

	"chancery/internal/fault"
)

// signed is what a signature is made over: the label keeps it from being taken for one of anything else, a checkpoint's
// above all, which the same key makes.
func signed(sum []byte) []byte { return append([]byte("chancery backup signature 2\n"), sum...) }

func (e *encoder) sign(key crypto.Signer) error {
	if err := e.w.Flush(); err != nil {
		return err
	}
	message, how := signed(e.sum.Sum(nil)), crypto.Hash(0)
	if _, ok := key.Public().(ed25519.PublicKey); !ok {
		digest := sha256.Sum256(message)
		message, how = digest[:], crypto.SHA256
	}
	octets, err := key.Sign(rand.Reader, message, how)
	if err != nil {
		return fmt.Errorf("sign the backup: %w", err)
	}
	return e.frame(signature{octets})
}

// signature reads the last frame and holds it against the keys.
func (s *Source) signature(known []crypto.PublicKey) error {
	message := signed(s.r.sum.Sum(nil))
	var last signature
	if err := s.frame("signature", &last); err != nil {
		return err
	}
	if slices.ContainsFunc(known, func(key crypto.PublicKey) bool { return verifies(key, message, last.Signature) }) {
		return nil
	}
	return fault.New(fault.Invalid, "the backup is not signed by the audit key that was given: another authority wrote it, or somebody "+
		"who only knows the recovery recipient").WithHint("restore nothing of it; where the key is the wrong one, offline/audit-key.pem of init is the right one")
}

func verifies(key crypto.PublicKey, message, octets []byte) bool {
	switch key := key.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(key, message, octets)
	case *ecdsa.PublicKey:
		digest := sha256.Sum256(message)
		return ecdsa.VerifyASN1(key, digest[:], octets)
	}
	return false
}
