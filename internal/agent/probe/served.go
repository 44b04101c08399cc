package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"time"

	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// pollEvery is the pause between two looks: a server that reloads answers from its old processes for a moment.
const pollEvery = 50 * time.Millisecond

// mostConnections bounds the names that are asked for one by one; the rest is judged by the first answer.
const mostConnections = 32

// Served waits until a server serves leaf on fresh connections, one for each name that can be asked for, in a path that a
// peer accepts which holds nothing but the roots, for each of the probe's names. It looks until the probe's timeout is
// over, and then says what was wrong last. A server that wants a certificate where the probe has none to show has served;
// one that refuses what is shown has served only where the recipe accepts that. Now is when the certificates must be valid.
// What was seen is returned with the error where there is something.
func Served(ctx context.Context, p recipe.Probe, leaf *x509.Certificate, roots []*x509.Certificate, client *tls.Certificate,
	now time.Time) (*Seen, error) {
	names := p.Names
	if len(names) == 0 {
		names = namesOf(leaf, p.CommonName)
	}
	if len(names) == 0 {
		return nil, fault.New(fault.Invalid, "the probe of %s has no name to check: neither the certificate nor the probe has one", p.Address)
	}
	limit := timeoutOf(p)
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	started := time.Now()
	for {
		seen, err := servedOnce(ctx, p, leaf, roots, client, names, now)
		switch {
		case err == nil:
			return seen, nil
		case fault.Is(err, fault.Invalid) && !errors.Is(err, ErrNotServed): // the probe itself is wrong; waiting does not mend it
			return nil, err
		case ctx.Err() != nil || time.Since(started) >= limit:
			return seen, fmt.Errorf("probe for %s: %w", time.Since(started).Round(100*time.Millisecond), err)
		}
		select {
		case <-ctx.Done():
		case <-deadline.C: // one last look
		case <-time.After(pollEvery):
		}
	}
}

// servedOnce looks once for each name. It returns the first connection that was wrong, or the first of all.
func servedOnce(ctx context.Context, p recipe.Probe, leaf *x509.Certificate, roots []*x509.Certificate, client *tls.Certificate,
	names []string, now time.Time) (*Seen, error) {
	var first *Seen
	for _, asked := range serverNames(names) {
		seen, err := look(ctx, p, client, asked)
		if err != nil {
			return nil, err
		}
		if first == nil {
			first = seen
		}
		if !seen.Leaf().Equal(leaf) {
			return seen, fmt.Errorf("%w: %s%s serves certificate %s (%s), and certificate %s was placed", ErrNotServed, p.Address, asking(asked),
				cert.FormatSerial(seen.Leaf().SerialNumber), seen.Leaf().Subject, cert.FormatSerial(leaf.SerialNumber))
		}
		if seen.Refused != "" && client != nil && !p.AcceptRefusal {
			return seen, fmt.Errorf("%w: %s%s refuses the certificate that the probe shows: %s", ErrNotServed, p.Address, asking(asked), seen.Refused)
		}
		if err := seen.Judge(roots, now); err != nil {
			return seen, fmt.Errorf("%w: %s%s: %w", ErrNotServed, p.Address, asking(asked), err)
		}
	}
	for _, name := range names {
		if err := matches(first.Leaf(), name, p.CommonName); err != nil {
			return first, fmt.Errorf("%w: %s: %w", ErrNotServed, p.Address, err)
		}
	}
	return first, nil
}

// serverNames are the names to ask for, each once; where none can be asked for, one connection asks for nothing.
func serverNames(names []string) []string {
	var asked []string
	for _, n := range names {
		if s := serverName(n); !slices.Contains(asked, s) && len(asked) < mostConnections {
			asked = append(asked, s)
		}
	}
	return asked
}

func asking(name string) string {
	if name == "" {
		return ""
	}
	return " for " + name
}

// InUse waits until the probe's own command succeeds, which stands in the place of a connection. It is run as the probe's
// user, again and again until the timeout is over.
func InUse(ctx context.Context, sys System, p recipe.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, timeoutOf(p))
	defer cancel()
	for {
		_, err := sys.Run(ctx, Command{Args: p.Command, User: p.User, Timeout: timeoutOf(p)})
		var exit *exec.ExitError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %w", ErrTimeout, err)
		case !errors.As(err, &exit): // what cannot be run will not be run by waiting
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(4 * pollEvery):
		}
	}
}
