package bench

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
)

// request is a certification request that was made beforehand.
type request struct {
	name string // its DNS name
	pem  string
	body string // of the call to our API
}

// makeRequests makes n requests, each with a P-256 key and a name that no other has: a node gives the same certificate
// again to who asks for the same.
func (b *bench) makeRequests(n int) ([]request, error) {
	all := make([]request, n)
	from := b.names.Add(int64(n)) - int64(n)
	var workers sync.WaitGroup
	var failed atomic.Pointer[error]
	for w := range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for i := w; i < n && failed.Load() == nil; i += runtime.GOMAXPROCS(0) {
				r, err := makeRequest(fmt.Sprintf("host-%07d.bench.example", from+int64(i)))
				if err != nil {
					failed.Store(&err)
					return
				}
				all[i] = *r
			}
		})
	}
	workers.Wait()
	if err := failed.Load(); err != nil {
		return nil, fmt.Errorf("make certification requests: %w", *err)
	}
	return all, nil
}

func makeRequest(name string) (*request, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := cert.CreateCSR(&cert.CSRTemplate{Subject: cert.CommonName(name), SAN: []cert.GeneralName{cert.DNSName(name)}}, key)
	if err != nil {
		return nil, err
	}
	r := &request{name: name, pem: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}
	body, err := json.Marshal(client.IssueRequest{Profile: "server", CSR: r.pem})
	r.body = string(body)
	return r, err
}

// issueTarget is POST /api/v1/certificates over mutual TLS, each call with an idempotency key of its own.
func (b *bench) issueTarget(a *authority) *target {
	host := a.config.Listen.API
	run := rand.Text()[:8]
	var requests []request
	var next atomic.Int64
	head := "POST " + client.Prefix + "/certificates HTTP/1.1\r\nHost: " + host +
		"\r\nAccept: application/json\r\nContent-Type: application/json\r\nIdempotency-Key: " + run + "-"
	return &target{
		address: host, tls: a.tls,
		prepare: func(n int) (err error) {
			requests, err = b.makeRequests(n)
			next.Store(0)
			return err
		},
		request: func(buf []byte, _ int) ([]byte, error) {
			i := next.Add(1) - 1
			if i >= int64(len(requests)) {
				return nil, errExhausted
			}
			r := &requests[i]
			buf = append(append(buf, head...), r.name...)
			buf = strconv.AppendInt(append(buf, "\r\nContent-Length: "...), int64(len(r.body)), 10)
			return append(append(buf, "\r\n\r\n"...), r.body...), nil
		},
		check: wantCreated,
	}
}

// wantCreated passes an answer that holds a certificate.
func wantCreated(_, status int, body []byte) error {
	if status != 201 || !bytes.Contains(body, []byte("-----BEGIN CERTIFICATE-----")) {
		return fmt.Errorf("status %d: %.300s", status, body)
	}
	return nil
}

// issuance measures the API beside step-ca and beside x509.CreateCertificate alone, in turns.
func (b *bench) issuance(ctx context.Context, a *authority, store string) error {
	create, err := bareCreate()
	if err != nil {
		return err
	}
	ours, peer := &side{name: "chancery"}, &side{name: "step-ca"}
	target := b.issueTarget(a)
	if err := b.round(ctx, &side{}, a, target, b.warm); err != nil {
		return err
	}
	if err := b.stepRound(ctx, &side{}, b.warm); err != nil {
		return err
	}
	var toStep, toBare, bare []float64
	for range b.rounds {
		if err := b.round(ctx, ours, a, target, b.length); err != nil {
			return err
		}
		if err := b.stepRound(ctx, peer, b.length); err != nil {
			return err
		}
		rate, err := repeat(ctx, b.clients, b.length/2, create)
		if err != nil {
			return err
		}
		bare = append(bare, rate)
		toBare = append(toBare, ours.last()/rate)
		if peer.last() > 0 {
			toStep = append(toStep, ours.last()/peer.last())
		}
	}
	a.issued += ours.calls()
	ours.report(b, "issue", a.engine, store)
	if b.step != nil {
		if peer.rss, err = memory(b.step.PID(), "VmRSS"); err != nil {
			return err
		}
		peer.report(b, "issue", a.engine, store)
	}
	b.add(row{what: "issue", who: "x509.CreateCertificate", engine: a.engine, store: store, rate: median(bare)})
	profile := b.loadProfiler(a, target)
	if len(toStep) > 0 {
		b.judge(ctx, "issuance-vs-step-ca."+a.engine+"."+store, median(toStep), profile)
	}
	b.judge(ctx, "issuance-vs-bare."+a.engine+"."+store, median(toBare), profile)
	return nil
}

