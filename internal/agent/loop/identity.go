package loop

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// identity is the certificate by which the agent is known to the authority, with everything that goes with it: the
// generation counts identities, so it is replaced in the same write as the key.
type identity struct {
	Address     string `json:"address"`
	Host        string `json:"host"`
	Generation  int64  `json:"generation"`
	Epoch       string `json:"epoch"`       // of this join: what was issued before it is replaced
	Key         string `json:"key"`         // PKCS#8, PEM
	Certificate string `json:"certificate"` // PEM
	Chain       string `json:"chain,omitempty"`

	pair tls.Certificate
}

// enrolment is what an identity is asked for with. It is kept until the identity is there, so that a repeated call is the
// same call.
type enrolment struct {
	IdempotencyKey string `json:"idempotency_key"`
	Key            string `json:"key"`
	CSR            string `json:"csr"`
	Generation     int64  `json:"generation,omitempty"` // 0: at join
	// Token is the SHA-256 of the token that a join redeems: a key that may have been enrolled with one token proves who
	// that one was for, and is of no use with another.
	Token string `json:"token,omitempty"`
}

// graceAfterExpiry is how long after its end an identity may still be renewed with its own key.
const graceAfterExpiry = 30 * 24 * time.Hour

// loadIdentity reads the identity; nil where the host has not joined.
func (s *State) loadIdentity() (*identity, error) {
	var id identity
	found, err := s.readJSON(&id, fileIdentity)
	if err != nil || !found {
		return nil, err
	}
	if err := id.parse(); err != nil {
		return nil, fmt.Errorf("read the identity in %s: %w", s.path(fileIdentity), err)
	}
	return &id, nil
}

func (id *identity) parse() error {
	pair, err := tls.X509KeyPair([]byte(id.Certificate+id.Chain), []byte(id.Key))
	if err != nil {
		return err
	}
	id.pair = pair
	return nil
}

// newEnrolment makes a key and a request, or takes those that were made for the same generation, at join with the same
// token, and may have been sent. Those that cannot be read any more are set aside.
func (s *State) newEnrolment(generation int64, token string) (*enrolment, error) {
	if token != "" {
		token = fmt.Sprintf("%x", client.Fingerprint([]byte(token)))
	}
	var e enrolment
	found, err := s.readJSON(&e, fileEnrolment)
	if broken, is := errors.AsType[*unreadable](err); is {
		if _, err = s.putAway(fileEnrolment); err != nil {
			return nil, errors.Join(broken, err)
		}
		found = false
	}
	if err != nil {
		return nil, err
	}
	if found && e.Generation == generation && e.Token == token {
		return &e, nil
	}
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		return nil, err
	}
	text, err := keyfile.EncodePKCS8(key)
	if err != nil {
		return nil, err
	}
	csr, err := requestPEM(&cert.CSRTemplate{}, key)
	if err != nil {
		return nil, err
	}
	e = enrolment{IdempotencyKey: rand.Text(), Key: string(text), CSR: csr, Generation: generation, Token: token}
	return &e, s.writeJSON(e, fileEnrolment)
}

