package doctor

import (
	"context"
	"fmt"

	"chancery/internal/store/keys"
	"chancery/internal/upkeep/finding"
)

// Tokens has each key that lies in a PKCS #11 token sign once, as this node reaches it.
func Tokens(ctx context.Context, store *keys.Store, tell func(finding.Finding)) error {
	found, err := store.InTokens(ctx)
	if err != nil {
		return err
	}
	wrong := 0
	for _, k := range found {
		extractable, err := store.Reach(ctx, k)
		switch {
		case err != nil:
			wrong++
			tell(finding.Finding{Level: finding.Error, Object: k.Token, Message: fmt.Sprintf("the %s key of %s: %v", k.Purpose, k.Owner, err),
				Hint: "node.yaml names the token under pkcs11: its label, library and PIN file; other nodes that reach it sign meanwhile"})
		case extractable:
			wrong++
			tell(finding.Finding{Level: finding.Warning, Object: k.Token, Message: fmt.Sprintf("the token would give the %s key of %s out (CKA_EXTRACTABLE), so "+
				"somebody may have a copy", k.Purpose, k.Owner), Hint: "rotate the issuer to a key that was made in the token and is not extractable"})
		}
	}
	if wrong == 0 {
		tell(finding.Finding{Level: finding.OK, Message: fmt.Sprintf("%d keys lie in PKCS #11 tokens, and this node signs with each", len(found))})
	}
	return nil
}
