package importer

import (
	"bytes"
	"crypto"
	"crypto/md5"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// errWeak says that a signature is right and its algorithm is not fit to be relied on.
var errWeak = errors.New("signed with SHA-1 or MD5")

// check refuses a CA that could not go on issuing here, with every reason at once.
func (c *CA) check(now time.Time) error {
	x := c.Certificate
	var reasons []string
	refuse := func(format string, args ...any) { reasons = append(reasons, fmt.Sprintf(format, args...)) }

	if !x.BasicConstraintsValid || !x.IsCA {
		refuse("it is not a CA certificate: basicConstraints with CA:TRUE is needed")
	}
	if x.KeyUsage != 0 && x.KeyUsage&x509.KeyUsageCertSign == 0 {
		refuse("its keyUsage does not contain keyCertSign")
	}
	if x.KeyUsage != 0 && x.KeyUsage&x509.KeyUsageCRLSign == 0 {
		c.warn("the CA's keyUsage does not contain cRLSign: consumers will refuse its CRLs")
	}
	if now.After(x.NotAfter) {
		refuse("it expired at %s", x.NotAfter.UTC().Format(time.RFC3339))
	}
	if now.Before(x.NotBefore) {
		refuse("it is not valid before %s", x.NotBefore.UTC().Format(time.RFC3339))
	}
	if err := cert.CheckIssuerKey(x); err != nil {
		refuse("%v", err)
	}
	if len(x.RawSubject) <= 2 {
		refuse("its subject is empty; RFC 5280 4.1.2.6 demands a name of a CA")
	}
	for _, oid := range x.UnhandledCriticalExtensions {
		c.warn("the CA certificate has critical extension %s, which many consumers do not know and will refuse", oid)
	}
	switch {
	case len(x.SubjectKeyId) > 0:
	case !bytes.Equal(x.RawSubject, x.RawIssuer):
		refuse("it has no subjectKeyIdentifier, which RFC 5280 4.2.1.2 demands of a CA")
	default:
		c.warn("the CA certificate has no subjectKeyIdentifier: certificates under it cannot name its key")
	}
	if len(x.ExtKeyUsage)+len(x.UnknownExtKeyUsage) > 0 {
		c.warn("the CA certificate has an extKeyUsage: many consumers limit the certificates under it to those purposes")
	}
	reasons = append(reasons, c.checkAbove(now)...)
	if len(reasons) > 0 {
		return fault.New(fault.Invalid, "CA %q cannot be imported: %s", x.Subject, strings.Join(reasons, "; "))
	}
	return nil
}

// checkAbove judges the signatures from the CA up to its root. A root's own signature proves nothing to anybody, so its
// algorithm does not matter (RFC 5280 section 6.1 does not look at it); it must only be right.
func (c *CA) checkAbove(now time.Time) (reasons []string) {
	path := append([]*x509.Certificate{c.Certificate}, c.Chain...)
	for i, x := range path {
		if i > 0 && now.After(x.NotAfter) {
			reasons = append(reasons, fmt.Sprintf("%q above it expired at %s", x.Subject, x.NotAfter.UTC().Format(time.RFC3339)))
		}
		if i > 0 && (!x.IsCA || x.KeyUsage != 0 && x.KeyUsage&x509.KeyUsageCertSign == 0) {
			reasons = append(reasons, fmt.Sprintf("%q above it may not sign certificates", x.Subject))
		}
		if i > 0 && x.BasicConstraintsValid && (x.MaxPathLen > 0 || x.MaxPathLenZero) && x.MaxPathLen < i {
			reasons = append(reasons, fmt.Sprintf("%q above it allows %d CAs below itself and has %d", x.Subject, x.MaxPathLen, i))
		}
		if bytes.Equal(x.RawIssuer, x.RawSubject) {
			if err := verify(x, x); err != nil && !errors.Is(err, errWeak) {
				reasons = append(reasons, fmt.Sprintf("the signature of %q by itself is wrong", x.Subject))
			}
			return reasons
		}
		if i == len(path)-1 {
			c.warn("the path above the CA ends at %q, without its root; consumers will need it", x.Subject)
			return reasons
		}
		switch err := verify(x, path[i+1]); {
		case errors.Is(err, errWeak):
			reasons = append(reasons, fmt.Sprintf("%q is %s by %q, which consumers refuse; have it signed again with SHA-256", x.Subject,
				err, path[i+1].Subject))
		case err != nil:
			reasons = append(reasons, fmt.Sprintf("%q is not signed by %q", x.Subject, path[i+1].Subject))
		}
	}
	return reasons
}

// verify checks that issuer's key signed x. Where the signature is right and its hash is SHA-1 or MD5 the error is errWeak.
func verify(x, issuer *x509.Certificate) error {
	return verifySignature(issuer, x.SignatureAlgorithm, x.RawTBSCertificate, x.Signature)
}

func verifySignature(issuer *x509.Certificate, algorithm x509.SignatureAlgorithm, signed, signature []byte) error {
	if algorithm == x509.MD5WithRSA { // CheckSignature no longer looks at these
		key, ok := issuer.PublicKey.(*rsa.PublicKey)
		if !ok {
			return errors.New("the signature is of another kind than the issuer's key")
		}
		sum := md5.Sum(signed)
		if err := rsa.VerifyPKCS1v15(key, crypto.MD5, sum[:], signature); err != nil {
			return err
		}
		return errWeak
	}
	if err := issuer.CheckSignature(algorithm, signed, signature); err != nil {
		return err
	}
	if algorithm == x509.SHA1WithRSA || algorithm == x509.ECDSAWithSHA1 {
		return errWeak
	}
	return nil
}
