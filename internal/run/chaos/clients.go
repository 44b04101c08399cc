package chaos

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	prng "math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ocsp"

	"chancery/client"
	"chancery/internal/pki/cert"
)

// How often an act is attempted, how long an attempt may take, and what is waited between them at most: a caller that knows three
// nodes need not wait for one.
const (
	attempts     = 60
	attemptLimit = 5 * time.Second
	againAfter   = 200 * time.Millisecond
)

// caller is a client with a node of its own, from which it turns away when that does not answer.
type caller struct {
	*world
	name string
	node int
	key  *ecdsa.PrivateKey
	dice *prng.Rand
	next atomic.Int64

	api  []*client.Client // by node
	http *http.Client
}

func (w *world) caller(name string, node int) (*caller, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(name))
	c := &caller{world: w, name: name, node: node, key: key, dice: prng.New(prng.NewPCG(w.Seed, uint64(sum[0])<<8|uint64(sum[1]))),
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: attemptLimit}}
	for _, n := range w.nodes {
		api, err := w.connect(n)
		if err != nil {
			return nil, err
		}
		c.api = append(c.api, api)
	}
	return c, nil
}

func (c *caller) close() {
	for _, api := range c.api {
		api.Close()
	}
	c.http.CloseIdleConnections()
}

// act attempts a call with one idempotency key, at the caller's node and then at the others, until it has a clear answer; stay keeps
// it to its node. It returns when limit attempts are over or ctx has ended, whatever is known then.
func (c *caller) act(ctx context.Context, call Call, limit int, stay bool, attempt func(context.Context, int) error) Call {
	ctx = client.WithIdempotencyKey(ctx, rand.Text())
	call.Client, call.Begin = c.name, time.Now()
	open := false // an attempt may have done it
	at := c.node
	for {
		n := c.nodes[at]
		call.Node, call.Life, call.Last = n.name, int(n.life.Load()), time.Now()
		cut := n.cutOff.Load()
		once, done := context.WithTimeout(ctx, attemptLimit)
		err := attempt(once, at)
		done()
		call.End, call.Attempts = time.Now(), call.Attempts+1
		call.CutOff = cut && n.cutOff.Load()
		if err == nil {
			call.Outcome, call.Error = Acknowledged, ""
			return call
		}
		call.Error = err.Error()
		switch did(err) {
		case nothing:
			if call.Outcome = Refused; open {
				call.Outcome = Unknown
			}
			return call
		case perhaps:
			open = true
		}
		if call.Attempts >= limit || ctx.Err() != nil {
			if call.Outcome = Refused; open {
				call.Outcome = Unknown
			}
			return call
		}
		if !stay {
			at = (at + 1) % len(c.nodes)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(c.dice.Int64N(int64(againAfter)))):
		}
	}
}

// What an attempt that failed did.
const (
	nothing = iota // and another would not either
	notYet         // it was told that nothing was changed
	perhaps
)

func did(err error) int {
	p, ok := errors.AsType[*client.Problem](err)
	switch {
	case !ok:
		return perhaps
	case p.Status < 500 && p.Status != http.StatusTooManyRequests:
		return nothing
	case strings.Contains(p.Detail, "nothing was changed"):
		return notYet
	}
	return perhaps
}

// issue asks for a certificate of a name that nobody had before.
func (c *caller) issue(ctx context.Context, limit int, stay bool) (Call, error) {
	name := fmt.Sprintf("%s-%d.chaos.example", c.name, c.next.Add(1))
	der, err := cert.CreateCSR(&cert.CSRTemplate{Subject: cert.CommonName(name), SAN: []cert.GeneralName{cert.DNSName(name)}}, c.key)
	if err != nil {
		return Call{}, err
	}
	in := client.IssueRequest{Profile: "server", CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}
	var got *client.IssueResult
	call := c.act(ctx, Call{Act: Issue, Name: name, Issuer: issuerName}, limit, stay, func(ctx context.Context, at int) (err error) {
		got, err = c.api[at].Issue(ctx, in)
		return err
	})
	if call.Outcome == Acknowledged {
		call.Serial = plain(got.Certificate.Serial)
		c.mu.Lock()
		c.valid = append(c.valid, call.Serial)
		c.mu.Unlock()
	}
	return call, c.history.add(call)
}

