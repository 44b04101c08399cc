package keyfile

import (
	"bytes"
	"crypto/x509"
	encasn1 "encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"chancery/internal/fault"
)

const (
	maxCertificates = 10_000
	// maxPath and maxNamesakes bound the signatures that are checked to put a path together: the certificates come from
	// whoever made the file.
	maxPath      = 32
	maxNamesakes = 32
)

var (
	oidSignedData = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
)

// ParseCertificates reads every certificate of a bundle, in the order of the file: PEM with any text around it, one DER
// certificate or several after one another, or a PKCS#7 certificate bag (.p7b) in PEM, DER or BER. Private keys and other
// blocks in the file are passed over; a file without a certificate is refused.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	if err := readable(data); err != nil {
		return nil, err
	}
	if !hasPEM(data) {
		if bag, ok := pkcs7Content(data); ok {
			return parseBag(bag)
		}
		certs, err := parseDER(data)
		if err != nil {
			return nil, fmt.Errorf("read certificates: %w", err)
		}
		return certs, nil
	}
	blocks, err := pemBlocks(data)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, b := range blocks {
		var more []*x509.Certificate
		switch b.Type {
		case labelCertificate, "X509 CERTIFICATE":
			more, err = parseDER(b.Bytes)
		case "TRUSTED CERTIFICATE":
			err = fault.New(fault.Invalid, "an OpenSSL TRUSTED CERTIFICATE carries trust settings that would be lost; "+
				"CERTIFICATE passes").WithHint("openssl x509 -in FILE -out NEW.pem")
		case "PKCS7", "CMS":
			if bag, ok := pkcs7Content(b.Bytes); ok {
				more, err = parseBag(bag)
			} else {
				err = fault.New(fault.Invalid, "the PKCS#7 block is not a SignedData certificate bag")
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s at line %d: %w", b.Type, b.line, err)
		}
		if certs = append(certs, more...); len(certs) > maxCertificates {
			return nil, tooManyCertificates()
		}
	}
	if len(certs) == 0 {
		return nil, fault.New(fault.Invalid, "the file has no certificate, only: %s", labels(blocks))
	}
	return certs, nil
}

func tooManyCertificates() error {
	return fault.New(fault.TooLarge, "the file holds more than %d certificates", maxCertificates)
}

// parseDER reads one or more DER certificates without anything between or after them.
func parseDER(der []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for in := cryptobyte.String(der); !in.Empty(); {
		var one cryptobyte.String
		if !in.ReadASN1Element(&one, asn1.SEQUENCE) {
			return nil, fault.New(fault.Invalid, "the data is neither PEM nor a DER certificate, or it is truncated")
		}
		c, err := parseCertificate(one)
		if err != nil {
			return nil, err
		}
		if certs = append(certs, c); len(certs) > maxCertificates {
			return nil, tooManyCertificates()
		}
	}
	return certs, nil
}

func parseCertificate(der []byte) (*x509.Certificate, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the certificate is not valid: %w", err)
	}
	return c, nil
}

// pkcs7Content returns the inside of a SignedData ContentInfo (RFC 2315 section 9.1), which Windows and Java write in DER
// and NSS in BER.
func pkcs7Content(data []byte) (cryptobyte.String, bool) {
	der, err := berToDER(data)
	if err != nil {
		return nil, false
	}
	in := cryptobyte.String(der)
	var info, content, signed cryptobyte.String
	var oid encasn1.ObjectIdentifier
	ok := in.ReadASN1(&info, asn1.SEQUENCE) && info.ReadASN1ObjectIdentifier(&oid) && oid.Equal(oidSignedData) &&
		info.ReadASN1(&content, asn1.Tag(0).ContextSpecific().Constructed()) && content.ReadASN1(&signed, asn1.SEQUENCE)
	return signed, ok
}

