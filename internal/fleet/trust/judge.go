package trust

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // what roots of 2005 signed themselves with; nothing is believed because of it
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"golang.org/x/text/unicode/norm"
)

const (
	// maxPEM bounds what is added by one call: a distribution's bundle of all public CAs is a quarter of it.
	maxPEM = 1 << 20
	// maxEntries bounds what a pool trusts for one purpose.
	maxEntries = 1000
	maxComment = 200
	maxPurpose = 32
)

// checkPurpose holds a purpose to what can stand in a recipe and in a file name.
func checkPurpose(purpose string) error {
	if purpose == "" || len(purpose) > maxPurpose || strings.Trim(purpose, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || purpose[0] == '-' {
		return fault.New(fault.Invalid, "purpose %.80q is not 1 to %d of a-z, 0-9 and -, the first not -", purpose, maxPurpose).At("/purpose")
	}
	return nil
}

func checkComment(comment string) error {
	if len(comment) > maxComment || strings.ContainsFunc(comment, unicode.IsControl) {
		return fault.New(fault.Invalid, "a comment is one line of at most %d octets", maxComment).At("/comment")
	}
	return nil
}

// parseBundle reads certificates in PEM; text between them is passed over, as bundles of public CAs have it. One that is there
// twice is taken once.
func parseBundle(text string) ([]*x509.Certificate, error) {
	if len(text) > maxPEM {
		return nil, fault.New(fault.TooLarge, "there are %d octets of certificates; at most %d pass at once", len(text), maxPEM).At("/pem")
	}
	var all []*x509.Certificate
	n := 0
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if bytes.Contains(rest, []byte("-----BEGIN ")) {
				return nil, fault.New(fault.Invalid, "what follows certificate %d begins as PEM does and is none that can be read", n).At("/pem")
			}
			break
		}
		n++
		if strings.Contains(block.Type, "PRIVATE KEY") {
			return nil, fault.New(fault.Invalid, "block %d is a private key, which has no place in what others trust; only CERTIFICATE blocks pass", n).At("/pem").
				WithHint("who watched may have the key now: replace it if it is in use")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fault.New(fault.Invalid, "block %d is a %q; only CERTIFICATE blocks pass", n, block.Type).At("/pem")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fault.New(fault.Invalid, "certificate %d cannot be read: %w", n, err).At("/pem")
		}
		if !slices.ContainsFunc(all, c.Equal) {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return nil, fault.New(fault.Invalid, "there is no certificate; one or more in PEM are wanted").At("/pem")
	}
	return all, nil
}

// judge judges certificates that are to be trusted, against what is there.
type judge struct {
	pool, purpose string
	issuers       []*ca.Issuer        // of all pools
	there         []*entry            // of the purpose, in a version that is or may be in use
	among         []*x509.Certificate // that are judged together
	now           time.Time

	keys   map[string]string              // by encoded name: what equal names have in common
	byName map[string][]*x509.Certificate // the candidates, by that
}

func (j *judge) refuse(c *x509.Certificate, format string, args ...any) *fault.Error {
	return fault.New(fault.Invalid, "%q (serial %s): %w", c.Subject, cert.FormatSerial(c.SerialNumber), fmt.Errorf(format, args...)).At("/pem")
}

// both are the rules of anchors and of pinned certificates alike.
func (j *judge) both(c *x509.Certificate) error {
	switch {
	case !j.now.Before(c.NotAfter):
		return j.refuse(c, "it ended at %s, and some consumers do not start with an ended certificate among those that they trust", stamp(c.NotAfter))
	case j.now.Before(c.NotBefore):
		return j.refuse(c, "it begins at %s, and some consumers do not start with a certificate that is not valid yet", stamp(c.NotBefore))
	case len(c.UnhandledCriticalExtensions) > 0:
		return j.refuse(c, "it has the critical extension %s, which consumers do not know and must refuse (RFC 5280 4.2)", c.UnhandledCriticalExtensions[0])
	}
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey: // roots of 2004 have the exponent 3, which is no fault of what they sign
		if bits := key.N.BitLen(); bits < 2048 || bits > 16384 {
			return j.refuse(c, "its key is RSA of %d bits; from 2048 to 16384 pass", bits)
		}
	default:
		if err := cert.CheckPublicKey(c.PublicKey); err != nil {
			return j.refuse(c, "its key: %w", err)
		}
	}
	return j.foreign(c)
}

// foreign refuses what belongs to another pool, or to the identities: consumers let in whoever chains to what they trust.
func (j *judge) foreign(c *x509.Certificate) error {
	for _, i := range j.issuers {
		if i.Pool == j.pool {
			continue
		}
		whose := fmt.Sprintf("pool %q", i.Pool)
		if i.Pool == ca.IdentityPool {
			whose = "the identities of agents, nodes and operators"
		}
		for _, other := range above(i) {
			switch {
			case bytes.Equal(other.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo), j.sameName(other.RawSubject, c.RawSubject):
				return fault.New(fault.Conflict, "%q has the name or the key of %q of %s; each pool has a root of its own, because many consumers let in "+
					"whoever chains to a root that they trust", c.Subject, other.Subject, whose).At("/pem").
					WithHint("move the hosts that must trust each other into one pool, or pin single certificates of the other (--pinned)")
			case c.IsCA && signedBy(c, other):
				return fault.New(fault.Conflict, "%q was signed by %q of %s, so to trust it is to trust a part of that", c.Subject, other.Subject, whose).At("/pem")
			case i.Pool == ca.IdentityPool && signedBy(c, other):
				return fault.New(fault.Conflict, "%q is an identity, which no consumer is to meet", c.Subject).At("/pem")
			}
		}
	}
	return nil
}

