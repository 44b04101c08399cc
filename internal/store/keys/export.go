package keys

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"

	"chancery/internal/fault"
)

// Export opens a key and gives it out itself, not only its signatures: for a file of keys that an operator asked for on this machine.
// A key in a hardware module never leaves it, and is Denied. The caller records it in the audit before the file is written.
func (s *Store) Export(ctx context.Context, id string) (crypto.Signer, error) {
	if err := s.exportable(ctx, id); err != nil {
		return nil, err
	}
	opened, err := s.Signer(ctx, id)
	if err != nil {
		return nil, err
	}
	inner := opened
	if wrapped, ok := opened.(*signer); ok {
		inner = wrapped.key
	}
	switch inner.(type) {
	case *rsa.PrivateKey, *ecdsa.PrivateKey, ed25519.PrivateKey:
		return inner, nil
	}
	return nil, fault.New(fault.Denied, "key %s is in a PKCS#11 token, which it never leaves", id).
		WithHint("back the token up by its own means; a clone that reaches the same token needs no copy")
}
