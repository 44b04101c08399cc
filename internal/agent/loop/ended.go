package loop

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/cert"
)

// over reports whether a certificate, or one above it, has ended: nothing that is shown of it is accepted by anybody.
func over(m *probe.Material, now time.Time) bool {
	return slices.ContainsFunc(m.Path, func(c *x509.Certificate) bool { return now.After(c.NotAfter) })
}

// serves looks whether a certificate that has ended is what is served. No peer would take it, and that is said elsewhere; that
// the consumer has read its files is what counts.
func (c *consumer) serves(ctx context.Context, p recipe.Probe, m *probe.Material) error {
	seen, err := probe.Look(ctx, p, nil)
	if err != nil {
		return err
	}
	c.served = seen
	if !seen.Leaf().Equal(m.Path[0]) {
		return fmt.Errorf("%w: %s serves certificate %s, and certificate %s was placed", probe.ErrNotServed, p.Address,
			cert.FormatSerial(seen.Leaf().SerialNumber), cert.FormatSerial(m.Path[0].SerialNumber))
	}
	return nil
}