func requestPEM(t *cert.CSRTemplate, key crypto.Signer) (string, error) {
	der, err := cert.CreateCSR(t, key)
	if err != nil {
		return "", fmt.Errorf("make a request: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// JoinOptions are what a host joins with.
type JoinOptions struct {
	State string
	Root  string // put before every path that is placed, from now on
	Token string
	// Again takes a new identity where the host has one: after host replace, or because the old one ended.
	Again   bool
	Version string
	Cut     func(step string)
}

// Joined is what came of a join.
type Joined struct {
	Host    string    `json:"host"`
	Address string    `json:"address"`
	Ends    time.Time `json:"identity_ends"`
}

// Join redeems a token for an identity. The roots that the authority shows are believed only where the token names one of
// them, and the token's secret is sent only over a connection that chains to it. A join that was cut short is repeated with
// the same token: the key is kept, and so the answer is the same. With another token another key is made.
func Join(ctx context.Context, o JoinOptions) (*Joined, error) {
	s, err := OpenState(o.State, o.Cut)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := s.settleRoot(o.Root); err != nil {
		return nil, err
	}
	before, err := s.loadIdentity()
	if err != nil && !o.Again {
		return nil, err
	}
	if before != nil && !o.Again {
		return nil, fault.New(fault.Conflict, "this host has joined already, as %s at %s", before.Host, before.Address).
			WithHint("give --again to take a new identity with a new token")
	}
	token, err := client.ParseJoinToken(o.Token)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s", err).WithHint("chancery host add prints a token when it adds the host, chancery host token another one")
	}
	roots, err := client.JoinRoots(ctx, token.Address, token.Fingerprint)
	if err != nil {
		return nil, err
	}
	pool, err := rootPool([]byte(roots))
	if err != nil {
		return nil, err
	}
	api, err := client.New(client.Options{Address: token.Address, Roots: pool, UserAgent: userAgent(o.Version)})
	if err != nil {
		return nil, err
	}
	defer api.Close()
	ask, err := s.newEnrolment(0, o.Token)
	if err != nil {
		return nil, err
	}
	answer, err := api.Join(client.WithIdempotencyKey(ctx, ask.IdempotencyKey), client.JoinRequest{Token: o.Token, CSR: ask.CSR, Agent: o.Version})
	if err != nil {
		return nil, err
	}
	return s.joined(token, ask, answer, before)
}

func userAgent(version string) string { return "chancery-agent/" + version }

func rootPool(text []byte) (*x509.CertPool, error) {
	certificates, err := keyfile.ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("read the roots of identities: %w", err)
	}
	pool := x509.NewCertPool()
	for _, c := range certificates {
		pool.AddCert(c)
	}
	return pool, nil
}

// joined keeps what the authority answered; the identity is written last, because it says that the host has joined.
func (s *State) joined(token *client.JoinToken, ask *enrolment, answer *client.Joined, before *identity) (*Joined, error) {
	id := &identity{Address: token.Address, Host: answer.Host, Generation: answer.Generation, Key: ask.Key, Certificate: answer.Certificate, Chain: answer.Chain}
	id.Epoch = fmt.Sprintf("%x", client.Fingerprint([]byte(ask.CSR))[:8])
	if err := id.parse(); err != nil {
		return nil, fmt.Errorf("read the identity that the authority answered: %w", err)
	}
	if err := s.pinRoots([]byte(answer.Roots), token.Fingerprint); err != nil {
		return nil, err
	}
	if before != nil && before.Host != answer.Host {
		if err := s.setAside(before.Host); err != nil {
			return nil, err
		}
	}
	if answer.AuditKey != "" {
		if err := s.write([]byte(answer.AuditKey), fileAuditKey); err != nil {
			return nil, err
		}
	}
	if err := s.writeJSON(id, fileIdentity); err != nil {
		return nil, err
	}
	if err := s.remove(fileEnrolment); err != nil {
		return nil, err
	}
	return &Joined{Host: id.Host, Address: id.Address, Ends: id.pair.Leaf.NotAfter}, nil
}

// pinRoots keeps the roots of identities, among which must be the one that the token named.
func (s *State) pinRoots(text []byte, fingerprint []byte) error {
	certificates, err := keyfile.ParseCertificates(text)
	if err != nil {
		return fmt.Errorf("read the roots of identities: %w", err)
	}
	for _, c := range certificates {
		if bytes.Equal(client.Fingerprint(c.Raw), fingerprint) {
			return s.write(keyfile.EncodeCertificates(certificates...), fileRoots)
		}
	}
	return errors.New("the authority answered with roots of identities of which none is the one that the token names")
}

// setAside keeps what was held in the name of another host, out of the way: it is neither renewed nor removed.
func (s *State) setAside(host string) error {
	name := dirPlacements + "-of-" + safeName(host)
	if _, err := os.Stat(s.path(dirPlacements)); err != nil {
		return nil
	}
	s.step("before setting aside")
	if err := os.RemoveAll(s.path(name)); err != nil {
		return fmt.Errorf("set aside what was held as %s: %w", host, err)
	}
	if err := os.Rename(s.path(dirPlacements), s.path(name)); err != nil {
		return fmt.Errorf("set aside what was held as %s: %w", host, err)
	}
	for _, file := range []string{fileDesired, fileCheckpoint} {
		if err := s.remove(file); err != nil {
			return err
		}
	}
	return syncDirectory(s.dir)
}

// safeName makes a part of a path of any text.
func safeName(text string) string {
	if plainName(text) {
		return text
	}
	return fmt.Sprintf("x%x", client.Fingerprint([]byte(text))[:16])
}

// renewIdentity takes a new identity when two thirds of the old one's life are over, and for 30 days after its end; and where
// the authority asks for one of a generation above after.
func (a *Agent) renewIdentity(ctx context.Context, after int64, now time.Time) error {
	id := a.identity()
	leaf := id.pair.Leaf
	asked := after > 0 && id.Generation <= after
	if !asked && now.Before(dueAt(leaf, id.Host+"/identity")) || !a.tries.may("identity", now) {
		return nil
	}
	if now.After(leaf.NotAfter.Add(graceAfterExpiry)) {
		return fault.New(fault.Denied, "the identity of this host ended on %s, over 30 days ago, and cannot renew itself any more; "+
			"to let the host in again: chancery host replace %s, and on this host: chancery agent join --again --token-file F",
			leaf.NotAfter.UTC().Format(time.RFC3339), id.Host)
	}
	ask, err := a.state.newEnrolment(id.Generation, "")
	if err != nil {
		return err
	}
	answer, err := a.api.RenewIdentity(client.WithIdempotencyKey(ctx, ask.IdempotencyKey), client.RenewIdentityRequest{CSR: ask.CSR, Generation: id.Generation})
	if err != nil {
		a.tries.failed("identity", now, a.pace)
		return fmt.Errorf("renew the identity: %w", err)
	}
	fresh := &identity{Address: id.Address, Host: id.Host, Generation: answer.Generation, Epoch: id.Epoch, Key: ask.Key, Certificate: answer.Certificate, Chain: answer.Chain}
	if err := fresh.parse(); err != nil {
		return fmt.Errorf("read the identity that the authority answered: %w", err)
	}
	if answer.Host != id.Host {
		return fmt.Errorf("the authority answered with an identity of %q, and this host is %q", answer.Host, id.Host)
	}
	if err := a.takeRoots([]byte(answer.Roots)); err != nil {
		return err
	}
	if err := a.state.writeJSON(fresh, fileIdentity); err != nil {
		return err
	}
	if err := a.state.remove(fileEnrolment); err != nil {
		return err
	}
	a.setIdentity(fresh)
	a.setGone(nil)
	a.api.Close() // the next call shows the new one
	a.tries.succeeded("identity")
	a.log.Info("identity renewed", "host", id.Host, "generation", fresh.Generation, "not_after", fresh.pair.Leaf.NotAfter)
	return nil
}

// takeRoots keeps new roots of identities beside the pinned ones. They come over a connection that the pinned ones
// verified, so that a root can be replaced; a pinned root is never dropped by what comes from the network.
func (a *Agent) takeRoots(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	have, err := a.state.read(fileRoots)
	if err != nil {
		return err
	}
	pinned, err := keyfile.ParseCertificates(have)
	if err != nil {
		return fmt.Errorf("read the pinned roots: %w", err)
	}
	offered, err := keyfile.ParseCertificates(text)
	if err != nil {
		return fmt.Errorf("read the roots that the authority answered: %w", err)
	}
	n := len(pinned)
	for _, c := range offered {
		known := false
		for _, p := range pinned {
			known = known || p.Equal(c)
		}
		if !known {
			pinned = append(pinned, c)
		}
	}
	if len(pinned) == n {
		return nil
	}
	return a.state.write(keyfile.EncodeCertificates(pinned...), fileRoots)
}