// side is one of those that take turns.
type side struct {
	name  string
	rates []float64
	sum   measured
	cpu   time.Duration // of the process
	dbCPU time.Duration // of its database server
	rss   int64
}

func (s *side) last() float64 {
	if len(s.rates) == 0 {
		return 0
	}
	return s.rates[len(s.rates)-1]
}

func (s *side) calls() int64 { return int64(len(s.sum.latencies)) }

func (s *side) report(b *bench, what, engine, store string) {
	r := row{what: what, who: s.name, engine: engine, store: store, rate: median(s.rates), errors: s.sum.errors, rss: s.rss,
		p50: s.sum.latencies.percentile(50), p99: s.sum.latencies.percentile(99)}
	if n := s.calls(); n > 0 {
		r.cpu, r.dbCPU, r.loadCPU = s.cpu/time.Duration(n), s.dbCPU/time.Duration(n), s.sum.cpu/time.Duration(n)
	}
	if s.sum.first != nil {
		r.note = "first error: " + s.sum.first.Error()
	}
	b.add(r)
}

// round puts a load on the authority, and notes what its processes took.
func (b *bench) round(ctx context.Context, s *side, a *authority, t *target, length time.Duration) error {
	node, server, err := a.cpu()
	if err != nil {
		return err
	}
	m, err := t.put(ctx, b.clients, length)
	if err != nil {
		return err
	}
	node2, server2, err := a.cpu()
	if err != nil {
		return err
	}
	s.cpu, s.dbCPU = s.cpu+node2-node, s.dbCPU+server2-server
	s.rates = append(s.rates, m.rate())
	s.sum.merge(m)
	s.rss, err = memory(a.node.PID(), "VmRSS")
	return err
}

// stepRound is round for step-ca; it does nothing where that was not given.
func (b *bench) stepRound(ctx context.Context, s *side, length time.Duration) error {
	if b.step == nil {
		return nil
	}
	before, err := processTime(b.step.PID())
	if err != nil {
		return err
	}
	m, err := b.step.target.put(ctx, b.clients, length)
	if err != nil {
		return err
	}
	after, err := processTime(b.step.PID())
	if err != nil {
		return err
	}
	b.stepIssued += int64(len(m.latencies))
	s.cpu += after - before
	s.rates = append(s.rates, m.rate())
	s.sum.merge(m)
	return nil
}

// issueSome issues n certificates under an issuer, outside any measured time.
func (b *bench) issueSome(ctx context.Context, a *authority, issuer string, n int) ([]*x509.Certificate, error) {
	requests, err := b.makeRequests(n)
	if err != nil {
		return nil, err
	}
	all := make([]*x509.Certificate, n)
	failed := make([]error, 8)
	var workers sync.WaitGroup
	for w := range failed {
		workers.Go(func() {
			for i := w; i < n && failed[w] == nil; i += len(failed) {
				var out *client.IssueResult
				out, failed[w] = a.client.Issue(ctx, client.IssueRequest{Issuer: issuer, Profile: "server", CSR: requests[i].pem})
				if failed[w] == nil {
					all[i], failed[w] = parsePEM(out.Certificate.PEM)
				}
			}
		})
	}
	workers.Wait()
	a.issued += int64(n)
	for _, err := range failed {
		if err != nil {
			return nil, fmt.Errorf("issue under %s: %w", issuer, err)
		}
	}
	return all, nil
}
