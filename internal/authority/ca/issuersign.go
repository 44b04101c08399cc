package ca

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/certtool"
	"chancery/internal/pki/root"
)

// selfSign makes the certificate of a root.
func (s *IssuerSpec) selfSign(key crypto.Signer, spki []byte, now time.Time) (*x509.Certificate, error) {
	if s.Template != "" {
		return s.signTemplate(nil, key, spki, now)
	}
	options, err := s.options(-1)
	if err != nil {
		return nil, err
	}
	made, err := root.New(*options, key, now)
	if err != nil {
		return nil, err
	}
	return made.Certificate, nil
}

// signUnder makes the certificate of an issuer below another.
func (s *IssuerSpec) signUnder(parent *cert.Issuer, key crypto.Signer, spki []byte, now time.Time) (*x509.Certificate, error) {
	if s.Template != "" {
		return s.signTemplate(parent, key, spki, now)
	}
	options, err := s.options(0)
	if err != nil {
		return nil, err
	}
	if subject, err := options.Subject.DER(); err == nil && bytes.Equal(subject, parent.Certificate.RawSubject) {
		return nil, fault.New(fault.Invalid, "subject %q is that of the issuer above; each issuer has a name of its own", s.Subject)
	}
	above := root.Root{Certificate: parent.Certificate, Signer: key}
	return above.SignIssuer(*options, spki, *parent, now)
}

// options reads the texts of the spec.
func (s *IssuerSpec) options(pathLen int) (*root.Options, error) {
	subject, err := cert.ParseName(s.Subject)
	if err != nil {
		return nil, err
	}
	o := &root.Options{Subject: subject, Validity: s.Validity, PathLen: pathLen}
	if s.PathLen != nil {
		o.PathLen = *s.PathLen
	}
	o.Constraints, err = root.ParseConstraints(s.Constraints)
	return o, err
}

// signTemplate makes a CA of a certtool template with option ca. parent is nil for a root.
func (s *IssuerSpec) signTemplate(parent *cert.Issuer, key crypto.Signer, spki []byte, now time.Time) (*x509.Certificate, error) {
	t, _, err := parseTemplate(s.Template, s.Compat)
	if err != nil {
		return nil, err
	}
	if !t.Has("ca") {
		return nil, fault.New(fault.Invalid, "the template of an issuer needs the option ca")
	}
	public, err := cert.ParsePublicKey(spki)
	if err != nil {
		return nil, err
	}
	made, err := t.Certificate(now, public, certtool.Options{SelfSigned: parent == nil})
	if err != nil {
		return nil, err
	}
	if made.Serial == nil {
		if made.Serial, err = cert.NewSerial(); err != nil {
			return nil, err
		}
	}
	var linted *cert.Linted
	if parent == nil {
		linted, err = selfSignedTemplate(made.Template, spki, made.Serial)
	} else if err = withinIssuer(made.Template, &Issuer{Name: parent.Certificate.Subject.CommonName, Certificate: parent.Certificate}); err == nil {
		linted, err = lintTemplate(made.Template, spki, made.Serial, parent, false)
	}
	if err != nil {
		return nil, err
	}
	der, err := linted.SignVerified(key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func selfSignedTemplate(t *cert.Template, spki []byte, serial *big.Int) (*cert.Linted, error) {
	tbs, err := cert.BuildSelfSigned(t, spki, serial, 0)
	if err != nil {
		return nil, err
	}
	return tbs.Lint(cert.Lints{Off: optionalLints()})
}

// request makes the CSR of an issuer that waits for an outside root.
func (s *IssuerSpec) request(key crypto.Signer) (csr, subject []byte, err error) {
	options, err := s.options(0)
	if err != nil {
		return nil, nil, err
	}
	if subject, err = options.Subject.DER(); err != nil {
		return nil, nil, err
	}
	csr, err = cert.CreateCSR(&cert.CSRTemplate{
		Subject: options.Subject, BasicConstraints: &cert.BasicConstraints{CA: true, PathLen: options.PathLen},
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, key)
	return csr, subject, err
}

// digest tells one spec from another for the idempotency key; keys are not part of it.
func (s *IssuerSpec) digest() string {
	plain := *s
	plain.ParentKey, plain.Key, plain.IdempotencyKey = nil, nil, ""
	text, err := json.Marshal(plain)
	if err != nil {
		return "" // an IssuerSpec without its key is plain data
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
