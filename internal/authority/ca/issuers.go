package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/db"
)

// issuerSet is all issuers at one moment. There are few, and they change rarely.
type issuerSet struct {
	all     []*Issuer // by name
	checked time.Time
}

// find returns the issuer with that name or ID.
func (s *issuerSet) find(nameOrID string) *Issuer {
	for _, i := range s.all {
		if i.Name == nameOrID || i.ID == nameOrID {
			return i
		}
	}
	return nil
}

func (s *issuerSet) byNumber(number int64) *Issuer {
	for _, i := range s.all {
		if i.number == number {
			return i
		}
	}
	return nil
}

// issuerCache holds the newest issuerSet.
type issuerCache struct {
	refresh sync.Mutex // held by the one who asks the database

	// mu guards what follows, and is never held while the database is asked: known is called within transactions, and if it
	// waited for one who waits for a connection, all connections could come to wait for each other.
	mu        sync.Mutex
	current   *issuerSet
	forgotten int // how often; what was asked before is not kept
}

// maxIssuerAge is how long another node's change of an issuer may take to be seen.
const maxIssuerAge = time.Second

func (c *issuerCache) load() (current *issuerSet, forgotten int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current, c.forgotten
}

// keep keeps a set unless the cache was told to forget while the database was asked.
func (c *issuerCache) keep(set *issuerSet, forgotten int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.forgotten == forgotten {
		c.current = set
	}
}

// fresh reports whether a set is as new as who asks at the instant now may expect. One that was read since he asked is: of
// many who waited for the one who asks the database, only the first asks again. It is not much newer unless a clock went back.
func (s *issuerSet) fresh(now time.Time) bool {
	if s == nil {
		return false
	}
	age := now.Sub(s.checked)
	return age < maxIssuerAge && age > -time.Minute
}

// issuersNow returns the issuers as they were within the last second.
func (c *CA) issuersNow(ctx context.Context, now time.Time) (*issuerSet, error) {
	if known, _ := c.issuers.load(); known.fresh(now) {
		return known, nil
	}
	c.issuers.refresh.Lock()
	defer c.issuers.refresh.Unlock()
	known, forgotten := c.issuers.load()
	if known.fresh(now) {
		return known, nil
	}
	if waited := time.Now(); waited.After(now) {
		now = waited
	}
	set, err := c.readSet(ctx, now, forgotten)
	if err != nil && known != nil && fault.Is(err, fault.Unavailable) {
		return known, nil // what is known of issuers serves as long as the database is away
	}
	return set, err
}

// issuersAnew returns the issuers as the primary has them: who changes one may have made it by another node, or by a command in
// the directory of this one, a moment ago.
func (c *CA) issuersAnew(ctx context.Context) (*issuerSet, error) {
	c.issuers.refresh.Lock()
	defer c.issuers.refresh.Unlock()
	_, forgotten := c.issuers.load()
	return c.readSet(db.AtPrimary(ctx), time.Now(), forgotten)
}

// readSet reads the issuers and keeps them. c.issuers.refresh is held.
func (c *CA) readSet(ctx context.Context, now time.Time, forgotten int) (*issuerSet, error) {
	set := &issuerSet{checked: now}
	err := c.db.Read(ctx, func(tx *db.Tx) (err error) {
		set.all, err = readIssuers(ctx, tx, "")
		return err
	})
	if err != nil {
		return nil, err
	}
	c.issuers.keep(set, forgotten)
	return set, nil
}

// known returns the cached set whatever its age, for what never changes: names, numbers, partitions.
func (c *CA) known() *issuerSet {
	if known, _ := c.issuers.load(); known != nil {
		return known
	}
	return new(issuerSet)
}

// forget makes the next look at the issuers go to the database.
func (c *CA) forget() {
	c.issuers.mu.Lock()
	defer c.issuers.mu.Unlock()
	c.issuers.current = nil
	c.issuers.forgotten++
}

// issuer finds an issuer by name or ID within a transaction.
func (c *CA) issuer(ctx context.Context, tx *db.Tx, nameOrID string) (*Issuer, error) {
	if i := c.known().find(nameOrID); i != nil {
		return i, nil
	}
	return oneIssuer(ctx, tx, `there is no issuer "`+nameOrID+`"`, ` WHERE name = $1 OR id = $1`, nameOrID)
}