// plain is a serial number without leading zeros, in lower case.
func plain(serial string) string { return strings.TrimLeft(strings.ToLower(serial), "0") }

// some takes a serial number out of a list, or leaves it there.
func (c *caller) some(from *[]string, take bool) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(*from) == 0 {
		return ""
	}
	// Half of the time a young one, which standbys may not have yet.
	i := c.dice.IntN(len(*from))
	if c.dice.IntN(2) == 0 {
		i = len(*from) - 1 - c.dice.IntN(min(10, len(*from)))
	}
	serial := (*from)[i]
	if take {
		(*from)[i] = (*from)[len(*from)-1]
		*from = (*from)[:len(*from)-1]
	}
	return serial
}

func (c *caller) revoke(ctx context.Context) error {
	serial := c.doomed()
	if serial == "" {
		return nil
	}
	return c.revokes(ctx, serial, "superseded", attempts, false)
}

// doomed takes a certificate that nobody has asked to revoke, and that is asked about by OCSP from now on, before the outcome is known; none where
// there is none.
func (c *caller) doomed() string {
	serial := c.some(&c.valid, true)
	if serial != "" {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ended = append(c.ended, serial)
	}
	return serial
}

func (c *caller) revokes(ctx context.Context, serial, reason string, limit int, stay bool) error {
	return c.history.add(c.act(ctx, Call{Act: Revoke, Serial: serial, Issuer: issuerName, Reason: reason}, limit, stay, func(ctx context.Context, at int) error {
		_, err := c.api[at].Revoke(ctx, issuerName, serial, client.RevokeRequest{Reason: reason})
		return err
	}))
}

func (c *caller) ask(ctx context.Context) error {
	from := &c.ended
	if c.dice.IntN(4) == 0 {
		from = &c.valid
	}
	serial := c.some(from, false)
	if serial == "" {
		return nil
	}
	var status string
	var age time.Duration
	call := c.act(ctx, Call{Act: OCSP, Serial: serial, Issuer: issuerName}, 1, true, func(ctx context.Context, at int) (err error) {
		status, age, err = c.status(ctx, c.nodes[at], serial)
		return err
	})
	call.Status, call.Age = status, age
	return c.history.add(call)
}

// status asks a node about a certificate by OCSP.
func (c *caller) status(ctx context.Context, n *node, serial string) (status string, age time.Duration, err error) {
	number, ok := new(big.Int).SetString(serial, 16)
	if !ok {
		return "", 0, fmt.Errorf("serial %q", serial)
	}
	request, err := ocsp.CreateRequest(&x509.Certificate{SerialNumber: number}, c.issuer, nil)
	if err != nil {
		return "", 0, err
	}
	body, age, err := c.fetch(ctx, n, http.MethodPost, "/ocsp", request)
	if err != nil {
		return "", 0, err
	}
	answer, err := ocsp.ParseResponseForCert(body, &x509.Certificate{SerialNumber: number}, c.issuer)
	if err != nil {
		return "", 0, err
	}
	if !answer.NextUpdate.IsZero() && time.Now().After(answer.NextUpdate) {
		return "", 0, fmt.Errorf("the answer was good until %s", answer.NextUpdate)
	}
	return map[int]string{ocsp.Good: "good", ocsp.Revoked: "revoked", ocsp.Unknown: "unknown"}[answer.Status], age, nil
}