// parseBag reads the certificates of a SignedData; its signers, if any, are not looked at.
func parseBag(signed cryptobyte.String) ([]*x509.Certificate, error) {
	var set cryptobyte.String
	var has bool
	if !signed.SkipASN1(asn1.INTEGER) || !signed.SkipASN1(asn1.SET) || !signed.SkipASN1(asn1.SEQUENCE) ||
		!signed.ReadOptionalASN1(&set, &has, asn1.Tag(0).ContextSpecific().Constructed()) {
		return nil, fault.New(fault.Invalid, "the PKCS#7 certificate bag is not valid")
	}
	if !has || set.Empty() {
		return nil, fault.New(fault.Invalid, "the PKCS#7 file holds no certificate")
	}
	return parseDER(set)
}

// EncodeCertificates returns certificates as PEM, in the order given, with nothing between them.
func EncodeCertificates(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, encodePEM(labelCertificate, c.Raw)...)
	}
	return out
}

// OrderPath sorts the certificates of one certification path from the leaf to the root, as TLS wants them (RFC 8446
// section 4.4.2). Repeated certificates are dropped. Certificates that do not belong to the one path are refused and named.
func OrderPath(certs []*x509.Certificate) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	seen := make(map[string]bool)
	issues := make(map[string]bool) // subjects that issued another certificate of the set
	for _, c := range certs {
		if seen[string(c.Raw)] {
			continue
		}
		seen[string(c.Raw)] = true
		all = append(all, c)
		if !selfIssued(c) {
			issues[string(c.RawIssuer)] = true
		}
	}
	var leaf *x509.Certificate
	for _, c := range all {
		if issues[string(c.RawSubject)] {
			continue
		}
		if leaf != nil {
			return nil, fault.New(fault.Invalid, "the certificates are not one path: neither %q nor %q issued another of them",
				leaf.Subject, c.Subject)
		}
		leaf = c
	}
	if leaf == nil {
		return nil, fault.New(fault.Invalid, "the certificates are not one path: each is the issuer of another")
	}
	path := PathFrom(leaf, all)
	if len(path) != len(all) {
		for _, c := range all {
			if !containsCertificate(path, c) {
				return nil, fault.New(fault.Invalid, "certificate %q does not belong to the path of %q", c.Subject, leaf.Subject)
			}
		}
	}
	return path, nil
}

// PathFrom follows issuers among candidates from leaf upwards, as far as they go. Where two candidates bear the issuer's
// name the one whose key made the signature is taken.
func PathFrom(leaf *x509.Certificate, candidates []*x509.Certificate) []*x509.Certificate {
	bySubject := make(map[string][]*x509.Certificate)
	for _, c := range candidates {
		bySubject[string(c.RawSubject)] = append(bySubject[string(c.RawSubject)], c)
	}
	path := []*x509.Certificate{leaf}
	for at := leaf; !selfIssued(at) && len(path) < maxPath; {
		next := pickIssuer(at, bySubject[string(at.RawIssuer)])
		if next == nil || containsCertificate(path, next) {
			break
		}
		path = append(path, next)
		at = next
	}
	return path
}

func pickIssuer(c *x509.Certificate, named []*x509.Certificate) *x509.Certificate {
	for _, i := range named[:min(len(named), maxNamesakes)] {
		if signedBy(c, i) {
			return i
		}
	}
	return nil
}

// signedBy checks only the signature: whether the issuer may sign is for path validation to say. An algorithm that Go no
// longer verifies (SHA-1) leaves the key identifiers to decide.
func signedBy(c, issuer *x509.Certificate) bool {
	err := issuer.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature)
	if _, insecure := err.(x509.InsecureAlgorithmError); insecure {
		return len(c.AuthorityKeyId) == 0 || bytes.Equal(c.AuthorityKeyId, issuer.SubjectKeyId)
	}
	return err == nil
}

func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, c.RawSubject) }

func containsCertificate(list []*x509.Certificate, c *x509.Certificate) bool {
	for _, x := range list {
		if x.Equal(c) {
			return true
		}
	}
	return false
}
