package bench

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	xocsp "golang.org/x/crypto/ocsp"

	"chancery/internal/pki/ocsp"
	"chancery/internal/run/consumer"
)

// question is an OCSP request about one certificate.
type question struct {
	leaf, issuer *x509.Certificate
	der          []byte
}

func ask(leaf, issuer *x509.Certificate) (*question, error) {
	der, err := xocsp.CreateRequest(leaf, issuer, &xocsp.RequestOptions{Hash: crypto.SHA1})
	return &question{leaf: leaf, issuer: issuer, der: der}, err
}

// path is that of the request by GET (RFC 6960 appendix A.1).
func (q *question) path() string {
	return "/ocsp/" + url.PathEscape(base64.StdEncoding.EncodeToString(q.der))
}

// status asks by GET and reads the answer in full, its signature included.
func (q *question) status(ctx context.Context, address string) (*xocsp.Response, int, error) {
	body, err := fetch(ctx, "http://"+address+q.path())
	if err != nil {
		return nil, 0, err
	}
	response, err := xocsp.ParseResponseForCert(body, q.leaf, q.issuer)
	return response, len(body), err
}

// good asks until the answer is good: the issuer may have been made a moment ago, and have no responder's certificate yet, or the certificate, and
// a standby may not have it.
func (q *question) good(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := since(ctx, time.Now(), func() (bool, error) {
		r, _, err := q.status(ctx, address)
		return err == nil && r.Status == xocsp.Good, err
	})
	return err
}

const nonceLength = 32

// withNonce returns the request with a nonce of zeros (RFC 9654), and where the nonce stands in it.
func (q *question) withNonce() (der []byte, at int, err error) {
	input := cryptobyte.String(q.der)
	var outer, tbs cryptobyte.String
	if !input.ReadASN1(&outer, cbasn1.SEQUENCE) || !outer.ReadASN1(&tbs, cbasn1.SEQUENCE) {
		return nil, 0, errors.New("the OCSP request is not one")
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(tbs)
			b.AddASN1(cbasn1.Tag(2).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2})
						b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(make([]byte, nonceLength)) })
					})
				})
			})
		})
	})
	der, err = b.Bytes()
	return der, len(der) - nonceLength, err
}

// cachedTarget asks about each certificate in turn, by GET and without nonce.
func cachedTarget(address string, all []*question) *target {
	requests := make([][]byte, len(all))
	for i, q := range all {
		requests[i] = []byte(get(address, q.path()))
	}
	next := make([]int, 1024)
	return &target{
		address: address,
		request: func(buf []byte, client int) ([]byte, error) {
			next[client]++
			return append(buf, requests[(client*31+next[client])%len(requests)]...), nil
		},
		check: func(_, status int, body []byte) error {
			if status != http.StatusOK || len(body) < 100 {
				return fmt.Errorf("status %d with %d octets", status, len(body))
			}
			return nil
		},
	}
}

// nonceTarget asks by POST with a new nonce each time, and wants to see it in the answer.
func nonceTarget(address string, all []*question) (*target, error) {
	type prepared struct {
		octets []byte
		at     int
	}
	requests := make([]prepared, len(all))
	for i, q := range all {
		der, at, err := q.withNonce()
		if err != nil {
			return nil, err
		}
		head := post(address, "/ocsp", ocsp.RequestType, len(der)) + "\r\n"
		requests[i] = prepared{append([]byte(head), der...), len(head) + at}
	}
	next, nonces := make([]int, 1024), make([][nonceLength]byte, 1024)
	return &target{
		address: address,
		request: func(buf []byte, client int) ([]byte, error) {
			next[client]++
			r := &requests[(client*31+next[client])%len(requests)]
			rand.Read(nonces[client][:])
			buf = append(buf, r.octets...)
			copy(buf[r.at:], nonces[client][:])
			return buf, nil
		},
		check: func(client, status int, body []byte) error {
			if status != http.StatusOK || !bytes.Contains(body, nonces[client][:]) {
				return fmt.Errorf("status %d with %d octets, which do not hold the nonce", status, len(body))
			}
			return nil
		},
	}, nil
}

