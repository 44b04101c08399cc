// Package importer reads certification authorities that exist already, so that their operators can move here without
// replacing a single certificate: certtool's pair of files, the directory that `openssl ca` keeps, and PKCS#12. What it
// reads becomes one neutral value, checked as a whole before anything is stored: the issuer and its key, what it issued,
// what it revoked and why, and how far its CRL numbers went.
//
// RFC 5280 §4 and §5; the index format is that of openssl-ca(1). Divergences from it:
//
//   - A line that cannot be understood is refused with its number. openssl ca skips nothing either, but says less.
//   - keyTime and CAkeyTime become keyCompromise and cACompromise with an invalidityDate, and holdInstruction becomes
//     certificateHold: these are what openssl writes into its CRLs. The hold instruction itself is dropped (RFC 5280 §5.3
//     no longer defines it).
//   - A certificate that the CRL lists and the index calls valid is imported as revoked.
//
// The serial file is read for information only: serial numbers here are random. Nothing in the package writes to the CA's
// files, and no error or warning contains key material.
package importer

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// CA is a certification authority that was read and found fit to go on here.
type CA struct {
	Certificate *x509.Certificate
	Chain       []*x509.Certificate // the certificates above it, as far as the source has them; root last
	Key         crypto.Signer
	Token       string // PKCS #11 URI of the key, instead of Key
	Issued      []ca.Record
	NextSerial  *big.Int // what the CA would have used next; nil when the source does not say
	CRLNumber   *big.Int // the greatest CRLNumber that it used; nil when the source does not say
	Warnings    []string // what does not forbid the import and an operator should know

	unsaid int // warnings beyond maxWarnings
}

// Files is a CA that consists of single files, such as certtool's.
type Files struct {
	Certificate []byte   // the CA certificate, with those above it in any order, PEM or DER
	Key         []byte   // any form that keyfile reads
	Password    []byte   // of Key; nil when it is not encrypted
	Chain       []byte   // further certificates above it; may be nil
	Issued      [][]byte // certificates that it issued, one or several a file
	CRLs        [][]byte // the newest CRLs that it signed
}

// FromFiles reads a CA from its files.
func FromFiles(f Files, now time.Time) (*CA, error) {
	key, err := keyfile.ParsePrivateKey(f.Key, f.Password)
	if err != nil {
		return nil, fmt.Errorf("CA key: %w", err)
	}
	certs, err := keyfile.ParseCertificates(f.Certificate)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	if len(f.Chain) > 0 {
		above, err := keyfile.ParseCertificates(f.Chain)
		if err != nil {
			return nil, fmt.Errorf("certificates above the CA: %w", err)
		}
		certs = append(certs, above...)
	}
	c, err := newCA(key, certs, now)
	if err != nil {
		return nil, err
	}
	return newBook(c).finish(f.Issued, f.CRLs)
}

// PKCS12 is a CA in a key store. Certificates that it issued and its CRLs come in files of their own.
type PKCS12 struct {
	Store    []byte
	Password []byte
	Alias    string // which entry; may be empty where one entry alone is a CA's
	Issued   [][]byte
	CRLs     [][]byte
}

// FromPKCS12 reads a CA from a key store.
func FromPKCS12(p PKCS12, now time.Time) (*CA, error) {
	entries, err := keyfile.DecodePKCS12(p.Store, p.Password)
	if err != nil {
		return nil, fmt.Errorf("CA key store: %w", err)
	}
	found, err := p.choose(entries)
	if err != nil {
		return nil, err
	}
	certs := slices.Clone(found.Chain)
	for _, e := range entries {
		certs = append(certs, e.Chain...)
	}
	c, err := newCA(found.Key, certs, now)
	if err != nil {
		return nil, err
	}
	return newBook(c).finish(p.Issued, p.CRLs)
}

// choose returns the entry of the CA's key.
func (p PKCS12) choose(entries []keyfile.Entry) (*keyfile.Entry, error) {
	var found *keyfile.Entry
	var aliases []string
	for i, e := range entries {
		isCA := len(e.Chain) > 0 && e.Chain[0].IsCA
		if e.Key == nil || p.Alias != "" && e.Alias != p.Alias || p.Alias == "" && !isCA {
			continue
		}
		aliases = append(aliases, fmt.Sprintf("%q", e.Alias))
		found = &entries[i]
	}
	switch {
	case found == nil && p.Alias != "":
		return nil, fault.New(fault.Invalid, "the key store has no private key named %q", p.Alias)
	case found == nil:
		return nil, fault.New(fault.Invalid, "the key store has no private key with a CA certificate")
	case len(aliases) > 1:
		return nil, fault.New(fault.Invalid, "the key store has several CA keys: %s; name the one to import",
			strings.Join(aliases, ", "))
	}
	return found, nil
}

// newCA picks the key's certificate and the path above it out of certs, and judges them.
func newCA(key crypto.Signer, certs []*x509.Certificate, now time.Time) (*CA, error) {
	c := &CA{Key: key}
	for _, x := range certs {
		if keyfile.CheckPair(key, x) != nil {
			continue
		}
		if c.Certificate != nil && !c.Certificate.Equal(x) {
			c.warn("the key has several certificates; the one that lasts longest is taken")
		}
		if c.Certificate == nil || x.NotAfter.After(c.Certificate.NotAfter) {
			c.Certificate = x
		}
	}
	if c.Certificate == nil {
		if len(certs) == 0 {
			return nil, fault.New(fault.Invalid, "the CA has a key and no certificate")
		}
		return nil, keyfile.CheckPair(key, certs[0])
	}
	c.Chain = keyfile.PathFrom(c.Certificate, certs)[1:]
	if err := c.check(now); err != nil {
		return nil, err
	}
	return c, nil
}

// maxWarnings bounds what an operator is told: the records of a large CA may all have the same flaw.
const maxWarnings = 50

func (c *CA) warn(format string, args ...any) {
	if len(c.Warnings) >= maxWarnings {
		c.unsaid++
		return
	}
	if text := fmt.Sprintf(format, args...); !slices.Contains(c.Warnings, text) {
		c.Warnings = append(c.Warnings, text)
	}
}

// Revoked counts the certificates that are revoked or held.
func (c *CA) Revoked() int {
	n := 0
	for _, i := range c.Issued {
		if i.Revocation != nil {
			n++
		}
	}
	return n
}
