package bench

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	xocsp "golang.org/x/crypto/ocsp"
	"golang.org/x/sync/errgroup"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
)

// kind is an issuer and the list that shows its revocations soon.
type kind struct {
	issuer string
	list   string // complete, delta or partition
	path   func(c *x509.Certificate) string
}

var kinds = []kind{
	{plainIssuer, "complete", func(*x509.Certificate) string { return "/crl/" + plainIssuer + ".crl" }},
	{deltaIssuer, "delta", func(*x509.Certificate) string { return "/crl/" + deltaIssuer + "/delta.crl" }},
	{partsIssuer, "partition", func(c *x509.Certificate) string {
		return fmt.Sprintf("/crl/%s/%d.crl", partsIssuer, crl.Partition(c.SerialNumber, partitionCount))
	}},
}

// revocation measures how soon a revocation is seen, and what it costs.
func (b *bench) revocation(ctx context.Context, a *authority, store string) error {
	var worst time.Duration
	var costs []cost
	for _, k := range kinds {
		certificates, err := b.issueSome(ctx, a, k.issuer, 1+b.revocations+b.burst)
		if err != nil {
			return err
		}
		// The first is not counted: after a start, or after so many certificates were put in, lists are made that nobody waits for.
		if _, err := b.watch(ctx, a, k, certificates[0]); err != nil {
			return err
		}
		slowest, err := b.visible(ctx, a, store, k, certificates[1:1+b.revocations])
		if err != nil {
			return err
		}
		worst = max(worst, slowest)
		c, err := b.cost(ctx, a, store, k, certificates[1+b.revocations:])
		if err != nil {
			return err
		}
		if k.issuer != plainIssuer { // whose complete list does not grow here
			costs = append(costs, c)
		}
	}
	again := func(ctx context.Context) error { return b.revokeUntil(ctx, a) }
	b.judge(ctx, "revoke-visible."+a.engine+"."+store, float64(worst.Microseconds())/1e3, b.profiler(a, again))
	if a.costs == nil {
		a.costs = costs
		return nil
	}
	if store == revoked {
		worse := 0.0
		for i, c := range costs {
			worse = max(worse, c.over(a.costs[i]))
		}
		b.judge(ctx, "revoke-cost."+a.engine+"."+store, worse, b.profiler(a, again))
	}
	return nil
}

// seen is when a revocation was seen, counted from the call.
type seen struct{ acknowledged, ocsp, list time.Duration }

// watch revokes a certificate and looks until it is revoked in OCSP and in its list.
func (b *bench) watch(ctx context.Context, a *authority, k kind, c *x509.Certificate) (*seen, error) {
	q, err := ask(c, a.issuers[k.issuer])
	if err != nil {
		return nil, err
	}
	// So that the answer is in the cache.
	if err := q.good(ctx, a.public()); err != nil {
		return nil, fmt.Errorf("a certificate that was just issued is not good: %w", err)
	}
	var s seen
	begin := time.Now()
	_, err = a.client.Revoke(ctx, k.issuer, cert.FormatSerial(c.SerialNumber), client.RevokeRequest{Reason: "superseded"})
	if err != nil {
		return nil, err
	}
	s.acknowledged = time.Since(begin)
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var both errgroup.Group
	both.Go(func() (err error) {
		s.ocsp, err = since(limited, begin, func() (bool, error) {
			r, _, err := q.status(limited, a.public())
			return err == nil && r.Status == xocsp.Revoked, err
		})
		return err
	})
	both.Go(func() (err error) {
		s.list, err = since(limited, begin, func() (bool, error) {
			der, err := fetch(limited, "http://"+a.public()+k.path(c))
			return bytes.Contains(der, c.SerialNumber.Bytes()), err
		})
		return err
	})
	if err := both.Wait(); err != nil {
		return nil, fmt.Errorf("wait until a revocation of issuer %s is seen: %w", k.issuer, err)
	}
	return &s, nil
}

// since asks every few milliseconds until the answer is yes, and returns how long that was after begin.
func since(ctx context.Context, begin time.Time, ask func() (bool, error)) (time.Duration, error) {
	for {
		yes, err := ask()
		if yes {
			return time.Since(begin), nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("not seen after %v: %w", time.Since(begin), errors.Join(ctx.Err(), err))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// visible revokes one certificate after the other.
func (b *bench) visible(ctx context.Context, a *authority, store string, k kind, certificates []*x509.Certificate) (worst time.Duration, err error) {
	var ocsp, list latencies
	for _, c := range certificates {
		s, err := b.watch(ctx, a, k, c)
		if err != nil {
			return 0, err
		}
		ocsp, list = append(ocsp, s.ocsp), append(list, s.list)
	}
	for what, l := range map[string]latencies{"seen in OCSP": ocsp, "seen in " + k.list + " CRL": list} {
		b.add(row{what: what, who: "issuer " + k.issuer, engine: a.engine, store: store, p50: l.percentile(50), p99: l.percentile(99), most: l.percentile(100)})
		worst = max(worst, l.percentile(100))
	}
	return worst, nil
}

// cost is what one revocation took: until it was acknowledged, and of the processors, the lists that show it included.
type cost struct {
	call, cpu time.Duration
}

// over is how many times as much it is, by the worse of the two.
func (c cost) over(other cost) float64 {
	return max(float64(c.call)/float64(max(other.call, 1)), float64(c.cpu)/float64(max(other.cpu, 1)))
}

// cost revokes in one go, and waits until the list has the last one.
func (b *bench) cost(ctx context.Context, a *authority, store string, k kind, certificates []*x509.Certificate) (cost, error) {
	node, server, err := a.cpu()
	if err != nil {
		return cost{}, err
	}
	var calls latencies
	for _, c := range certificates[1:] {
		begin := time.Now()
		_, err := a.client.Revoke(ctx, k.issuer, cert.FormatSerial(c.SerialNumber), client.RevokeRequest{Reason: "cessationOfOperation"})
		if err != nil {
			return cost{}, err
		}
		calls = append(calls, time.Since(begin))
	}
	if _, err := b.watch(ctx, a, k, certificates[0]); err != nil {
		return cost{}, err
	}
	node2, server2, err := a.cpu()
	if err != nil {
		return cost{}, err
	}
	n := time.Duration(len(certificates))
	c := cost{call: calls.percentile(50), cpu: (node2 - node + server2 - server) / n}
	b.add(row{
		what: "revoke", who: "issuer " + k.issuer, engine: a.engine, store: store, p50: c.call, p99: calls.percentile(99), most: calls.percentile(100),
		cpu: (node2 - node) / n, dbCPU: (server2 - server) / n, note: "CPU includes the " + k.list + " CRLs",
	})
	return c, nil
}

// revokeUntil goes on revoking while a profile is taken.
func (b *bench) revokeUntil(ctx context.Context, a *authority) error {
	end := time.Now().Add(b.profileLength + time.Second)
	for time.Now().Before(end) {
		certificates, err := b.issueSome(ctx, a, partsIssuer, 20)
		if err != nil {
			return err
		}
		for _, c := range certificates {
			if _, err := a.client.Revoke(ctx, partsIssuer, cert.FormatSerial(c.SerialNumber), client.RevokeRequest{}); err != nil {
				return err
			}
		}
	}
	return nil
}