// authority judges a CA certificate, and says whether it is an anchor or an issuer below one.
func (j *judge) authority(c *x509.Certificate) (kind string, err error) {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return "", j.refuse(c, "it is no CA certificate (basicConstraints cA is not TRUE, RFC 5280 4.2.1.9), so nothing can end at it; a single certificate "+
			"is trusted as it is with --pinned")
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return "", j.refuse(c, "its keyUsage is %s, without keyCertSign (RFC 5280 4.2.1.3), so its key may sign no certificate",
			strings.Join(cert.KeyUsageNames(c.KeyUsage), ", "))
	}
	if err := j.both(c); err != nil {
		return "", err
	}
	if err := j.twin(c); err != nil {
		return "", err
	}
	if cert.SelfIssued(c) {
		if err := selfSigned(c); err != nil {
			return "", j.refuse(c, "it has its own name as issuer, and %w", err)
		}
		return client.TrustAnchor, nil
	}
	if weak(c.SignatureAlgorithm) {
		return "", j.refuse(c, "it is signed with %s, which consumers refuse below a root; only a root's own signature does not matter", c.SignatureAlgorithm)
	}
	for _, other := range j.candidates() {
		if signedBy(c, other) {
			return client.TrustIntermediate, nil
		}
	}
	return "", j.refuse(c, "it is below %q, which is not trusted for purpose %s; add that root too, in the same call", c.Issuer, j.purpose)
}

// candidates are the CA certificates of the purpose, and those that are judged together.
func (j *judge) candidates() []*x509.Certificate {
	all := slices.Clone(j.among)
	for _, e := range j.there {
		if e.kind != client.TrustPinned {
			all = append(all, e.certificate)
		}
	}
	return all
}

// twin refuses a second key for one name: many consumers take the first of two equal names, and find the signature wrong.
func (j *judge) twin(c *x509.Certificate) error {
	if j.byName == nil {
		j.byName = map[string][]*x509.Certificate{}
		for _, other := range j.candidates() {
			key := j.key(other.RawSubject)
			j.byName[key] = append(j.byName[key], other)
		}
	}
	for _, other := range j.byName[j.key(c.RawSubject)] {
		if j.sameName(other.RawSubject, c.RawSubject) && !bytes.Equal(other.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo) {
			return fault.New(fault.Conflict, "%q is trusted with another key (certificate %s); many consumers take the first of two equal names, and refuse what the "+
				"other key signed, so a re-keyed CA needs a name of its own", c.Subject, Fingerprint(other)).At("/pem").
				WithHint("chancery pool trust list %s", j.pool)
		}
	}
	return nil
}

// pinned judges a certificate that is to be trusted as it is.
func (j *judge) pinned(c *x509.Certificate) error {
	if c.BasicConstraintsValid && c.IsCA {
		return j.refuse(c, "it is a CA certificate, and consumers that pin it would let in whoever it certifies; pin the peer's own certificate, or add it without --pinned")
	}
	return j.both(c)
}

// selfSigned says why a certificate is not signed with its own key. SHA-1 passes: a root is trusted because somebody says so.
func selfSigned(c *x509.Certificate) error {
	if c.SignatureAlgorithm == x509.SHA1WithRSA || c.SignatureAlgorithm == x509.ECDSAWithSHA1 {
		sum := sha1.Sum(c.RawTBSCertificate) //nolint:gosec // see above
		switch key := c.PublicKey.(type) {
		case *rsa.PublicKey:
			if c.SignatureAlgorithm == x509.SHA1WithRSA && rsa.VerifyPKCS1v15(key, crypto.SHA1, sum[:], c.Signature) == nil {
				return nil
			}
		case *ecdsa.PublicKey:
			if c.SignatureAlgorithm == x509.ECDSAWithSHA1 && ecdsa.VerifyASN1(key, sum[:], c.Signature) {
				return nil
			}
		}
		return fmt.Errorf("is not signed with its own key")
	}
	if err := c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		return fmt.Errorf("is not signed with its own key, as a root is (%w); a certificate for a new key signed with the old one is no root", err)
	}
	return nil
}

// signedBy reports whether one certificate was signed with another's key, in its name.
func signedBy(c, by *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, by.RawSubject) && by.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

func weak(a x509.SignatureAlgorithm) bool {
	switch a {
	case x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1, x509.MD5WithRSA, x509.MD2WithRSA, x509.UnknownSignatureAlgorithm:
		return true
	}
	return false
}

// key is the same for names that RFC 5280 7.1 has equal, and seldom for others: what is compared is found by it among a
// thousand.
func (j *judge) key(raw []byte) string {
	if known, ok := j.keys[string(raw)]; ok {
		return known
	}
	if j.keys == nil {
		j.keys = map[string]string{}
	}
	key := string(raw)
	if name, err := cert.ParseNameDER(raw); err == nil {
		key = strings.Map(func(r rune) rune {
			if unicode.IsSpace(r) {
				return -1
			}
			return r
		}, strings.ToLower(norm.NFKC.String(strings.ToLower(name.String()))))
	}
	j.keys[string(raw)] = key
	return key
}

// sameName compares subjects as RFC 5280 7.1 says, without regard to case.
func (j *judge) sameName(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	if j.key(a) != j.key(b) {
		return false
	}
	one, err := cert.ParseNameDER(a)
	if err != nil {
		return false
	}
	other, err := cert.ParseNameDER(b)
	return err == nil && one.Equal(other)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