func (c *CA) issuerByNumber(ctx context.Context, tx *db.Tx, number int64) (*Issuer, error) {
	if i := c.known().byNumber(number); i != nil {
		return i, nil
	}
	return oneIssuer(ctx, tx, fmt.Sprintf("there is no issuer with number %d", number), ` WHERE number = $1`, number)
}

func oneIssuer(ctx context.Context, tx *db.Tx, missing, where string, arg any) (*Issuer, error) {
	found, err := readIssuers(ctx, tx, where, arg)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fault.New(fault.NotFound, "%s", missing).WithHint("chancery issuer list")
	}
	return found[0], nil
}

// IssuerIn is an issuer as it is in the caller's transaction, whatever this node knew of it before.
func IssuerIn(ctx context.Context, tx *db.Tx, id string) (*Issuer, error) {
	return oneIssuer(ctx, tx, "issuer "+id+" is gone", ` WHERE id = $1`, id)
}

const issuerColumns = `id, number, name, pool, state, is_default, parent, key_id, public_key, certificate, chain, csr, crl, created_at`

func readIssuers(ctx context.Context, tx *db.Tx, where string, args ...any) ([]*Issuer, error) {
	issuers, err := readIssuerRows(ctx, tx, where, args...)
	if err != nil || len(issuers) == 0 {
		return issuers, err
	}
	return issuers, readFormer(ctx, tx, issuers)
}

func readIssuerRows(ctx context.Context, tx *db.Tx, where string, args ...any) ([]*Issuer, error) {
	rows, err := tx.Query(ctx, `SELECT `+issuerColumns+` FROM issuer`+where+` ORDER BY name`, args...)
	if err != nil {
		return nil, fmt.Errorf("read issuers: %w", err)
	}
	defer rows.Close()
	var issuers []*Issuer
	for rows.Next() {
		var (
			i                  Issuer
			isDefault, created int64
			certificate, chain []byte
			mode               string
		)
		if err := rows.Scan(&i.ID, &i.number, &i.Name, &i.Pool, &i.State, &isDefault, &i.Parent, &i.KeyID, &i.PublicKey, &certificate,
			&chain, &i.CSR, &mode, &created); err != nil {
			return nil, fmt.Errorf("read issuers: %w", err)
		}
		i.Default, i.CreatedAt = isDefault == 1, db.FromMicros(created)
		if err := json.Unmarshal([]byte(mode), &i.CRL); err != nil {
			return nil, fmt.Errorf("read the CRL mode of issuer %s: %w", i.Name, err)
		}
		if len(certificate) > 0 {
			if i.Certificate, err = x509.ParseCertificate(certificate); err != nil {
				return nil, fmt.Errorf("read the certificate of issuer %s: %w", i.Name, err)
			}
		}
		if i.Chain, err = x509.ParseCertificates(chain); err != nil {
			return nil, fmt.Errorf("read the chain of issuer %s: %w", i.Name, err)
		}
		if i.Certificate != nil {
			// What cannot be read is refused when a certificate is made, and does not keep the other issuers from being read.
			if read, err := cert.ReadPathConstraints(append([]*x509.Certificate{i.Certificate}, i.Chain...)); err == nil {
				i.constraints = read
			}
		}
		issuers = append(issuers, &i)
	}
	return issuers, rows.Err()
}