// ocsp measures answers from the cache beside a bare handler, and answers with nonce beside the bare rate of signing.
func (b *bench) ocsp(ctx context.Context, a *authority, store string) error {
	if a.sample == nil {
		var err error
		if a.sample, err = b.issueSome(ctx, a, deltaIssuer, b.questions); err != nil {
			return err
		}
	}
	questions := make([]*question, len(a.sample))
	size := 0
	if err := a.responds(ctx); err != nil {
		return err
	}
	for i, leaf := range a.sample {
		var err error
		if questions[i], err = ask(leaf, a.issuers[deltaIssuer]); err != nil {
			return err
		}
		response, n, err := questions[i].status(ctx, a.public())
		if err != nil {
			return fmt.Errorf("ask for the status of a certificate: %w", err)
		}
		if size = n; response.Status != xocsp.Good {
			return fmt.Errorf("a certificate that nobody revoked has the status %d", response.Status)
		}
	}
	if err := b.cached(ctx, a, store, questions, size); err != nil {
		return err
	}
	return b.nonce(ctx, a, store, questions, size)
}

// responds waits until the issuer, which may have been made a moment ago, has its responder's certificate.
func (a *authority) responds(ctx context.Context) error {
	q, err := ask(a.sample[0], a.issuers[deltaIssuer])
	if err != nil {
		return err
	}
	return q.good(ctx, a.public())
}

func (b *bench) cached(ctx context.Context, a *authority, store string, questions []*question, size int) error {
	process, address, err := b.startBare(ctx, size, false)
	if err != nil {
		return err
	}
	defer process.Stop()
	responder, err := b.startOpenSSL(ctx, store)
	if err != nil {
		return err
	}
	defer responder.stop()
	ours, bare, openssl := &side{name: "chancery"}, &side{name: "bare net/http"}, &side{name: "openssl ocsp"}
	target, other := cachedTarget(a.public(), questions), cachedTarget(address, questions)
	if err := b.round(ctx, &side{}, a, target, b.warm); err != nil {
		return err
	}
	if err := b.peerRound(ctx, &side{}, process, other, b.warm); err != nil {
		return err
	}
	var ratios []float64
	for range b.rounds {
		if err := b.round(ctx, ours, a, target, b.short); err != nil {
			return err
		}
		if err := b.peerRound(ctx, bare, process, other, b.short); err != nil {
			return err
		}
		if responder != nil {
			if err := b.peerRound(ctx, openssl, responder.Process, responder.target, b.short); err != nil {
				return err
			}
		}
		ratios = append(ratios, ours.last()/bare.last())
	}
	ours.report(b, "ocsp cached", a.engine, store)
	bare.report(b, "ocsp cached", a.engine, store)
	if responder != nil {
		openssl.report(b, "ocsp cached", a.engine, store)
	}
	b.judge(ctx, "ocsp-cached."+a.engine+"."+store, median(ratios), b.loadProfiler(a, target))
	return nil
}

// nonce compares with signing alone. A handler that does nothing but sign is shown beside it, since no responder can be
// faster than that over HTTP.
func (b *bench) nonce(ctx context.Context, a *authority, store string, questions []*question, size int) error {
	process, address, err := b.startBare(ctx, size, true)
	if err != nil {
		return err
	}
	defer process.Stop()
	sign, err := bareSign()
	if err != nil {
		return err
	}
	target, err := nonceTarget(a.public(), questions)
	if err != nil {
		return err
	}
	ours, handler := &side{name: "chancery"}, &side{name: "net/http that signs"}
	other := cachedTarget(address, questions)
	if err := b.round(ctx, &side{}, a, target, b.warm); err != nil {
		return err
	}
	var ratios, rates []float64
	for range b.rounds {
		if err := b.round(ctx, ours, a, target, b.short); err != nil {
			return err
		}
		if err := b.peerRound(ctx, handler, process, other, b.short); err != nil {
			return err
		}
		rate, err := repeat(ctx, b.clients, b.short/2, sign)
		if err != nil {
			return err
		}
		rates = append(rates, rate)
		ratios = append(ratios, ours.last()/rate)
	}
	ours.report(b, "ocsp nonce", a.engine, store)
	handler.report(b, "ocsp nonce", a.engine, store)
	b.add(row{what: "ocsp nonce", who: "P-256 signing alone", engine: a.engine, store: store, rate: median(rates)})
	b.judge(ctx, "ocsp-nonce."+a.engine+"."+store, median(ratios), b.loadProfiler(a, target))
	return nil
}

// peerRound is round for another process.
func (b *bench) peerRound(ctx context.Context, s *side, p *consumer.Process, t *target, length time.Duration) error {
	before, err := familyTime(p.PID())
	if err != nil {
		return err
	}
	m, err := t.put(ctx, b.clients, length)
	if err != nil {
		return err
	}
	after, err := familyTime(p.PID())
	if err != nil {
		return err
	}
	s.cpu += after - before
	s.rates = append(s.rates, m.rate())
	s.sum.merge(m)
	s.rss, err = memory(p.PID(), "VmRSS")
	return err
}
