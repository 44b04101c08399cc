package setup

import (
	"context"
	"crypto"
	"encoding/pem"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
)

// AuditSigner opens the key that signs checkpoints and backups.
func (s *Services) AuditSigner(ctx context.Context) (crypto.Signer, error) {
	found, err := s.Keys.Find(ctx, keys.Audit, "")
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fault.New(fault.Conflict, "the authority has no audit key").WithHint("chancery doctor")
	}
	return s.Keys.Signer(ctx, found[0].ID)
}

// AuditKeys are the public keys that checkpoints and backups are signed with, as the store has them.
func (s *Services) AuditKeys(ctx context.Context) ([]crypto.PublicKey, error) {
	text, err := s.auditKeyPEM(ctx)
	if err != nil {
		return nil, err
	}
	return ParseAuditKeys(text)
}

// writeAuditKey writes the public key that checkpoints and backups are checked with: the store's own word for it is worth
// nothing against who can change the store.
func (s *Services) writeAuditKey(ctx context.Context, dir datadir.Dir) error {
	text, err := s.auditKeyPEM(ctx)
	if err != nil {
		return err
	}
	return keyfile.WriteFile(dir.AuditKey(), text, 0o644)
}

func (s *Services) auditKeyPEM(ctx context.Context) ([]byte, error) {
	found, err := s.Keys.Find(ctx, keys.Audit, "")
	if err != nil {
		return nil, err
	}
	var text []byte
	for _, key := range found {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: key.SPKI})...)
	}
	return text, nil
}

// ParseAuditKeys reads the public keys of a file that writeAuditKey wrote.
func ParseAuditKeys(text []byte) ([]crypto.PublicKey, error) {
	var all []crypto.PublicKey
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		key, err := cert.ParsePublicKey(block.Bytes)
		if err != nil {
			return nil, fault.New(fault.Invalid, "a %s in the file is no public key: %w", block.Type, err)
		}
		all = append(all, key)
	}
	if len(all) == 0 {
		return nil, fault.New(fault.Invalid, "the file holds no public key in PEM; init wrote the audit's to offline/audit-key.pem and ca/audit-key.pem")
	}
	return all, nil
}