// checkOthers refuses a name that is taken, a subject that another key has, since many relying parties take the first of two equal
// subjects, and a second issuer of one subject and key where this authority has the key for both, or would get it for a new one beside one
// whose lists are signed elsewhere: they would sign CRLs that contradict each other. Subjects are compared as RFC 5280 7.1 says, without
// regard to case.
func checkOthers(ctx context.Context, tx *db.Tx, i *Issuer, subject []byte, fresh bool) error {
	own, err := cert.ParseNameDER(subject)
	if err != nil {
		return fault.New(fault.Invalid, "the subject of issuer %q: %w", i.Name, err)
	}
	rows, err := tx.Query(ctx, `SELECT name, state, key_id, public_key, subject, certificate FROM issuer WHERE id <> $1`, i.ID)
	if err != nil {
		return fmt.Errorf("look for issuers of the same name: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var name, state, keyID string
		var key, der, certificate []byte
		if err := rows.Scan(&name, &state, &keyID, &key, &der, &certificate); err != nil {
			return fmt.Errorf("look for issuers of the same name: %w", err)
		}
		if name == i.Name {
			return fault.New(fault.Conflict, "there is an issuer %q already; choose another name", i.Name)
		}
		other, err := cert.ParseNameDER(der)
		switch {
		case err != nil || !other.Equal(own):
		case !bytes.Equal(key, i.PublicKey):
			return fault.New(fault.Conflict, "issuer %q has the same subject with another key; many relying parties take the first of "+
				"two equal subjects, so a re-keyed issuer needs a new one", name)
		case i.KeyID != "" && keyID != "":
			return i.secondOf(name, IssuerState(state), certificate)
		case i.KeyID != "" && fresh:
			return keyOf(name).WithHint("chancery import CA --key K --name %s", name)
		}
	}
	return rows.Err()
}

// keyOf refuses a key beside an issuer of its subject that is here without it.
func keyOf(name string) *fault.Error {
	return fault.New(fault.Conflict, "issuer %q has the same subject and the same key, which is not here; two issuers of one subject and key would sign CRLs that contradict "+
		"each other, so the key is given to that one", name)
}

// secondOf refuses an issuer whose subject and key another one has, and says how that one gets what this one would bring.
func (i *Issuer) secondOf(name string, state IssuerState, certificate []byte) error {
	refusal := fault.New(fault.Conflict, "issuer %q has the same subject and the same key, and is %s; two issuers of one subject and key would sign CRLs "+
		"that contradict each other, so one issuer has its certificates after each other", name, state)
	switch {
	case i.Certificate == nil:
		return refusal.WithHint("chancery issuer renew %s --csr-out F", name)
	case bytes.Equal(i.Certificate.Raw, certificate) && state == IssuerRetired:
		return refusal.WithHint("chancery issuer reopen %s makes it active again, unless its key is compromised", name)
	case bytes.Equal(i.Certificate.Raw, certificate):
		return refusal.WithHint("chancery issuer show %s", name)
	case i.Root():
		return refusal.WithHint("chancery rollout start rotate-root, since a root's new certificate has to be in every store before anything is under it")
	case state == IssuerRetired:
		return refusal.WithHint("chancery issuer renew %s --certificate F makes it active again with the new one, unless its key is compromised", name)
	}
	return refusal.WithHint("chancery issuer renew %s --certificate F", name)
}

// insertIssuer stores a new issuer.
func (c *CA) insertIssuer(ctx context.Context, tx *db.Tx, i *Issuer, subject []byte) error {
	if err := checkOthers(ctx, tx, i, subject, true); err != nil {
		return err
	}
	if err := ownRoot(ctx, tx, i); err != nil {
		return err
	}
	if err := tx.QueryRow(ctx, `SELECT COALESCE(MAX(number), 0) + 1 FROM issuer`).Scan(&i.number); err != nil {
		return fmt.Errorf("number the issuer: %w", err)
	}
	if i.Default {
		if err := clearDefault(ctx, tx, i.Pool); err != nil {
			return err
		}
	}
	mode, err := json.Marshal(i.CRL)
	if err != nil {
		return fmt.Errorf("encode the CRL mode: %w", err)
	}
	certificate, chain, notAfter := i.stored()
	_, err = tx.Exec(ctx, `INSERT INTO issuer (`+issuerColumns+`, subject, not_after)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
		i.ID, i.number, i.Name, i.Pool, string(i.State), bit(i.Default), i.Parent, i.KeyID, i.PublicKey, certificate, chain,
		bytesOf(i.CSR), string(mode), db.Micros(i.CreatedAt), subject, notAfter)
	if err != nil {
		return fmt.Errorf("insert issuer %s: %w", i.Name, err)
	}
	return nil
}

// stored returns the issuer's certificate and chain as the table holds them.
func (i *Issuer) stored() (certificate, chain []byte, notAfter int64) {
	certificate, chain = []byte{}, []byte{}
	if i.Certificate != nil {
		certificate, notAfter = i.Certificate.Raw, db.Micros(i.Certificate.NotAfter)
	}
	for _, above := range i.Chain {
		chain = append(chain, above.Raw...)
	}
	return certificate, chain, notAfter
}

func clearDefault(ctx context.Context, tx *db.Tx, pool string) error {
	if _, err := tx.Exec(ctx, `UPDATE issuer SET is_default = 0 WHERE pool = $1 AND is_default = 1`, pool); err != nil {
		return fmt.Errorf("clear the default issuer of pool %s: %w", pool, err)
	}
	return nil
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func bytesOf(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// Issuers lists all issuers, by name.
func (c *CA) Issuers(ctx context.Context) ([]*Issuer, error) {
	set, err := c.issuersNow(ctx, time.Now())
	if err != nil {
		return nil, fmt.Errorf("list issuers: %w", err)
	}
	return slices.Clone(set.all), nil
}

// Issuer returns the issuer with that name or ID.
func (c *CA) Issuer(ctx context.Context, nameOrID string) (*Issuer, error) {
	set, err := c.issuersNow(ctx, time.Now())
	if err != nil {
		return nil, fmt.Errorf("load issuer %s: %w", nameOrID, err)
	}
	if i := set.find(nameOrID); i != nil {
		return i, nil
	}
	return nil, fault.New(fault.NotFound, "there is no issuer %q", nameOrID).WithHint("chancery issuer list")
}

// forIssuance returns the issuer that an order names, or the default of its pool.
func (s *issuerSet) forIssuance(order *Order) (*Issuer, error) {
	pool := order.Pool
	if pool == "" {
		pool = DefaultPool
	}
	var found *Issuer
	if old := order.replaces; old != nil {
		switch next := s.find(order.successor); {
		case old.Issuer.State != IssuerActive || old.Issuer.KeyID == "":
			order = &Order{Pool: old.Issuer.Pool} // the default of the pool has taken its place
			pool = order.Pool
		case next != nil && next.Pool == old.Issuer.Pool && next.State == IssuerActive && next.KeyID != "":
			order = &Order{Issuer: next.ID}
		}
	}
	if order.Issuer != "" {
		if found = s.find(order.Issuer); found == nil {
			return nil, fault.New(fault.NotFound, "there is no issuer %q", order.Issuer).WithHint("chancery issuer list")
		}
		if order.Pool != "" && found.Pool != order.Pool {
			return nil, fault.New(fault.Conflict, "issuer %q is of pool %q, not of %q", found.Name, found.Pool, order.Pool)
		}
	} else if n := slices.IndexFunc(s.all, func(i *Issuer) bool { return i.Default && i.Pool == pool }); n >= 0 {
		found = s.all[n]
	} else {
		return nil, fault.New(fault.NotFound, "pool %q has no default issuer; name one", pool).WithHint("chancery issuer list")
	}
	switch {
	case found.State == IssuerPending, found.State == IssuerRetired && !order.responder:
		return nil, fault.New(fault.Conflict, "issuer %q is %s; only an active issuer issues", found.Name, found.State)
	case found.Pool == IdentityPool && !order.identity && !order.responder:
		// A server certificate from here, for the name of a node, would be a node to every client; and a client certificate
		// for the key of an identity that was revoked would be that identity again.
		return nil, fault.New(fault.Denied, "issuer %q issues identities, and no order gets one", found.Name).
			WithHint("chancery operator enrol gives an identity; name another issuer or pool for other certificates")
	case found.KeyID == "":
		return nil, fault.New(fault.Conflict, "the key of issuer %q is offline; what it issues is signed where the key is", found.Name)
	}
	return found, nil
}

// DefaultPool is the pool of orders that name none. IdentityPool holds the issuer of identities: by its certificates callers
// are known to the authority and nodes to them, so it issues through IssueIdentity alone, under the profile IdentityProfile.
const (
	DefaultPool     = "default"
	IdentityPool    = "identity"
	IdentityProfile = "identity"
)

// checkName holds an issuer's name to what can stand in a URL and a file name as it is.
func checkName(name string) error {
	if name == "" || len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || name[0] == '-' {
		return fault.New(fault.Invalid, "issuer name %q is not 1 to 63 characters of a-z, 0-9 and -, the first not -", name)
	}
	return nil
}
