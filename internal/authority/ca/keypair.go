package ca

import (
	"context"
	"errors"
	"fmt"

	"chancery/internal/store/keys"
)

// KeyProblem is an issuer whose key on this node is not its certificate's, or is not there.
type KeyProblem struct {
	Issuer  string // its name
	State   IssuerState
	Message string
}

// KeyProblems holds the key of every issuer against its certificate, as each signature does before it is made: so that a node says
// so when it starts, and doctor does, before anybody wants a certificate. Keys that this node is not entitled to are none of its
// business. looked is how many it compared.
func (c *CA) KeyProblems(ctx context.Context) (problems []KeyProblem, looked int, err error) {
	issuers, err := c.Issuers(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("compare the issuers' keys with their certificates: %w", err)
	}
	for _, i := range issuers {
		if i.Certificate == nil || i.KeyID == "" {
			continue
		}
		_, err := c.keys.SignerFor(ctx, i.KeyID, i.Certificate)
		switch {
		case errors.Is(err, keys.ErrPair), errors.Is(err, keys.ErrMissing):
			problems = append(problems, KeyProblem{i.Name, i.State, err.Error()})
		case err != nil:
			continue // what does not open is told by who looks at wraps
		}
		looked++
	}
	return problems, looked, nil
}
