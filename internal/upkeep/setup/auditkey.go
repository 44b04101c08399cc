package setup

import (
	"context"
	"encoding/pem"

	"chancery/internal/pki/keyfile"
	"chancery/internal/store/keys"
	"chancery/internal/upkeep/datadir"
)

// writeAuditKey writes the public key that checkpoints are checked with: the store's own word for it is worth nothing
// against who can change the store.
func (s *Services) writeAuditKey(ctx context.Context, dir datadir.Dir) error {
	found, err := s.Keys.Find(ctx, keys.Audit, "")
	if err != nil {
		return err
	}
	var text []byte
	for _, key := range found {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: key.SPKI})...)
	}
	return keyfile.WriteFile(dir.AuditKey(), text, 0o644)
}