// fetch asks the public listener of a node.
func (c *caller) fetch(ctx context.Context, n *node, method, path string, body []byte) ([]byte, time.Duration, error) {
	ask, err := http.NewRequestWithContext(ctx, method, "http://"+n.public.address+path, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	if body != nil {
		ask.Header.Set("Content-Type", "application/ocsp-request")
	}
	answer, err := c.http.Do(ask)
	if err != nil {
		return nil, 0, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, 0, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("%s %s: %s: %.200s", method, path, answer.Status, text)
	}
	var age time.Duration
	if said := answer.Header.Get("Chancery-Data-Age"); said != "" {
		seconds, err := strconv.Atoi(said)
		if err != nil {
			return nil, 0, fmt.Errorf("Chancery-Data-Age %q: %w", said, err)
		}
		age = time.Duration(seconds) * time.Second
	}
	return text, age, nil
}

func (c *caller) crl(ctx context.Context) error {
	var list *x509.RevocationList
	var age time.Duration
	call := c.act(ctx, Call{Act: CRL, Issuer: issuerName}, 1, true, func(ctx context.Context, at int) (err error) {
		list, age, err = c.list(ctx, c.nodes[at])
		return err
	})
	if call.Outcome == Acknowledged {
		sum := sha256.Sum256(list.Raw)
		call.Age, call.Number, call.ThisUpdate, call.Digest = age, list.Number.Int64(), list.ThisUpdate, hex.EncodeToString(sum[:8])
		call.Entries = len(list.RevokedCertificateEntries)
	}
	return c.history.add(call)
}

// list fetches a node's complete CRL, and checks its signature.
func (c *caller) list(ctx context.Context, n *node) (*x509.RevocationList, time.Duration, error) {
	der, age, err := c.fetch(ctx, n, http.MethodGet, "/crl/"+issuerName+".crl", nil)
	if err != nil {
		return nil, 0, err
	}
	list, err := x509.ParseRevocationList(der)
	if err == nil {
		err = list.CheckSignatureFrom(c.issuer)
	}
	return list, age, err
}

// mixed does one act after the other, some by chance.
func (c *caller) mixed(ctx context.Context) (err error) {
	for err == nil && ctx.Err() == nil {
		switch n := c.dice.IntN(100); {
		case n < 20:
			_, err = c.issue(ctx, attempts, false)
		case n < 35:
			err = c.revoke(ctx)
		case n < 85:
			err = c.ask(ctx)
		default:
			err = c.crl(ctx)
		}
		if c.dice.IntN(20) == 0 {
			c.node = c.dice.IntN(len(c.nodes))
		}
		sleep(ctx, time.Duration(c.dice.Int64N(int64(60*time.Millisecond))))
	}
	return err
}

// steady issues at its node without a pause to speak of, so that the history shows when issuing went on.
func (c *caller) steady(ctx context.Context) (err error) {
	for err == nil && ctx.Err() == nil {
		_, err = c.issue(ctx, attempts, false)
		sleep(ctx, 100*time.Millisecond)
	}
	return err
}

// asks asks its node by OCSP and no other, whatever befalls that.
func (c *caller) asks(ctx context.Context) (err error) {
	for err == nil && ctx.Err() == nil {
		err = c.ask(ctx)
		sleep(ctx, 100*time.Millisecond)
	}
	return err
}

// pulse asks the member beside its node whether it lives, by the socket at which the node reads.
func (c *caller) pulse(ctx context.Context) error {
	n := c.nodes[c.node]
	pool, err := sql.Open("pgx", n.member.Local("chancery", "chancery"))
	if err != nil {
		return err
	}
	defer pool.Close()
	for {
		call := Call{Act: Pulse, Client: c.name, Node: n.name, Begin: time.Now(), Attempts: 1, Outcome: Acknowledged}
		once, done := context.WithTimeout(ctx, 2*time.Second)
		_, err := pool.ExecContext(once, "SELECT 1")
		done()
		if ctx.Err() != nil {
			return nil
		}
		if call.End = time.Now(); err != nil {
			call.Outcome, call.Error = Unknown, err.Error()
		}
		if err := c.history.add(call); err != nil {
			return err
		}
		sleep(ctx, 500*time.Millisecond)
	}
}

// watch notes who holds the leases, as a node says that can also say how old its data are.
func (c *caller) watch(ctx context.Context) error {
	for ctx.Err() == nil {
		c.node = (c.node + 1) % len(c.nodes)
		once, done := context.WithTimeout(ctx, attemptLimit)
		begin := time.Now()
		_, age, err := c.list(once, c.nodes[c.node])
		var nodes []client.Clone
		if err == nil {
			nodes, err = client.Collect(c.api[c.node].Clones(once))
		}
		done()
		for _, n := range nodes {
			for _, l := range n.Leases {
				if err != nil {
					break
				}
				err := c.history.add(Call{Act: Signer, Client: c.name, Node: c.nodes[c.node].name, Begin: begin, End: time.Now(), Age: age, Name: l.Name, Epoch: l.Epoch, Holder: l.Holder})
				if err != nil {
					return err
				}
			}
		}
		sleep(ctx, 300*time.Millisecond)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
